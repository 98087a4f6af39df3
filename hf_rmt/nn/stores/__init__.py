"""Packs weights into few bits, and unpacks them.

Noise is a weight minus its low-rank signal. It is stored as codes with scales, see `NoiseStore`.
The entries -1, 0 and 1 of a ternary weight are stored four or five in a byte.
"""
