"""Figures of spectra, and their style."""
