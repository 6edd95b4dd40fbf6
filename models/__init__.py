"""Networks, losses and pure tensor functions, on torch alone."""
