"""Networks, losses and pure tensor functions."""
