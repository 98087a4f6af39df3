"""Ternary heads: ternary weights, matched step activations, a refitted last layer."""
