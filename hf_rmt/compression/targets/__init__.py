"""Chooses the layers to compress, and finds the layers that must stay dense."""
