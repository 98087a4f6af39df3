"""Algebra of the spike map g(a) = a (1 + c sum_k w_k tau_k / (a - tau_k)) for 1 or 2 variances.

The atoms tau_k are the variances of the noise, ascending, and the weights w_k are the fractions of
the columns with these variances; the fractions sum to 1. The aspect ratio c is p / N for noise of N
rows and p columns. `hf_rmt.spectra.laws.law` uses these functions and tells what g means.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.polynomial import polynomial
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Complex = NDArray[np.complex128]

ROOTS_OF_UNITY = np.exp(2j * np.pi / 3 * np.arange(3))
FAR = 1e20
"""If |z| exceeds this many times the largest noise variance, the roots a of g(a) = z are computed
in units of |z|; see `_scale`."""
TOUCHING = 1e-9
"""In `critical_points`, a root counts as real if its imaginary part is at most this times
(1 + its absolute value)."""


def population_moment(
    atoms: ArrayLike, weights: ArrayLike, aspect_ratio: float, order: int
) -> float:
    """The k-th moment gamma_k (mean k-th power) of the eigenvalues of a large random matrix.

    gamma_k is the coefficient of u^k in (1 + c sum_j h_j u^j)^{k+1}, divided by c (k+1). Here h_j
    is the mean j-th power of the population variances, the variances of the columns. This formula
    is the Lagrange inversion of z = g(1/u), where g is the function of `BulkLaw.spike_forward`. The
    formula gives gamma_1 = h_1, gamma_2 = h_2 + c h_1^2 and so on.

    Args:
        atoms: Population variances, shape (m,).
        weights: The fractions of the columns that have these variances, shape (m,), summing to 1.
        aspect_ratio: c = p / N, for noise of N rows and p columns.
        order: The order k >= 0 of the moment.

    Returns:
        The k-th moment of the p eigenvalues.

    Raises:
        ValueError: If the order is negative.

    Examples:
        >>> population_moment([1.0], [1.0], 0.25, 2)
        1.25
    """
    if order < 0:
        raise ValueError(f"the order of a moment must be at least 0, got {order}; pass 1 or more")
    if order == 0:
        return 1.0
    scale = float(np.max(atoms))
    powers = (np.asarray(atoms) / scale)[:, None] ** np.arange(1, order + 1)
    series = np.concatenate(([1.0], aspect_ratio * (np.asarray(weights) @ powers)))
    expanded = polynomial.polypow(series, order + 1)
    with np.errstate(over="ignore", under="ignore"):
        return float(expanded[order] / (aspect_ratio * (order + 1)) * np.power(scale, order))


def spike_roots(z: ArrayLike, atoms: Array, weights: Array, aspect_ratio: float) -> Complex:
    """All roots a of g(a) = z: two for one variance, three for two variances.

    g is the spike map, see the docstring of this module.

    Args:
        z: Points, any shape, real or complex.
        atoms: Variances of the noise, shape (1,) or (2,).
        weights: The fraction of the columns that has each variance, same shape.
        aspect_ratio: c = p / N, for noise of N rows and p columns.

    Returns:
        The roots, shape z.shape + (m + 1,) for m variances.
    """
    points = np.asarray(z)
    scale = _scale(points, atoms)
    coefficients = _coefficients(points / scale, _over(atoms, scale), weights, aspect_ratio)
    columns = [coefficient[..., None] for coefficient in coefficients]
    return _polished(_monic_roots(*coefficients), *columns) * scale[..., None]


def upper_root(z: ArrayLike, atoms: Array, weights: Array, aspect_ratio: float) -> Complex:
    """The root a of g(a) = z in the upper half-plane.

    g is the spike map, see the docstring of this module. The root is -1/s(z), where s is the
    companion Stieltjes transform of `BulkLaw.stieltjes_transform`.

    Args:
        z: Points of the upper half-plane, or real points, which count as limits from above.
        atoms: Variances of the noise, shape (1,) or (2,).
        weights: The fraction of the columns that has each variance, same shape.
        aspect_ratio: c = p / N, for noise of N rows and p columns.

    Returns:
        The roots, shape of z.
    """
    points = np.ravel(z)
    scale = _scale(points, atoms)
    coefficients = _coefficients(points / scale, _over(atoms, scale), weights, aspect_ratio)
    roots = _monic_roots(*coefficients)
    chosen = roots[np.arange(len(roots)), np.argmax(roots.imag, axis=1)]
    return (_polished(chosen, *coefficients) * scale).reshape(np.shape(z))


def critical_points(atoms: Array, weights: Array, aspect_ratio: float) -> Array:
    """Real roots a of g'(a) = 0, ascending: two for each interval of noise eigenvalues.

    g is the spike map, see the docstring of this module.

    Args:
        atoms: Variances of the noise, ascending, shape (m,).
        weights: The fraction of the columns that has each variance, shape (m,).
        aspect_ratio: c = p / N, for noise of N rows and p columns.

    Returns:
        The points, shape (2 * intervals,).
    """
    scale = atoms[-1]
    tau = atoms / scale
    squares = [np.array([1.0, -2 * t, t**2]) for t in tau]
    numerator = squares[0] if len(tau) == 1 else np.convolve(squares[0], squares[1])
    for k, (t, w) in enumerate(zip(tau, weights, strict=True)):
        others = squares[1 - k] if len(tau) == 2 else np.ones(1)
        numerator[-len(others) :] -= aspect_ratio * w * t**2 * others
    roots = np.roots(numerator)
    real = np.sort(roots.real[np.abs(roots.imag) <= TOUCHING * (1 + np.abs(roots))])
    if len(real) != 4 or not _has_gap(tau, weights, aspect_ratio):
        real = real[[0, -1]]  # rounding can make the pair between two atoms look real
    return real * scale


def _has_gap(atoms: Array, weights: Array, aspect_ratio: float) -> bool:
    """Whether the eigenvalues of noise of two variances fill two intervals, with a gap between.

    They do if g'(a) = 1 - c sum_k w_k tau_k^2 / (a - tau_k)^2 is positive for some a between the
    two variances; symbols as in the module's docstring. The least value of the sum between the
    variances has a closed form, by Hoelder's inequality.
    """
    pull = np.cbrt(weights * atoms**2).sum() ** 3
    return bool(aspect_ratio * pull < (atoms[1] - atoms[0]) ** 2)


def _scale(points: NDArray[Any], atoms: Array) -> Array:
    """For each z, the number that divides z and the variances before g(a) = z is solved.

    It is the largest atom (variance), or |z| if powers of z could overflow. Both give the same
    roots a, but with |z| the roots near the atoms are rounded to 0. The docstring of the module
    defines g.
    """
    size = np.abs(points)
    return np.where(size / FAR > atoms[-1], size, atoms[-1])


def _over(atoms: Array, scale: Array) -> Array:
    """The m atoms (noise variances) divided by the `_scale` of each point, shape (m, *points)."""
    return atoms.reshape(-1, *np.ones(scale.ndim, dtype=int)) / scale


def _coefficients(
    z: NDArray[Any], atoms: Array, weights: Array, aspect_ratio: float
) -> tuple[Complex, ...]:
    """Coefficients of the polynomial (g(a) - z) prod(a - tau) in a, the highest power first.

    Its roots are the solutions a of g(a) = z. The first coefficient, 1, is left out. The docstring
    of the module defines g and tau. The product is over the variances tau.
    """
    mean = aspect_ratio * np.tensordot(weights, atoms, 1)
    points = z.astype(complex)
    if len(atoms) == 1:
        return mean - atoms[0] - points, points * atoms[0]
    total, product = atoms[0] + atoms[1], atoms[0] * atoms[1]
    middle = product * (1.0 - aspect_ratio) + points * total
    return mean - total - points, middle, -points * product


def _monic_roots(*coefficients: Complex) -> Complex:
    """Roots of polynomials of degree 2 or 3 (by Cardano's formula), along a new last axis.

    The highest power has the coefficient 1, which is not given. The others follow in falling order.
    """
    b, c, *rest = coefficients
    if not rest:
        half = b / -2
        larger = half + _aligned(np.sqrt(half**2 - c), half)
        return np.stack([larger, c / np.where(larger == 0, 1.0, larger)], axis=-1)
    third = b / 3
    p = c / 3 - third**2
    q = third * (third**2 - c / 2) + rest[0] / 2
    cube = -q - _aligned(np.sqrt(q**2 + p**3), q)
    first = cube[..., None] ** (1 / 3) * ROOTS_OF_UNITY
    return first - p[..., None] / np.where(first == 0, 1.0, first) - third[..., None]


def _aligned(root: Complex, reference: Complex) -> Complex:
    """`root` or -`root`: the one whose sum with `reference` loses no digits by cancellation."""
    return np.where((reference.conj() * root).real >= 0, root, -root)


def _polished(roots: Complex, *coefficients: Complex) -> Complex:
    """Improve roots of polynomials by one iteration of Newton's method.

    The subtraction of b / 3 in `_monic_roots`, where b is a coefficient, makes small roots inexact.
    """
    value, slope = np.ones_like(roots), np.zeros_like(roots)
    for coefficient in coefficients:
        value, slope = value * roots + coefficient, slope * roots + value
    return roots - value / np.where(slope == 0, 1.0, slope)
