"""Ternary heads: the last layers of a model, with weights of -1, 0 and 1, times a scale.

Between these layers there are step activations, functions with a few values.
"""
