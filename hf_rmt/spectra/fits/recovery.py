"""Recovers the sizes alpha that spikes had before noise was added (population spikes).

A spike is an eigenvalue of the signal. The spike map g maps alpha to this eigenvalue; see
`BulkLaw.spike_forward`. A weak spike is found only if chance lifts this eigenvalue over the edge,
the limit of the noise. So the alpha that the plain inverse of g gives is too large. The eigenvalue
of a found spike is modelled as a normal variable of mean g(alpha), truncated: it cannot lie below
the edge. The result is the alpha for which the observed eigenvalue is the median of this variable.
This alpha is too large as often as it is too small, for weak and for strong spikes.
"""

from __future__ import annotations

import numpy as np
from scipy.special import log_ndtr

from hf_rmt.spectra.laws.law import BulkLaw
from hf_rmt.spectra.laws.spike_map import Array

BISECTIONS = 50
TRACY_WIDOM_DEVIATION = 1.27
"""Standard deviation of the Tracy-Widom distribution for real matrices, see `tracy_widom_cdf`. The
standard deviation of an eigenvalue is taken to be at least this times
`BulkLaw.edge_fluctuation`."""


def found_spikes(law: BulkLaw, eigenvalues: Array, edge: float, rows: int) -> Array:
    """Compute, from eigenvalues above the edge, the sizes of the signals that produced them.

    The size alpha of a signal, before noise was added, is called a population spike. The edge is
    the limit above which an eigenvalue counts as signal.

    Args:
        law: The law of the noise, the predicted distribution of its eigenvalues.
        eigenvalues: The eigenvalues, shape (K,).
        edge: The edge that the eigenvalues exceeded; at least `law.upper_edge`.
        rows: N, the number of rows of the noise.

    Returns:
        Population spikes, shape (K,). `law.spike_inverse` alone would be too large, because
        among weak signals only those that the noise happened to enlarge exceed the edge. So the
        result is smaller, but at least the largest of `law.critical_points`. For an eigenvalue
        below the edge the result is `law.spike_inverse`, which is nan within `law.bulk_edges`.

    Source:
        Paul, Statist. Sinica 17 (2007), theorem 3: the variance of a spike's eigenvalue is
        2 alpha^2 g'(alpha) / N, where g' is `law.spike_slope`.

    Examples:
        >>> from hf_rmt.spectra import MarchenkoPastur
        >>> law = MarchenkoPastur(variance=1.0, aspect_ratio=0.25)
        >>> found_spikes(law, np.array([2.4, 12.0]), edge=2.35, rows=400).round(2)
        array([ 1.69, 11.73])
        >>> law.spike_inverse([2.4, 12.0]).round(2)
        array([ 1.86, 11.73])
    """
    plain = law.spike_inverse(eigenvalues)
    above = eigenvalues > edge
    critical = float(law.critical_points[-1])
    floor = TRACY_WIDOM_DEVIATION * law.edge_fluctuation(critical, rows)
    low, high = np.full(plain.shape, critical), np.where(above, plain, critical)
    for _ in range(BISECTIONS):
        alpha = (low + high) / 2
        centre = law.spike_forward(alpha)
        slope = np.maximum(law.spike_slope(alpha), 0.0)
        deviation = np.hypot(alpha * np.sqrt(2 * slope / rows), floor)
        beyond, found = ((centre - x) / deviation for x in (eigenvalues, edge))
        too_strong = log_ndtr(beyond) - log_ndtr(found) > np.log(0.5)
        low, high = np.where(too_strong, low, alpha), np.where(too_strong, alpha, high)
    return np.where(above, high, plain)
