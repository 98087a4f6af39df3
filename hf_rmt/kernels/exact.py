"""Exact kernels of infinitely wide networks with Gaussian weights, for any data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from hf_rmt.kernels.activations import Activation, Array
from hf_rmt.kernels.equivalents import layer_moments
from hf_rmt.kernels.hermite import hermite_series
from hf_rmt.kernels.statistics import check_data, root_mean_square

MAX_DEGREE = 80
REMAINDER = 1e-11
EXCESS = 1e-6
"""Rounding may make a correlation of features exceed 1 by this much, but not by more."""


@dataclass(frozen=True)
class Kernels:
    """Kernels of one network on n inputs.

    Args:
        conjugate: Conjugate kernel of the last hidden layer, shape (n, n).
        tangent: Neural tangent kernel, shape (n, n); None if an activation jumps or if it was not
            asked for.
    """

    conjugate: Array
    tangent: Array | None


def exact_kernels(
    data: ArrayLike, activations: Sequence[Activation], *, tau: float | None = None
) -> Kernels:
    """Conjugate kernel (CK) and neural tangent kernel (NTK) of an infinitely wide network.

    Layer l has K_l = E[s(u) s(v)] and NTK_l = K_l + NTK_{l-1} o E[s'(u) s'(v)], where o is the
    entrywise product. (u, v) is Gaussian; its covariance is that of two inputs in K_{l-1}, with
    correlation rho, and K_0 = X'X. Let c_k(u) be the Hermite coefficients of s(tau xi), where tau^2
    is the variance of u. Then E[s(u) s(v)] = sum_k rho^k c_k(u) c_k(v). This series ends where the
    rest is negligible at the largest correlation. The norms of the inputs do not matter for this,
    because sum_k c_k^2 = E s^2. The relu has closed formulas, the arc-cosine kernels.

    Args:
        data: Inputs divided by sqrt p, shape (samples, features): the rows are the x_i.
        activations: One activation for each hidden layer.
        tau: tau_0, the scale of the inputs. It gives the scales tau_{l-1} at which the means E
            s(tau_{l-1} xi) are subtracted. None takes the root mean square norm of the inputs.

    Returns:
        The kernels of the last layer.

    Raises:
        ValueError: If distinct inputs correlate so much that the series does not converge, if an
            input is 0, or if the sum of the series is so inexact that |K_ij| > sqrt(K_ii K_jj).

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
        for kernel in (conjugate, tangent):
            _check_correlations(kernel, activation)
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
    correlation = kernel / np.sqrt(np.outer(variances, variances))
    degree = _degree(correlation)
    series = hermite_series(activation, variances, mean=mean, degree=degree + 1)
    values, slope_values = series.coefficients, series.slope_coefficients
    raised, slopes = np.zeros_like(kernel), np.zeros_like(kernel)
    for k in range(degree, -1, -1):  # Horner: sum_k rho^k c_k(i) c_k(j)
        raised = raised * correlation + np.outer(values[k], values[k])
        slopes = slopes * correlation + np.outer(slope_values[k], slope_values[k])
    np.fill_diagonal(raised, series.second_moments)
    np.fill_diagonal(slopes, series.slope_second_moments)
    return raised, slopes if np.isfinite(series.slope_second_moments).all() else None


def _degree(correlation: Array) -> int:
    largest = float(np.abs(correlation - np.diag(np.diag(correlation))).max())
    degree = int(np.log(REMAINDER) / np.log(np.clip(largest, 1e-3, 1 - 1e-9)))
    if degree > MAX_DEGREE:
        raise ValueError(
            f"distinct inputs must correlate less than {REMAINDER ** (1 / MAX_DEGREE):.2f} for the "
            f"series to converge, got {largest:.4f}; drop near duplicates, or use relu"
        )
    return max(degree, 4)


def _check_correlations(kernel: Array | None, activation: Activation) -> None:
    """Refuse a kernel with a correlation above 1, which an inexact sum of the series would give."""
    if kernel is None:
        return
    norms = np.sqrt(np.maximum(np.diag(kernel), 0.0))
    excess = np.abs(kernel) - (1 + EXCESS) * np.outer(norms, norms)
    if not excess.max() <= 0:
        i, j = np.unravel_index(excess.argmax(), kernel.shape)
        raise ValueError(
            f"a kernel must have |K_ij| <= sqrt(K_ii K_jj), got {kernel[i, j]:.3g} and "
            f"{norms[i] * norms[j]:.3g} for the inputs {i} and {j} after {activation!r}: the "
            "series of this activation is inexact for them; pass a smoother activation, or inputs "
            "of more similar norms"
        )
