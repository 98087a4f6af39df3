"""The limiting laws of noise: Marchenko-Pastur, the double bulk, laws of spread variances."""
