"""Gaussian moments: means of an activation, its square and its derivatives.

The argument of the activation is normally distributed. Only these numbers of an activation affect
the kernels of wide networks, which are matrices that compare inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

import numpy as np

from hf_rmt.checks import check_integer, plain_number
from hf_rmt.kernels.activations import Activation, Array, resolve_activation
from hf_rmt.kernels.quadrature import piecewise_quadrature

DEGREE = 6
"""The largest k for which the mean k-th derivative E s^(k) of an activation s is kept, as the
module `next_order` needs it."""
LARGEST = 1e200
"""The powers of tau (the standard deviation of an activation's argument) and of 1 / tau must stay
below this, so that the moments fit into float64."""


@dataclass(frozen=True)
class GaussianMoments:
    """Means E of an activation s(tau xi), its square and its derivatives; xi is standard normal.

    The slope of s is s'. By Stein's identity, each moment is the mean of s, s^2 or s'^2 times a
    Hermite polynomial of xi. So a function with kinks or jumps has these moments too.

    Args:
        tau: Standard deviation of the argument tau xi, > 0.
        derivative_means: E s^(k)(tau xi), the mean k-th derivative, k = 0, 1, ...
        variance_slopes: r-th derivatives of E[(s(tau xi) - c)^2] with respect to tau^2, r = 0..3,
            where the constant c is the mean of s at this tau.
        slope_slopes: r-th derivatives of E[s'(tau xi)^2] with respect to tau^2, r = 0..2; infinite
            if s jumps.

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
        """The mean E s(tau xi) of the activation; symbols as in `GaussianMoments`."""
        return self.derivative_means[0]

    @property
    def m1(self) -> float:
        """The mean slope E s'(tau xi) = E[xi s(tau xi)] / tau; symbols as in `GaussianMoments`."""
        return self.derivative_means[1]

    @property
    def m2(self) -> float:
        """The mean second derivative E s''(tau xi) = E[(xi^2 - 1) s(tau xi)] / tau^2.

        The symbols are those of `GaussianMoments`.
        """
        return self.derivative_means[2]

    @property
    def m3(self) -> float:
        """Half the mean second derivative of (s - m0)^2, which is E[s'^2 + (s - m0) s''].

        Here m0 is the mean of s; the other symbols are those of `GaussianMoments`.
        """
        return self.variance_slopes[1]

    @property
    def second_moment(self) -> float:
        """The mean square E[s(tau xi)^2]; no mean is subtracted; see `GaussianMoments`."""
        return self.variance_slopes[0] + self.m0**2

    @property
    def slope_second_moment(self) -> float:
        """The mean squared slope E[s'(tau xi)^2], see `GaussianMoments`; infinite if s jumps."""
        return self.slope_slopes[0]

    @property
    def tau_out(self) -> float:
        """The standard deviation sqrt(E[s^2] - m0^2) of the outputs of s; m0 is their mean.

        The inputs of the next layer's activation have the same standard deviation, if the squared
        weights of each neuron sum to 1. For s and E, see `GaussianMoments`.
        """
        return float(np.sqrt(self.variance_slopes[0]))

    @property
    def d0(self) -> float:
        """The coefficient E[s^2] - E[s]^2 - tau^2 E[s']^2 of the identity in one layer's kernel.

        The kernel is the Gram matrix of the outputs of a wide layer. This matrix is approximately
        d0 I + d1 X'X plus a low-rank part, where the columns of X are the inputs. For s, tau and E,
        see `GaussianMoments`.
        """
        return self.variance_slopes[0] - self.tau**2 * self.d1

    @property
    def d1(self) -> float:
        """The squared mean slope of the activation; a coefficient in the kernel of one layer.

        The kernel is the Gram matrix of the outputs of a wide layer. It is approximately d0 I
        + d1 X^T X plus a low-rank part, where the columns of X are the inputs.
        """
        return self.m1**2

    @property
    def d2(self) -> float:
        """The coefficient E[s'']^2 / 4 of the low-rank part in one layer's kernel.

        E[s''] is the mean second derivative of the activation. The kernel is the Gram matrix of the
        outputs of a wide layer. This matrix is approximately d0 I + d1 X'X plus the low-rank part,
        where the columns of X are the inputs. The low-rank part depends only on the norms and
        classes of the inputs.
        """
        return self.m2**2 / 4


def gaussian_moments(
    activation: Activation, *, tau: float, degree: int = DEGREE
) -> GaussianMoments:
    """Compute the Gaussian moments of an activation s, which `GaussianMoments` defines.

    They are means over the argument tau xi, where xi is standard normal. Each mean is an integral
    over xi, computed over short intervals. Each interval is halved until a polynomial fits s in it.
    At a kink or a jump, the last interval is as narrow as the rounding of xi. The relative error is
    about 1e-12 for any piecewise smooth function.

    Args:
        activation: A name in `ACTIVATIONS`, a function on arrays, or a `StepActivation`.
        tau: Standard deviation of the argument tau xi, > 0.
        degree: Largest k of the mean derivatives E s^(k).

    Returns:
        The moments.

    Raises:
        TypeError: If tau is no number, or the degree is no whole number.
        ValueError: If tau is not positive; if a power of tau or a square of a value does not fit
            into float64; if the name is unknown; or if the function is not piecewise smooth.

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
    """The derivatives of E f(tau xi) with respect to tau^2, of the orders r = 0 .. count - 1.

    The r-th derivative is E f^(2r)(tau xi) / 2^r. E is the mean over a standard normal xi, computed
    at the nodes of a quadrature rule. `hermite` holds the Hermite polynomials at the nodes, and
    `weighted` the values of the function f there, times the weights of the nodes.
    """
    return hermite[: 2 * count : 2] @ weighted / (2.0 * tau**2) ** np.arange(count)


def hermite_polynomials(x: Array, degree: int) -> Array:
    """Probabilists' Hermite polynomials He_0 .. He_degree at x, shape (degree + 1, len(x))."""
    rows = [np.ones_like(x), x]
    for k in range(1, degree):
        rows.append(x * rows[-1] - k * rows[-2])
    return np.array(rows[: degree + 1])


def check_scale(tau: object, degree: int = DEGREE) -> None:
    """Raise if tau, the standard deviation of an activation's argument, is no positive number.

    Raise also if tau^k or 1 / tau^k exceeds `LARGEST` for a k up to `degree` (at least 6).
    """
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
            f"tau must lie in [{1 / largest:.2g}, {largest:.2g}], because tau^{power} must fit "
            f"into float64, got {tau}; measure the activation's argument in other units"
        )
