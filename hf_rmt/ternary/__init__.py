"""Ternary heads: weights of -1, 0 and 1, steps in place of activations, a refitted last layer."""
