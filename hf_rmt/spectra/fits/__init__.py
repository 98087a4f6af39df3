"""Fits of a law to a spectrum, which find the edge of the noise and the spikes above it."""
