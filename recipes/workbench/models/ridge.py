"""Ridge regression in closed form on many features; the strength is chosen on held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve

Array = NDArray[np.floating]

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""In units of the mean squared norm of the centred features."""


class Rows(NamedTuple):
    """Features, shape (rows, features), and targets, shape (rows, outputs)."""

    features: Array
    targets: Array


class Readout(NamedTuple):
    """The linear layer f -> f W + offset, and the strength that made it."""

    weights: Array
    offset: Array
    strength: float

    def __call__(self, features: Array) -> Array:
        return features @ self.weights + self.offset


def fit_ridge(train: Rows, kept: Rows, error: Callable[[Array, Array], float]) -> Readout:
    """The readout of least error on the rows kept back.

    Args:
        train: Rows to fit on.
        kept: Rows to choose the strength on.
        error: Of predictions and targets.

    Returns:
        The readout; its weights have the dtype of the features.
    """
    path = ridge_path(train)
    return min(path, key=lambda readout: error(readout(kept.features), kept.targets))


def ridge_path(train: Rows) -> Iterator[Readout]:
    """Minimisers of |T - F W|^2 + strength |W|^2, rows centred, for every strength.

    The smaller of the two Gram matrices is solved, in float64. Strengths that are weaker than the
    rounding of its products are left out.

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
