"""Uses calibration data, which are batches of model inputs, to decide what to keep of weights.

The data tell which directions (singular values with their vectors) of a weight are kept, and how
many. They also tell how the rest of the weight, the noise, is rounded to few bits.
"""
