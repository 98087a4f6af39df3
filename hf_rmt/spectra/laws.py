"""Limiting spectral laws of a noise matrix: Marchenko-Pastur and the population double bulk.

Both are the law of the eigenvalues of X'X for X = N^{-1/2} Z diag(tau)^{1/2}, where the population
variances tau take one value (Marchenko-Pastur) or two (double bulk). Everything about such a law
follows from one rational function, the spike map

    g(a) = a (1 + c sum_k w_k tau_k / (a - tau_k)),                     c = p / N,

because a = -1/s(z) solves g(a) = z for the companion Stieltjes transform s (Silverstein & Choi
1995, eq. 1.3). Its critical values are the edges of the spectrum, its increasing branch maps a
population spike to the eigenvalue it produces, and its complex roots carry the density.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.polynomial import polynomial
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import cumulative_simpson
from scipy.interpolate import PchipInterpolator

Array = NDArray[np.float64]

NODES_PER_INTERVAL = 513
"""Quadrature nodes on each interval of a bulk; the mass of the law is then 1 to about 1e-9."""


def check_positive(name: str, value: float) -> None:
    """Raise ValueError unless a number is positive and finite."""
    if not 0 < value < np.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")


def check_unit(name: str, value: float, *, remedy: str, zero: bool = False) -> None:
    """Raise ValueError unless a number lies in (0, 1], or [0, 1] with zero=True."""
    if not (0 <= value <= 1 if zero else 0 < value <= 1):
        raise ValueError(f"{name} must lie in {'[' if zero else '('}0, 1], got {value}; {remedy}")


def population_moment(
    atoms: ArrayLike, weights: ArrayLike, aspect_ratio: float, order: int
) -> float:
    """Moment of a sample spectrum: gamma_k = [u^k] (1 + c sum_j h_j u^j)^{k+1} / (c (k+1)).

    h_j is the j-th moment of the population variances. The formula is the Lagrange inversion of
    z = g(1/u); it gives gamma_1 = h_1, gamma_2 = h_2 + c h_1^2 and so on.

    Args:
        atoms: Population variances, shape (m,).
        weights: Their fractions of the dimensions, shape (m,), summing to 1.
        aspect_ratio: c = p / N.
        order: k >= 0.

    Returns:
        The k-th moment of the p eigenvalues.

    Raises:
        ValueError: If the order is negative.
    """
    if order < 0:
        raise ValueError(f"the order of a moment must be at least 0, got {order}")
    if order == 0:
        return 1.0
    powers = np.asarray(atoms)[:, None] ** np.arange(1, order + 1)
    series = np.concatenate(([1.0], aspect_ratio * (np.asarray(weights) @ powers)))
    expanded = polynomial.polypow(series, order + 1)
    return float(expanded[order] / (aspect_ratio * (order + 1)))


class BulkLaw(ABC):
    """Sample spectrum of finitely many population variances.

    A subclass is a frozen dataclass with an `aspect_ratio` field that names its `atoms` and
    `weights`.
    """

    aspect_ratio: float

    @property
    @abstractmethod
    def atoms(self) -> Array:
        """Distinct population variances of positive weight, ascending, shape (m,)."""

    @property
    @abstractmethod
    def weights(self) -> Array:
        """Fractions of the dimensions that have them, shape (m,)."""

    def spike_forward(self, alpha: ArrayLike) -> Array:
        """Eigenvalue that a population spike produces: g(a) = a (1 + c E[tau / (a - tau)]).

        Args:
            alpha: Population spikes outside the bulk, any shape.

        Returns:
            Their limiting sample eigenvalues, same shape.
        """
        a = np.asarray(alpha, dtype=float)[..., None]
        pull = (self.weights * self.atoms / (a - self.atoms)).sum(-1)
        return a[..., 0] * (1.0 + self.aspect_ratio * pull)

    def spike_slope(self, alpha: ArrayLike) -> Array:
        """g'(a) = 1 - c E[tau^2 / (a - tau)^2]; positive where a spike leaves the bulk."""
        a = np.asarray(alpha, dtype=float)[..., None]
        with np.errstate(divide="ignore"):
            return 1.0 - self.aspect_ratio * (
                self.weights * (self.atoms / (a - self.atoms)) ** 2
            ).sum(-1)

    def spike_curvature(self, alpha: ArrayLike) -> Array:
        """g''(a) = 2 c E[tau^2 / (a - tau)^3]; sets the fluctuation of an edge."""
        a = np.asarray(alpha, dtype=float)[..., None]
        terms = self.weights * self.atoms**2 / (a - self.atoms) ** 3
        return 2.0 * self.aspect_ratio * terms.sum(-1)

    def spike_inverse(self, eigenvalue: ArrayLike) -> Array:
        """Population spike behind a sample eigenvalue: the root of g(a) = lambda with g'(a) > 0.

        Args:
            eigenvalue: Eigenvalues above the bulk or in its gap, any shape.

        Returns:
            Population variances, same shape; nan for an eigenvalue inside the bulk or below it.
        """
        x = np.asarray(eigenvalue, dtype=float)
        roots = self._roots(x)
        real = np.where(np.abs(roots.imag) <= 1e-7 * np.abs(roots), roots.real, np.nan)
        with np.errstate(invalid="ignore"):
            distant = (self.spike_slope(real) > 0) & (real > self.atoms[0])
        outside = ~self.contains(x) & (x > self.bulk_edges[0, 0])
        best = np.max(np.where(distant & outside[..., None], real, -np.inf), axis=-1)
        return np.where(np.isfinite(best), best, np.nan)

    @cached_property
    def critical_points(self) -> Array:
        """Real roots of g'(a) = 0, ascending, shape (2 * intervals,)."""
        scale = self.atoms[-1]
        tau = self.atoms / scale
        squares = [polynomial.polyfromroots([t, t]) for t in tau]
        numerator = polynomial.polyfromroots(np.repeat(tau, 2))
        for k, (t, w) in enumerate(zip(tau, self.weights, strict=True)):
            rest = np.ones(1)
            for j, square in enumerate(squares):
                rest = polynomial.polymul(rest, square) if j != k else rest
            numerator = polynomial.polysub(numerator, self.aspect_ratio * w * t**2 * rest)
        roots = polynomial.polyroots(numerator)
        real = np.sort(roots.real[np.abs(roots.imag) <= 1e-9 * (1 + np.abs(roots))])
        if len(real) % 2:  # a gap just closing: drop the touching pair's leftover
            real = real[[0, -1]]
        return real * scale

    @cached_property
    def bulk_edges(self) -> Array:
        """Intervals of the spectrum, ascending, shape (intervals, 2): the critical values of g."""
        edges = self.spike_forward(self.critical_points)
        if self.aspect_ratio == 1.0:
            edges[0] = 0.0
        return np.maximum(edges, 0.0).reshape(-1, 2)

    @property
    def upper_edge(self) -> float:
        """The largest edge, lambda_+."""
        return float(self.bulk_edges[-1, 1])

    def contains(self, x: ArrayLike) -> NDArray[np.bool_]:
        """Whether points lie in the closed support, same shape as x."""
        value = np.asarray(x, dtype=float)[..., None]
        return ((value >= self.bulk_edges[:, 0]) & (value <= self.bulk_edges[:, 1])).any(-1)

    def edge_fluctuation(self, critical_point: float, rows: int) -> float:
        """Scale of the largest noise eigenvalue: N^{-2/3} (a^4 |g''(a)| / 2)^{1/3}.

        Multiplied by a Tracy-Widom variable (beta = 1) it is the distance of the extreme noise
        eigenvalue from its edge. For the Marchenko-Pastur law this is BEMA's formula.

        Args:
            critical_point: The edge's point a on the spike map.
            rows: N.

        Returns:
            The scale, in units of an eigenvalue.

        Source:
            El Karoui, Ann. Probab. 35 (2007), theorem 1, in terms of g.
        """
        curvature = abs(float(self.spike_curvature(critical_point)))
        return float((critical_point**4 * curvature / 2.0) ** (1 / 3) * rows ** (-2 / 3))

    def stieltjes_transform(self, z: ArrayLike, *, companion: bool = False) -> NDArray[np.complex128]:
        """m(z) = integral of dF(x) / (x - z); with companion=True s(z) = c m(z) - (1 - c) / z.

        Args:
            z: Points with positive imaginary part, any shape.
            companion: Return the transform of the N x N matrix X X' instead of X'X.

        Returns:
            Complex values, same shape.

        Raises:
            ValueError: If a point does not lie in the upper half-plane.
        """
        points = np.asarray(z, dtype=complex)
        if np.any(points.imag <= 0):
            raise ValueError(
                f"stieltjes_transform needs points with positive imaginary part, got {z}; "
                "add a small imaginary part, or conjugate"
            )
        roots = self._roots(points)
        chosen = np.argmax(roots.imag, axis=-1)
        s = -1.0 / np.take_along_axis(roots, chosen[..., None], axis=-1)[..., 0]
        return s if companion else (s + (1.0 - self.aspect_ratio) / points) / self.aspect_ratio

    def pdf(self, x: ArrayLike) -> Array:
        """Density f(x) = Im s(x + i0) / (pi c); 0 outside the bulk. Shape of x."""
        points = np.asarray(x, dtype=float)
        roots = self._roots(points)
        root = np.take_along_axis(roots, np.argmax(roots.imag, axis=-1)[..., None], axis=-1)[..., 0]
        density = root.imag / (np.abs(root) ** 2 * np.pi * self.aspect_ratio)
        return np.where(self.contains(points), density, 0.0)

    def cdf(self, x: ArrayLike) -> Array:
        """Fraction of the noise eigenvalues up to x. Shape of x."""
        points = np.sqrt(np.maximum(np.asarray(x, dtype=float), 0.0))
        result = np.zeros(points.shape)
        for middle, half, _, curve, _ in self._tables:
            angle = np.arccos(np.clip((middle - points) / half, -1.0, 1.0))
            result = np.where(points >= middle - half, curve(angle), result)
        return result

    def quantile(self, q: ArrayLike) -> Array:
        """Inverse of the cdf. Shape of q.

        Args:
            q: Probabilities in [0, 1].

        Returns:
            Eigenvalues; at a gap its lower end.

        Raises:
            ValueError: If a probability lies outside [0, 1].
        """
        levels = np.asarray(q, dtype=float)
        if np.any((levels < 0) | (levels > 1)):
            raise ValueError(f"quantile needs probabilities in [0, 1], got {q}")
        result = np.full(levels.shape, np.nan)
        start = 0.0
        for middle, half, total, _, inverse in self._tables:
            angle = inverse(np.clip(levels, start, total))
            inside = np.isnan(result) & ((levels <= total) | (total == 1.0))
            result = np.where(inside, (middle - half * np.cos(angle)) ** 2, result)
            start = total
        return result

    def moment(self, order: int) -> float:
        """The moment E[lambda^k] of the noise eigenvalues, k >= 0."""
        return population_moment(self.atoms, self.weights, self.aspect_ratio, order)

    def _roots(self, z: NDArray) -> NDArray[np.complex128]:
        """All roots a of g(a) = z, shape z.shape + (m + 1,): eigenvalues of companion matrices."""
        scale = self.atoms[-1]
        tau, degree = self.atoms / scale, len(self.atoms) + 1
        poles = polynomial.polyfromroots(tau)
        pull = sum(
            self.aspect_ratio * w * t * polynomial.polyfromroots(np.delete(tau, k))
            for k, (t, w) in enumerate(zip(tau, self.weights, strict=True))
        )
        fixed = np.concatenate(([0.0], poles[:-1] + pull))
        matrix = np.zeros((*np.shape(z), degree, degree), dtype=complex)
        matrix[..., np.arange(1, degree), np.arange(degree - 1)] = 1.0
        matrix[..., :, -1] = np.asarray(z)[..., None] / scale * poles - fixed
        return np.linalg.eigvals(matrix) * scale

    @cached_property
    def _tables(self) -> list[tuple[float, float, float, PchipInterpolator, PchipInterpolator]]:
        """Per interval: middle and half width of sqrt(x), mass up to its end, cdf and inverse.

        The integral runs over an angle with sqrt(x) = middle - half cos(angle), in which the
        square-root edges and the singularity at 0 of a square matrix are both smooth.
        """
        angles = np.linspace(0.0, np.pi, NODES_PER_INTERVAL)
        pieces, masses = [], [0.0]
        for lower, upper in np.sqrt(self.bulk_edges):
            middle, half = (lower + upper) / 2, (upper - lower) / 2
            y = middle - half * np.cos(angles)
            slope = self.pdf(np.maximum(y**2, 1e-30 * upper**2)) * 2 * y * half * np.sin(angles)
            slope[[0, -1]] = 0.0
            pieces.append((middle, half, cumulative_simpson(slope, x=angles, initial=0.0)))
            masses.append(masses[-1] + pieces[-1][2][-1])
        tables = []
        for (middle, half, curve), (before, after) in zip(pieces, pairwise(masses), strict=True):
            mass = np.maximum.accumulate(curve + before) / masses[-1]
            rising = np.concatenate(([True], np.diff(mass) > 0))
            inverse = PchipInterpolator(mass[rising], angles[rising])
            tables.append((middle, half, after / masses[-1], PchipInterpolator(angles, mass), inverse))
        return tables

