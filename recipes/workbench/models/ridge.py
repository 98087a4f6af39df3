"""Ridge regression in closed form on many features; the strength is chosen on held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve

Array = NDArray[np.floating]

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Strengths of the ridge to try, in units of the mean squared norm of the centred features."""


class Rows(NamedTuple):
    """Features, shape (rows, features), and targets, shape (rows, outputs)."""

    features: Array
    targets: Array


class Readout(NamedTuple):
    """A linear layer, f -> f W + offset for features f, and the ridge strength of its fit."""

    weights: Array
    offset: Array
    strength: float

    def __call__(self, features: Array) -> Array:
        return features @ self.weights + self.offset


def fit_ridge(train: Rows, kept: Rows, error: Callable[[Array, Array], float]) -> Readout:
    """Fit a readout for every strength, and return the one with the least error on rows kept back.

    Args:
        train: Rows to fit on.
        kept: Rows to choose the strength on.
        error: A function that takes predictions and targets and returns the error.

    Returns:
        The readout; its weights have the dtype of the features.
    """
    path = ridge_path(train)
    return min(path, key=lambda readout: error(readout(kept.features), kept.targets))


def ridge_path(train: Rows) -> Iterator[Readout]:
    """For every strength, the readout that minimises |T - F W|^2 + strength |W|^2.

    F and T are the features and targets after centring. The smaller of the Gram matrices F'F and
    FF' is solved in float64. A strength that is below the rounding of this matrix is left out.

    Args:
        train: Rows to fit on.

    Yields:
        The readouts.
    """
    mean, offset = train.features.mean(0), train.targets.mean(0)
    features, targets = train.features - mean, train.targets - offset
    dual = features.shape[1] > len(features)
    gram = (features @ features.T if dual else features.T @ features).astype(float)
    right = targets if dual else features.T @ targets
    unit = np.trace(gram) / len(features)
    places = np.diag_indices_from(gram)
    diagonal = gram[places]
    for strength in STRENGTHS:
        gram[places] = diagonal + strength * unit
        try:
            factor = cho_factor(gram)
        except LinAlgError:  # weaker than the rounding of the products
            continue
        weights = cho_solve(factor, right).astype(features.dtype)
        if dual:
            weights = features.T @ weights
        yield Readout(weights, offset - mean @ weights, strength)
