"""What calibration data decide: moments of inputs and gradients, directions, ranks and codes."""
