"""The README.md of a compressed model."""
