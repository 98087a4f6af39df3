"""The laws of noise eigenvalues: Marchenko-Pastur, the double bulk, and many variances."""
