"""Draws figures of spectra (eigenvalues of weights) in a style of their own."""
