"""Optional parts of a training or test, one thing each."""
