"""The published estimator PDBLS: it fits the variances of noise that has two variances.

The module `estimation` has another estimator for the same noise. It also explains the equation
(SS) that this one solves.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import least_squares
from scipy.special import logsumexp

from hf_rmt.spectra.fits.estimation import BulkEstimate
from hf_rmt.spectra.laws.double_bulk import DoubleBulk
from hf_rmt.spectra.laws.spike_map import Array

POINTS_PER_RANGE = 20
SAME = 1e-6
"""If (largest - smallest) / largest of the noise eigenvalues is at most this, all of them count as
equal, and no equation is solved."""


def published_bulk(values: Array, rows: int) -> BulkEstimate:
    """Fit a double bulk (noise of two variances) by the published estimator PDBLS.

    First, two information criteria count the spikes (signal eigenvalues), which are removed. As in
    the paper, these criteria depend on the scale of the weight. Then the equation (SS) of the
    module `estimation` is solved by least squares at real points z.

    Args:
        values: Eigenvalues, descending, shape (p,).
        rows: N, the longer side of the weight.

    Returns:
        The `BulkEstimate` of the noise, from the eigenvalues without the removed spikes.

    Source:
        Wu, Zhu & Li, ICML 2025, algorithm 1.
    """
    noise = values[initial_spikes(values, rows) :]
    aspect_ratio = len(noise) / rows
    low, high = float(noise[-1]), float(noise[0])
    if high - low <= SAME * high:  # all bounds coincide
        return BulkEstimate(DoubleBulk(0.5, (high, high), aspect_ratio), 0.0, False)
    u = _grid(noise, aspect_ratio)
    s = -(1 - aspect_ratio) / u + np.sum(1 / (noise - u[:, None]), axis=1) / rows

    def residual(x: Array) -> Array:
        pull = x[0] * x[1] / (1 + x[1] * s) + (1 - x[0]) * x[2] / (1 + x[2] * s)
        return -1 / s + aspect_ratio * pull - u

    start = [0.5, low + 0.75 * (high - low), low + 0.25 * (high - low)]
    solution = least_squares(residual, start, bounds=([0, low, low], [1, high, high]))
    mixing, first, second = map(float, solution.x)
    if first < second:
        mixing, first, second = 1 - mixing, second, first
    law = DoubleBulk(mixing, (first, max(second, np.finfo(float).tiny)), aspect_ratio)
    size = float(np.sqrt(np.mean(solution.fun**2)))
    return BulkEstimate(law, size, solution.status > 0)


def initial_spikes(values: Array, rows: int) -> int:
    """The number K_0 of spikes (signal eigenvalues) that are removed before the fit.

    The paper that `published_bulk` names has two information criteria, EDA and EDB (see
    `criteria`). Each criterion is smallest at some number of spikes k. K_0 is the larger of these
    two numbers.

    Args:
        values: Eigenvalues, descending, shape (p,).
        rows: The longer side N of the weight.

    Returns:
        K_0, at least 1.
    """
    eda, edb = criteria(values, rows)
    return 1 + int(max(np.argmin(eda), np.argmin(edb)))


def criteria(values: Array, rows: int) -> tuple[Array, Array]:
    """The values of two information criteria, EDA and EDB, for each number k of spikes.

    Spikes are signal eigenvalues. k runs from 1 to min(int(6 N^0.1), p - 2), and the k with the
    smallest value is the best. Arguments, N and p are as for `initial_spikes`.
    """
    columns = len(values)
    log_theta = 2 * (values[:-1] - values[1:])
    counts = np.arange(1, min(int(6 * rows**0.1), columns - 2) + 1)
    log_mean = np.array([logsumexp(log_theta[k:]) - np.log(columns - k - 1) for k in counts])
    drop = values[0] - values[counts]
    fit = rows * (columns - counts - 1) * log_mean
    eda = -rows * drop + fit + 2 * columns * counts
    edb = -rows * np.log(columns) * drop + fit + columns * counts * np.log(rows)
    return eda, edb


def _grid(noise: Array, aspect_ratio: float) -> Array:
    """The real points z at which `published_bulk` solves its equation.

    There are 20 points in (-10, 0) and 20 in (5 lambda_max, 10 lambda_max). If c < 1 and
    lambda_min > 0, there are 20 more in (0, lambda_min / 2). Here lambda_min and lambda_max are the
    smallest and the largest noise eigenvalue, and c is the `aspect_ratio`, columns / rows.
    """
    inner = np.arange(1, POINTS_PER_RANGE + 1) / (POINTS_PER_RANGE + 1)
    parts = [-10 * inner, noise[0] * (5 + 5 * inner)]
    if aspect_ratio < 1 and noise[-1] > 0:
        parts.insert(1, 0.5 * noise[-1] * inner)
    return np.concatenate(parts)
