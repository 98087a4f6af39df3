"""Fits of a noise law (a predicted distribution of eigenvalues) to the spectrum of a weight.

A fit finds the edge (the largest eigenvalue that noise would have) and the eigenvalues above it.
"""
