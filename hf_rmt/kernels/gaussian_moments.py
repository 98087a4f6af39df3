"""Gaussian moments of activations: a wide network depends on its activations through these only."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

import numpy as np

from hf_rmt.checks import check_integer, plain_number
from hf_rmt.kernels.activations import Activation, Array, resolve_activation
from hf_rmt.kernels.quadrature import piecewise_quadrature

DEGREE = 6
"""The means E s^(k) of k-th derivatives are kept up to this k; `next_order` needs them."""
LARGEST = 1e200
"""Largest power of tau or of 1 / tau; it leaves room for the moments in float64."""


@dataclass(frozen=True)
class GaussianMoments:
    """Means E over a standard normal xi of an activation s(tau xi), its square and derivatives.

    By Stein's identity each is the mean of s, s^2 or s'^2 times a Hermite polynomial of xi. So
    functions with kinks and steps have these moments too.

    Args:
        tau: Standard deviation of the argument tau xi, > 0.
        derivative_means: E s^(k)(tau xi), the mean k-th derivative, k = 0, 1, ...
        variance_slopes: r-th derivatives by tau^2 of E[(s(tau xi) - c)^2], r = 0..3, where the
            constant c is m0 at this tau.
        slope_slopes: r-th derivatives by tau^2 of E[s'(tau xi)^2], r = 0..2; infinite if s jumps.

    Examples:
        >>> relu = gaussian_moments("relu", tau=1.0)
        >>> round(relu.m1, 12), round(relu.m2 * (2 * np.pi) ** 0.5, 12), round(relu.d1, 12)
        (0.5, 1.0, 0.25)
    """

    tau: float
    derivative_means: tuple[float, ...]
    variance_slopes: tuple[float, ...]
    slope_slopes: tuple[float, ...]

    @property
    def m0(self) -> float:
        """E s(tau xi), the mean that the theory subtracts."""
        return self.derivative_means[0]

    @property
    def m1(self) -> float:
        """E s'(tau xi) = E[xi s(tau xi)] / tau."""
        return self.derivative_means[1]

    @property
    def m2(self) -> float:
        """E s''(tau xi) = E[(xi^2 - 1) s(tau xi)] / tau^2."""
        return self.derivative_means[2]

    @property
    def m3(self) -> float:
        """E[s'^2 + (s - m0) s''] = (1/2) E[((s - m0)^2)''], of the centred activation."""
        return self.variance_slopes[1]

    @property
    def second_moment(self) -> float:
        """E s(tau xi)^2, the mean included."""
        return self.variance_slopes[0] + self.m0**2

    @property
    def slope_second_moment(self) -> float:
        """E s'(tau xi)^2; infinite if s jumps."""
        return self.slope_slopes[0]

    @property
    def tau_out(self) -> float:
        """sqrt(E[s^2] - m0^2): the scale of the next layer's arguments."""
        return float(np.sqrt(self.variance_slopes[0]))

    @property
    def d0(self) -> float:
        """E[s^2] - E[s]^2 - tau^2 E[s']^2: the multiple of the identity in one layer's kernel."""
        return self.variance_slopes[0] - self.tau**2 * self.d1

    @property
    def d1(self) -> float:
        """E[s']^2: the weight of the linear kernel X'X in one layer's kernel."""
        return self.m1**2

    @property
    def d2(self) -> float:
        """E[s'']^2 / 4: the weight of the low-rank part of one layer's kernel."""
        return self.m2**2 / 4


def gaussian_moments(
    activation: Activation, *, tau: float, degree: int = DEGREE
) -> GaussianMoments:
    """The moments of an activation s at the scale tau; see `GaussianMoments`.

    The integrals run over short intervals, the panels, which are halved until a polynomial fits s
    in each. At kinks and jumps they are halved down to the rounding of xi. The relative error is
    about 1e-12 for any piecewise smooth function.

    Args:
        activation: A name in `ACTIVATIONS`, a function on arrays, or a `StepActivation`.
        tau: Standard deviation of the argument tau xi, > 0.
        degree: Largest k of the mean derivatives E s^(k).

    Returns:
        The moments.

    Raises:
        TypeError: If tau is no number, or the degree no whole number.
        ValueError: If tau is not positive, or its powers or the squares of the values are no
            float64 numbers; if the name is unknown, or the function not piecewise smooth.

    Source:
        Gu et al., NeurIPS 2022; Tiomoko Ali, Liao & Couillet, ICLR 2022.

    Examples:
        >>> round(gaussian_moments("sign", tau=2.0).m1 * (2 * np.pi) ** 0.5, 12)
        1.0
    """
    check_scale(tau, degree)
    if (closed_form := getattr(activation, "moments_at", None)) is not None:
        return closed_form(tau, degree=degree)
    function = resolve_activation(activation)
    rule = piecewise_quadrature(lambda xi: function(tau * xi))
    weights = rule.weights
    hermite = hermite_polynomials(rule.nodes, max(degree, 6))
    means = hermite[: degree + 1] @ (weights * rule.values) / tau ** np.arange(degree + 1.0)
    with np.errstate(over="ignore", invalid="ignore"):  # reported below
        squares = weights * (rule.values - means[0]) ** 2
        variances = _even_slopes(hermite, squares, tau, 4)
        slopes = _even_slopes(hermite, weights * (rule.slopes / tau) ** 2, tau, 3)
    if not np.isfinite([*means, *variances]).all():
        raise ValueError(
            f"the squares of the values of {activation!r} at tau={tau} are too large for float64; "
            "pass an activation that grows less, or a smaller tau"
        )
    if rule.jumps:
        slopes = np.full(3, np.inf)
    return GaussianMoments(tau, *(tuple(part.tolist()) for part in (means, variances, slopes)))


def _even_slopes(hermite: Array, weighted: Array, tau: float, count: int) -> Array:
    """The r-th derivatives of E f(tau xi) by tau^2, E f^(2r)(tau xi) / 2^r, r = 0 .. count - 1."""
    return hermite[: 2 * count : 2] @ weighted / (2.0 * tau**2) ** np.arange(count)


def hermite_polynomials(x: Array, degree: int) -> Array:
    """Probabilists' Hermite polynomials He_0 .. He_degree at x, shape (degree + 1, len(x))."""
    rows = [np.ones_like(x), x]
    for k in range(1, degree):
        rows.append(x * rows[-1] - k * rows[-2])
    return np.array(rows[: degree + 1])


def check_scale(tau: object, degree: int = DEGREE) -> None:
    """Raise unless tau is a positive number whose powers up to the degree are float64 numbers."""
    plain = plain_number(tau)
    if isinstance(plain, bool) or not isinstance(plain, Real):
        raise TypeError(
            f"tau must be a number, got {tau!r}; pass the standard deviation of the activation's "
            "argument"
        )
    if not 0 < float(plain) < np.inf:
        raise ValueError(
            f"tau must be positive and finite, got {tau}; pass the standard deviation of the "
            "activation's argument"
        )
    power = max(check_integer("degree", degree, 0), DEGREE)
    largest = LARGEST ** (1 / power)
    if not 1 / largest <= float(plain) <= largest:
        raise ValueError(
            f"tau must lie in [{1 / largest:.2g}, {largest:.2g}], because its power {power} must "
            f"be a float64 number, got {tau}; measure the activation's argument in other units"
        )
