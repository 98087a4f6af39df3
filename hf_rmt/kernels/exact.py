"""Exact kernels of infinitely wide networks with Gaussian weights, for any data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import ArrayLike

from hf_rmt.kernels.activations import Activation, Array
from hf_rmt.kernels.equivalents import layer_moments
from hf_rmt.kernels.gaussian_moments import GaussianMoments, gaussian_moments
from hf_rmt.kernels.statistics import check_data, root_mean_square

SCALES = 24
"""Chebyshev nodes over the range of variances; moments are smooth in the variance."""
MAX_DEGREE = 80
REMAINDER = 1e-11


@dataclass(frozen=True)
class Kernels:
    """Kernels of one network on n inputs.

    Args:
        conjugate: Conjugate kernel of the last hidden layer, shape (n, n).
        tangent: Neural tangent kernel; None where an activation jumps.
    """

    conjugate: Array
    tangent: Array | None


def exact_kernels(
    data: ArrayLike, activations: Sequence[Activation], *, tau: float | None = None
) -> Kernels:
    """CK and NTK at infinite width: K_l = E[s(u) s(v)], NTK_l = K_l + NTK_{l-1} o E[s'(u) s'(v)].

    (u, v) is Gaussian with covariance K_{l-1}, K_0 = X'X. E[s(u) s(v)] is the Taylor series sum_k
    g^k E s^(k)(u) E s^(k)(v) / k! in the covariance g, truncated where the rest is negligible at
    the largest correlation; relu has the arc-cosine kernels in closed form.

    Args:
        data: Inputs, scaled for weights of variance 1, shape (samples, features).
        activations: One for each hidden layer.
        tau: tau_0, which sets the scales at which the layers are centred, s - E s(tau_{l-1} xi);
            None for the root mean square norm of the inputs.

    Returns:
        The kernels of the last layer.

    Raises:
        ValueError: If distinct inputs correlate so much that the series does not converge, or an
            input is 0.

    Source:
        Cho & Saul 2009 (arc-cosine); Daniely, Frostig & Singer 2016 (dual activations).
    """
    inputs = check_data(data)
    conjugate = inputs @ inputs.T
    if not (np.diag(conjugate) > 0).all():
        raise ValueError("every input must have a positive norm; drop the zero rows of data")
    tangent: Array | None = conjugate
    moments = layer_moments(activations, tau=root_mean_square(inputs) if tau is None else tau)
    for activation, centre in zip(activations, moments, strict=True):
        layer = _relu_layer if activation == "relu" else _series_layer
        raised, slopes = layer(conjugate, activation, centre.m0)
        tangent = None if slopes is None or tangent is None else raised + tangent * slopes
        conjugate = raised
    return Kernels(conjugate, tangent)


def _relu_layer(kernel: Array, activation: Activation, mean: float) -> tuple[Array, Array | None]:
    norms = np.sqrt(np.diag(kernel))
    cosine = np.clip(kernel / np.outer(norms, norms), -1.0, 1.0)
    np.fill_diagonal(cosine, 1.0)
    angle = np.arccos(cosine)
    slopes = (np.pi - angle) / (2 * np.pi)
    raised = np.outer(norms, norms) * (np.sin(angle) / (2 * np.pi) + slopes * cosine)
    means = norms / np.sqrt(2 * np.pi)
    return raised - mean * (means[:, None] + means) + mean**2, slopes


def _series_layer(kernel: Array, activation: Activation, mean: float) -> tuple[Array, Array | None]:
    variances = np.diag(kernel)
    degree = _degree(kernel, variances)
    moments = _interpolated(variances, lambda tau: _row(activation, tau, degree + 1))
    *means, second, slope_second = moments
    means[0] = means[0] - mean
    raised, slopes = np.zeros_like(kernel), np.zeros_like(kernel)
    for k in range(degree, -1, -1):  # Horner: sum_k g^k / k! a_k(i) a_k(j)
        raised = raised * kernel / (k + 1) + np.outer(means[k], means[k])
        slopes = slopes * kernel / (k + 1) + np.outer(means[k + 1], means[k + 1])
    np.fill_diagonal(raised, second - 2 * mean * (means[0] + mean) + mean**2)
    np.fill_diagonal(slopes, slope_second)
    return raised, slopes if np.isfinite(slope_second).all() else None


def _degree(kernel: Array, variances: Array) -> int:
    correlation = np.abs(kernel) / np.sqrt(np.outer(variances, variances))
    np.fill_diagonal(correlation, 0.0)
    largest = float(correlation.max())
    degree = int(np.log(REMAINDER) / np.log(np.clip(largest, 1e-3, 1 - 1e-9)))
    if degree > MAX_DEGREE:
        raise ValueError(
            f"distinct inputs must correlate less than {REMAINDER ** (1 / MAX_DEGREE):.2f} for the "
            f"series to converge, got {largest:.4f}; drop near duplicates, or use relu"
        )
    return max(degree, 4)


def _row(activation: Activation, tau: float, degree: int) -> Array:
    moments: GaussianMoments = gaussian_moments(activation, tau=tau, degree=degree)
    row = [*moments.derivative_means, moments.second_moment, moments.slope_second_moment]
    return np.array(row)


def _interpolated(variances: Array, row: Callable[[float], Array]) -> Array:
    """Rows of moments at every variance: (len(row), n), from Chebyshev nodes in its logarithm."""
    logs = np.log(variances)
    middle, half = (logs.max() + logs.min()) / 2, max(np.ptp(logs) / 2, 1e-6)
    points = chebyshev.chebpts1(SCALES)
    table = np.array([row(float(np.exp((middle + half * point) / 2))) for point in points])
    finite = np.isfinite(table)
    coefficients = chebyshev.chebfit(points, np.where(finite, table, 0.0), SCALES - 1)
    values = chebyshev.chebval((logs - middle) / half, coefficients)
    return np.where(finite.all(0)[:, None], values, np.inf)
