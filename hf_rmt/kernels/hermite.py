"""Hermite series (sums of Hermite polynomials) of an activation, for arguments of many scales.

The scale of an argument is its standard deviation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.polynomial import chebyshev
from scipy.special import gammaln

from hf_rmt.kernels.activations import Activation, Array, resolve_activation
from hf_rmt.kernels.gaussian_moments import gaussian_moments
from hf_rmt.kernels.steps import StepActivation

SCALES = 24
"""Number of Chebyshev nodes in the first table that `hermite_series` tries; the next has more."""
ACCURACY = 1e-12
"""The number of nodes in `hermite_series` is doubled until the last Chebyshev coefficients are at
most this fraction of the largest one (or of 1, if that is larger)."""
TINY = float(np.finfo(float).tiny)


@dataclass(frozen=True)
class HermiteSeries:
    """Hermite series of an activation s, minus a constant, at n scales tau of its inputs.

    Let xi be a standard normal number. The constant is `mean`, an argument of `hermite_series`.
    Then s(tau xi) - mean is the sum over k of c_k He_k(xi) / sqrt(k!), where He_k are the Hermite
    polynomials. E is the expectation over xi, and s' is the slope of s.

    Args:
        scales: The n scales tau, shape (n,).
        coefficients: c_0 .. c_degree, shape (degree + 1, n); sum_k c_k^2 = E (s - mean)^2.
        second_moments: E (s(tau xi) - mean)^2, shape (n,).
        slope_second_moments: E s'(tau xi)^2, shape (n,); infinite if s jumps.
    """

    scales: Array
    coefficients: Array
    second_moments: Array
    slope_second_moments: Array

    @property
    def slope_coefficients(self) -> Array:
        """Hermite coefficients of the slope s'(tau xi), shape (degree, n).

        They are sqrt(k + 1) c_{k+1} / tau, with the symbols of `HermiteSeries`.
        """
        orders = np.arange(1.0, len(self.coefficients))
        return np.sqrt(orders)[:, None] * self.coefficients[1:] / self.scales


def hermite_series(
    activation: Activation, variances: Array, *, mean: float = 0.0, degree: int
) -> HermiteSeries:
    """The Hermite series of an activation s, for many variances of its argument.

    A table is computed at Chebyshev nodes in the logarithm of the variance, and interpolated. It
    holds the coefficients c_k of `HermiteSeries`, divided by the root mean square of s - mean. Mean
    derivatives, which are c_k sqrt(k!) / tau^k, could not be interpolated: they change by many
    orders of magnitude over the range of variances, so no polynomial fits them.

    Args:
        activation: A name in `ACTIVATIONS`, a function on arrays, or a `StepActivation`.
        variances: tau^2, the variances of the argument, shape (n,), > 0.
        mean: The number that is subtracted from s, the same at every scale.
        degree: The largest k of the coefficients c_k.

    Returns:
        The series, in the order of the variances.
    """
    table = _interpolated(np.log(variances), lambda tau: _row(activation, tau, mean, degree))
    *shares, logarithms, degrees = table
    second, scales = np.exp(logarithms), np.sqrt(variances)
    return HermiteSeries(
        scales, np.array(shares) * np.sqrt(second), second, degrees * second / variances
    )


def _row(activation: Activation, tau: float, mean: float, degree: int) -> Array:
    """A row of the table of `hermite_series`: c_k / sqrt(M), log M and tau^2 E s'^2 / M.

    M is the mean square E (s - mean)^2 at the scale tau. The symbols are those of `HermiteSeries`.
    """
    moments = gaussian_moments(_stretched(activation, tau), tau=1.0, degree=degree)
    factorials = np.exp(gammaln(np.arange(degree + 1) + 1.0) / 2)
    coefficients = np.array(moments.derivative_means) / factorials
    coefficients[0] -= mean
    second = max(moments.variance_slopes[0] + coefficients[0] ** 2, TINY)
    shares = coefficients / np.sqrt(second)
    return np.array([*shares, np.log(second), moments.slope_second_moment / second])


def _stretched(activation: Activation, tau: float) -> Activation:
    """The function x -> s(tau x), where s is the given activation.

    For k > 0, the mean k-th derivative of this function over a standard normal x is c_k sqrt(k!),
    with the c_k of `HermiteSeries`.
    """
    if isinstance(activation, StepActivation):
        points = (np.array(activation.thresholds) / tau).tolist()
        return StepActivation(tuple(points), activation.heights)
    function = resolve_activation(activation)
    return lambda xi: function(tau * xi)


def _interpolated(logs: Array, row: Callable[[float], Array]) -> Array:
    """The values of `row` at n variances, shape (length of a row, n); `logs` are their logarithms.

    The function `row` takes a scale, which is the square root of a variance, and returns a vector.
    It is called at fewer than n scales, and its values are interpolated. If the interpolation would
    need n scales or more, `row` is called at each variance instead.
    """
    middle, half = (logs.max() + logs.min()) / 2, max(np.ptp(logs) / 2, 1e-6)
    nodes = SCALES
    while nodes < len(logs):
        points = chebyshev.chebpts1(nodes)
        table = np.array([row(float(np.exp((middle + half * point) / 2))) for point in points])
        finite = np.isfinite(table)
        coefficients = chebyshev.chebfit(points, np.where(finite, table, 0.0), nodes - 1)
        sizes = np.abs(coefficients)
        if (sizes[-2:] <= ACCURACY * np.maximum(sizes.max(0), 1.0)).all():
            values = chebyshev.chebval((logs - middle) / half, coefficients)
            return np.where(finite.all(0)[:, None], values, np.inf)
        nodes *= 2
    return np.array([row(float(np.exp(log / 2))) for log in logs]).T
