"""Laws, the distributions that theory predicts for noise eigenvalues.

They are the Marchenko-Pastur law (noise of one variance), the double bulk (noise of two variances),
and laws of noise of many variances.
"""
