"""Wrong labels, made on purpose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def shuffled_labels(labels: Sequence[int], share: float, *, seed: int) -> list[int]:
    """The labels, after a random share of them was permuted among the rows of this share."""
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie in [0, 1], got {share}")
    generator = np.random.default_rng(seed)
    noisy = np.array(labels)
    rows = generator.permutation(len(noisy))[: round(share * len(noisy))]
    noisy[rows] = noisy[generator.permutation(rows)]
    return noisy.tolist()
