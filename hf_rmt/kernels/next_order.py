"""Kernels as polynomials of degree 3, with more terms than the published formula has.

A kernel is a matrix K(i, j) that compares the inputs x_i and x_j, which have p features. Off the
diagonal, K(i, j) is a function of three small quantities: the inner product g of x_i and x_j,
psi_i = |x_i|^2 - tau_0^2, and psi_j, where tau_0^2 is the mean of |x|^2. All three are of order
p^{-1/2}. The polynomials here leave out terms of degree 4 and more. So the error of the kernel in
operator norm (its largest singular value) is of order 1/p. The published formula, order=1 in
`equivalents`, keeps fewer terms: the mean of the diagonal, and those terms of degree 2 or less
whose operator norm does not go to 0 as p grows. Its error is of order sqrt(log p / p).
"""

from __future__ import annotations

from math import factorial

import numpy as np

from hf_rmt.kernels.activations import Array
from hf_rmt.kernels.gaussian_moments import GaussianMoments

DEGREE = 3
Polynomial = dict[tuple[int, int, int], float]
"""A polynomial in (g, psi_i, psi_j), the three quantities of the module's docstring: maps the three
exponents of each term to the coefficient. {(1, 0, 2): 5.0} is 5 g psi_j^2. The sum of the exponents
is at most 3."""


def kernel_polynomials(
    layers: tuple[GaussianMoments, ...], *, tangent: bool
) -> tuple[Polynomial, Polynomial]:
    """The kernel after the given layers, as two polynomials: one off the diagonal, one on it.

    A kernel is a matrix that compares inputs. The module `next_order` explains it, and the
    variables g, psi_i and psi_j of the polynomials. A layer with the activation s maps g to
    sum_k g^k / k! E s^(k)(u) E s^(k)(v), where E is the mean and s^(k) the k-th derivative. Here u
    and v are Gaussian, and their variances are tau^2 plus small deviations.

    Args:
        layers: Moments of each activation at its own scale `tau`.
        tangent: Whether to give the neural tangent kernel (NTK) instead of the conjugate kernel
            (CK); both are defined in `hf_rmt.kernels`.

    Returns:
        The polynomial off the diagonal, and the one on the diagonal. The one on the diagonal
        depends on psi_i alone, and contains a constant term.

    Examples:
        >>> from hf_rmt.kernels import gaussian_moments
        >>> off, on = kernel_polynomials((gaussian_moments("relu", tau=1.0),), tangent=False)
        >>> round(off[1, 0, 0], 12), round(on[0, 0, 0] + 1 / (2 * np.pi), 12)
        (0.25, 0.5)
    """
    cross: Polynomial = {(1, 0, 0): 1.0}
    deviation: Polynomial = {(0, 1, 0): 1.0}
    variance = layers[0].tau ** 2
    tangent_cross, tangent_diagonal = cross, {(0, 0, 0): variance, **deviation}
    for moments in layers:
        slopes = _lifted(cross, deviation, moments, order=1)
        slope_diagonal = _composed(moments.slope_slopes, deviation)
        cross = _lifted(cross, deviation, moments, order=0)
        deviation = _composed((0.0, *moments.variance_slopes[1:]), deviation)
        variance = moments.tau_out**2
        if tangent:
            tangent_cross = _sum(cross, _product(tangent_cross, slopes))
            tangent_diagonal = _sum(
                _sum({(0, 0, 0): variance}, deviation), _product(tangent_diagonal, slope_diagonal)
            )
    if tangent:
        return tangent_cross, tangent_diagonal
    return cross, _sum({(0, 0, 0): variance}, deviation)


def evaluate(cross: Polynomial, diagonal: Polynomial, gram: Array, psi: Array) -> Array:
    """The kernel (an n x n matrix) of n inputs, from the result of `kernel_polynomials`.

    `cross` is the polynomial off the diagonal, and `diagonal` the one on it. `gram` holds the inner
    products of the inputs, shape (n, n). `psi` holds their squared norms minus the mean squared
    norm, shape (n,).
    """
    kernel = np.zeros_like(gram)
    for power in range(DEGREE, -1, -1):
        kernel *= gram
        for (g, left, right), coefficient in cross.items():
            if g == power:
                kernel += coefficient * np.outer(psi**left, psi**right)
    values = sum(value * psi**left for (_, left, _), value in diagonal.items())
    np.fill_diagonal(kernel, values)
    return kernel


def _lifted(
    cross: Polynomial, deviation: Polynomial, moments: GaussianMoments, *, order: int
) -> Polynomial:
    """The polynomial of a kernel off its diagonal, after one more layer; see `kernel_polynomials`.

    `cross` is this polynomial before the layer. With order=0 the layer has the activation s, and
    with order=1 the slope s' in place of s. The result is
    sum_k cross^k / k! M_{k+order}(i) M_{k+order}(j), where M_k(i) is the mean of the k-th
    derivative of s for the input i. `deviation` is the variance of the argument of s for this
    input, minus tau^2.
    """
    means = (0.0, *moments.derivative_means[1:])
    total: Polynomial = {}
    power: Polynomial = {(0, 0, 0): 1.0}
    for k in range(DEGREE + 1):
        even = means[k + order :: 2]
        slopes = tuple(mean / 2**r for r, mean in enumerate(even))
        left = _composed(slopes, deviation)
        pair = _product(left, {(g, j, i): value for (g, i, j), value in left.items()})
        term = _product(power, pair)
        total = _sum(total, {key: value / factorial(k) for key, value in term.items()})
        power = _product(power, cross)
    return total


def _composed(slopes: tuple[float, ...], deviation: Polynomial) -> Polynomial:
    """The polynomial f(x + deviation) up to degree 3, by the Taylor series of a function f at x.

    The result is sum_r slopes[r] deviation^r / r!. `slopes[r]` is the r-th derivative of f at x,
    and `deviation` is a polynomial.
    """
    total: Polynomial = {}
    power: Polynomial = {(0, 0, 0): 1.0}
    for r, slope in enumerate(slopes):
        total = _sum(total, {key: slope * v / factorial(r) for key, v in power.items()})
        power = _product(power, deviation)
    return total


def _sum(first: Polynomial, second: Polynomial) -> Polynomial:
    keys = first.keys() | second.keys()
    return {key: first.get(key, 0.0) + second.get(key, 0.0) for key in keys}


def _product(first: Polynomial, second: Polynomial) -> Polynomial:
    total: Polynomial = {}
    for a, x in first.items():
        for b, y in second.items():
            key = (a[0] + b[0], a[1] + b[1], a[2] + b[2])
            if sum(key) <= DEGREE:
                total[key] = total.get(key, 0.0) + x * y
    return total
