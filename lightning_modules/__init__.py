"""Networks in training: losses, metrics, optimisers."""
