"""Optional callbacks, one thing each."""
