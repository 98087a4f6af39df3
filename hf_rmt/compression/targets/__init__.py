"""Chooses the layers to compress, and finds the layers that must not be compressed."""
