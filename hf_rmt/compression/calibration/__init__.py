"""Uses calibration data to choose directions, ranks and the codes of packed noise."""
