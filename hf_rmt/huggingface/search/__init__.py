"""Finds how much noise can be removed from weights while a metric falls only a little.

Noise is a weight minus its low-rank signal. `search` is the function to call.
"""
