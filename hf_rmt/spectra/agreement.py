"""The distance between noise eigenvalues and their law, the distribution that theory predicts."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from hf_rmt.spectra.laws.law import BulkLaw


def kolmogorov_distance(law: BulkLaw, noise: ArrayLike) -> float:
    """Largest difference between two cumulative distributions, sup_x |F_n(x) - F(x)|.

    F is the distribution of the law, and F_n is that of the n noise eigenvalues.

    Args:
        law: The law of the noise, the distribution that theory predicts for its eigenvalues.
        noise: Noise eigenvalues in any order, shape (n,), n >= 1.

    Returns:
        A number in [1 / (2 n), 1].

    Raises:
        ValueError: If there is no eigenvalue.

    Examples:
        >>> from hf_rmt.spectra import MarchenkoPastur
        >>> law = MarchenkoPastur(1.0, 0.5)
        >>> round(kolmogorov_distance(law, law.quantile([0.25, 0.75])), 6)
        0.25
    """
    values = np.sort(np.asarray(noise, dtype=float))
    if not len(values):
        raise ValueError("noise must hold at least 1 eigenvalue, got 0; leave the layer out")
    steps = np.arange(len(values) + 1) / len(values)
    theory = law.cdf(values)
    return float(max(np.max(steps[1:] - theory), np.max(theory - steps[:-1])))
