"""Ternary heads: the last layers of a model, with weights of -1, 0 and 1 and steps between them."""
