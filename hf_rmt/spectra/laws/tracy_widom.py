"""The Tracy-Widom distribution for real matrices (the case that is called beta = 1).

This distribution describes how the largest eigenvalue of a random matrix scatters around its edge,
the value that theory predicts for an infinitely large matrix.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy.optimize import brentq
from scipy.special import airy

QUADRATURE_NODES = 40
CUTOFF = 16.0
"""Right end of the quadrature in `tracy_widom_cdf`. Beyond this end the kernel is below 1e-12."""


def tracy_widom_cdf(x: float) -> float:
    """Tracy-Widom distribution function F_1(x) = det(I - V_x).

    V_x is the integral operator with kernel Ai((u + v) / 2) / 2 for u and v in (x, infinity), where
    Ai is the Airy function, and I is the identity. The determinant is computed on Gauss-Legendre
    nodes, with an error that falls exponentially with the number of nodes.

    Args:
        x: Largest noise eigenvalue minus the edge (the value that theory predicts for it), divided
            by the scale `BulkLaw.edge_fluctuation`.

    Returns:
        The probability that a Tracy-Widom variable lies below x.

    Source:
        Ferrari & Spohn, J. Phys. A 38 (2005); Bornemann, Math. Comp. 79 (2010).

    Examples:
        >>> round(tracy_widom_cdf(0.9793), 4)
        0.95
    """
    nodes, weights = np.polynomial.legendre.leggauss(QUADRATURE_NODES)
    end = max(CUTOFF, x + CUTOFF)
    nodes = x + (nodes + 1) * (end - x) / 2
    root = np.sqrt(weights * (end - x) / 2)
    kernel = airy((nodes[:, None] + nodes) / 2)[0] / 2
    value = np.linalg.det(np.eye(QUADRATURE_NODES) - root[:, None] * kernel * root)
    return float(np.clip(value, 0.0, 1.0))  # far below 0 rounding makes it negative


@cache
def tracy_widom_quantile(probability: float) -> float:
    """The x for which `tracy_widom_cdf(x)` is the given probability.

    Args:
        probability: A number in [1e-6, 1 - 1e-6].

    Returns:
        The quantile x.

    Raises:
        ValueError: If the probability lies outside that range.

    Examples:
        >>> round(tracy_widom_quantile(0.99), 3)
        2.023
    """
    if not 1e-6 <= probability <= 1 - 1e-6:
        raise ValueError(
            f"probability must lie in [1e-6, 1 - 1e-6], got {probability}; clip it to this range"
        )
    return float(brentq(lambda x: tracy_widom_cdf(x) - probability, -10.0, 12.0, xtol=1e-12))
