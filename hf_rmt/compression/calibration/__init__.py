"""What data says: moments of inputs and gradients, directions and ranks chosen by them, codes."""
