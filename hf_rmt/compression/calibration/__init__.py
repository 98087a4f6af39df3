"""Chooses directions, ranks and codes with calibration data, by moments of inputs and gradients."""
