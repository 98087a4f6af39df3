"""Draws figures of spectra (squared singular values of weights), all in the same style."""
