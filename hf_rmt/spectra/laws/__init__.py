"""The laws of noise eigenvalues: Marchenko-Pastur, the double bulk, and laws of many variances."""
