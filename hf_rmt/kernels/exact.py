"""Exact kernels of infinitely wide networks with Gaussian weights, for any data.

A kernel is a matrix that compares the inputs of a network; see `hf_rmt.kernels`.
"""

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
"""In a kernel K (a matrix that compares inputs), a correlation |K_ij| / sqrt(K_ii K_jj) may exceed
1 by at most this, because of rounding."""


@dataclass(frozen=True)
class Kernels:
    """Kernels of one network: matrices that compare n inputs.

    Args:
        conjugate: Conjugate kernel, the Gram matrix of the last hidden layer's outputs, shape
            (n, n).
        tangent: Neural tangent kernel, the Gram matrix of the gradients, shape (n, n); None if an
            activation jumps, or if the caller did not ask for this kernel.
    """

    conjugate: Array
    tangent: Array | None


def exact_kernels(
    data: ArrayLike, activations: Sequence[Activation], *, tau: float | None = None
) -> Kernels:
    """Conjugate kernel (CK) and neural tangent kernel (NTK) of an infinitely wide network.

    `hf_rmt.kernels` explains the symbols and defines the two kernels. The inputs have the kernels
    K_0 = NTK_0 = X'X. Layer l has the CK K_l = E[s(u) s(v)] and the NTK
    NTK_l = K_l + NTK_{l-1} o E[s'(u) s'(v)], where o is the entrywise product. Here u and v are the
    arguments of s for two inputs. They are Gaussian, K_{l-1} holds their covariance, and rho is
    their correlation. Then E[s(u) s(v)] = sum_k rho^k c_k(u) c_k(v), where the c_k(u) are the
    Hermite coefficients of s (see `HermiteSeries`) at the scale tau, the standard deviation of u.
    The sum stops at a k beyond which the terms are negligible for the largest correlation. This k
    does not depend on the norms of the inputs, because sum_k c_k^2 = E s^2. For relu, closed
    formulas replace the sum: the arc-cosine kernels.

    Args:
        data: Inputs divided by sqrt p, shape (samples, features): the rows are the x_i.
        activations: One activation for each hidden layer.
        tau: tau_0, the scale of the inputs. The means E s(tau_{l-1} xi) follow from it; they are
            subtracted from the activations. None takes the root mean square norm of the inputs.

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
            f"series to converge, got {largest:.4f}; drop inputs that are almost equal, or use "
            "relu, which needs no series"
        )
    return max(degree, 4)


def _check_correlations(kernel: Array | None, activation: Activation) -> None:
    """Raise if a kernel gives two inputs a correlation above 1.

    Such a value means that the Hermite series in `exact_kernels` was summed inexactly.
    """
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
