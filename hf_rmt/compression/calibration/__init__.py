"""Uses calibration data, which are batches of model inputs, to decide what to keep of weights.

The data tell which directions (singular values with their vectors) are kept and how many, and with
which codes noise is rounded to few bits.
"""
