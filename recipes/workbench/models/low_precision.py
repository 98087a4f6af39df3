"""Random Fourier features of few bits."""

from __future__ import annotations

from typing import Self

from workbench.models.ridge import Array

import numpy as np
from scipy.optimize import minimize_scalar
from sklearn.kernel_approximation import RBFSampler


class LowPrecisionFourier(RBFSampler):
    """Random Fourier features whose weights and values are rounded to a few bits."""

    def __init__(
        self,
        *,
        bits: int = 8,
        gamma: float = 1.0,
        n_components: int = 100,
        random_state: int | None = None,
    ) -> None:
        super().__init__(gamma=gamma, n_components=n_components, random_state=random_state)
        self.bits = bits

    def fit(self, X: Array, y: None = None) -> Self:  # noqa: N803 - scikit-learn's name
        super().fit(X)
        weights, spread = self.random_weights_, self.random_weights_.std()
        best = minimize_scalar(
            lambda step: np.square(rounded(weights, step, self.bits) - weights).mean(),
            bounds=(0, 4 * spread),
            method="bounded",
        )
        self.random_weights_ = rounded(weights, best.x, self.bits)
        return self

    def transform(self, X: Array) -> Array:  # noqa: N803 - scikit-learn's name
        features = super().transform(X)
        largest = np.sqrt(2 / self.n_components)
        return rounded(features, largest / 2 ** (self.bits - 1), self.bits).astype(features.dtype)


def rounded(values: Array, step: float, bits: int) -> Array:
    """Round each value to the nearest of 2^bits odd multiples of step / 2, around 0."""
    half = 2 ** (bits - 1)
    return (np.clip(np.floor(values / step), -half, half - 1) + 0.5) * step
