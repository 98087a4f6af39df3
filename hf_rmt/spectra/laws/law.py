"""The law (distribution) of the eigenvalues of a large noise matrix, and what follows from it.

The eigenvalues are those of X'X (X' is the transpose) for X = N^{-1/2} Z diag(tau)^{1/2}, N x p,
where Z has independent entries of mean 0 and variance 1. The variances tau of the noise take one
value (Marchenko-Pastur), two values (double bulk), or more. A fraction w_k of the columns has the
variance tau_k. Everything about such a law follows from one rational function, the spike map

    g(a) = a (1 + c sum_k w_k tau_k / (a - tau_k)),                     c = p / N,

where the sum runs over the values k (Silverstein & Choi 1995, eq. 1.3). The values of g at points
of slope zero are the edges, the ends of the intervals that the eigenvalues fill. A population spike
is the size of a signal before noise is added. Where g increases, it maps a population spike to the
eigenvalue that this spike produces. The density at an eigenvalue z follows from the complex root a
of g(a) = z: -1/a is the companion Stieltjes transform; see `BulkLaw.stieltjes_transform`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from itertools import pairwise
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hf_rmt.spectra.laws.intervals import Interval
from hf_rmt.spectra.laws.spike_map import (
    Array,
    critical_points,
    population_moment,
    spike_roots,
    upper_root,
)


def check_positive(name: str, value: float) -> None:
    """Raise ValueError if a number is not both positive and finite."""
    if not 0 < value < np.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}; pass a number above 0")


def check_unit(name: str, value: float, *, remedy: str, zero: bool = False) -> None:
    """Raise ValueError if a number lies outside of (0, 1] or, with zero=True, of [0, 1]."""
    if not (0 <= value <= 1 if zero else 0 < value <= 1):
        raise ValueError(f"{name} must lie in {'[' if zero else '('}0, 1], got {value}; {remedy}")


class BulkLaw(ABC):
    """Law (predicted distribution) of the eigenvalues of noise with finitely many variances.

    A subclass is a frozen dataclass with a field `aspect_ratio`, which is c = p / N for noise of N
    rows and p columns. The subclass defines `atoms`, `weights` and `rescaled`.
    """

    aspect_ratio: float

    @property
    @abstractmethod
    def atoms(self) -> Array:
        """Distinct variances that the columns of the noise have, ascending, shape (m,)."""

    @property
    @abstractmethod
    def weights(self) -> Array:
        """Fractions of the columns of the noise that have the variances `atoms`, shape (m,)."""

    @abstractmethod
    def rescaled(self, factor: float, *, aspect_ratio: float | None = None) -> Self:
        """Copy this law; multiply the variances by `factor`, and set `aspect_ratio` if given."""

    def spike_forward(self, alpha: ArrayLike) -> Array:
        """Eigenvalue that a population spike a produces: g(a) = a (1 + c E[tau / (a - tau)]).

        A population spike is the size of a signal before noise is added. E is the mean over the
        variances tau of the noise. The noise has N rows and p columns, and c = p / N.

        Args:
            alpha: Population spikes a, other than the variances tau, any shape.

        Returns:
            The eigenvalues that these spikes produce in a large matrix, same shape.
        """
        a = np.asarray(alpha, dtype=float)[..., None]
        pull = (self.weights * self.atoms / (a - self.atoms)).sum(-1)
        return a[..., 0] * (1.0 + self.aspect_ratio * pull)

    def spike_slope(self, alpha: ArrayLike) -> Array:
        """Slope of `spike_forward`, g'(a) = 1 - c E[tau^2 / (a - tau)^2].

        Symbols are as in `spike_forward`. If the slope at a is positive, the eigenvalue that a
        signal of size a produces lies outside of the bulk, the range of noise eigenvalues.
        """
        a = np.asarray(alpha, dtype=float)[..., None]
        with np.errstate(divide="ignore"):
            return 1.0 - self.aspect_ratio * (
                self.weights * (self.atoms / (a - self.atoms)) ** 2
            ).sum(-1)

    def spike_curvature(self, alpha: ArrayLike) -> Array:
        """Second derivative of `spike_forward`, g''(a) = 2 c E[tau^2 / (a - tau)^3].

        Symbols are as in `spike_forward`. This derivative determines how much the largest noise
        eigenvalue fluctuates; see `edge_fluctuation`.
        """
        distance = np.asarray(alpha, dtype=float)[..., None] - self.atoms
        terms = self.weights * (self.atoms / distance) ** 2 / distance
        return 2.0 * self.aspect_ratio * terms.sum(-1)

    def spike_inverse(self, eigenvalue: ArrayLike) -> Array:
        """Size a of the signal that produces an eigenvalue l: the root of g(a) = l with g'(a) > 0.

        This size, before noise is added, is called a population spike. g is the function of
        `spike_forward`. The bulk is the interval, or the two intervals, of noise eigenvalues.

        Args:
            eigenvalue: Eigenvalues above the bulk or in a gap between two intervals, any shape.

        Returns:
            Population spikes, same shape; nan for an eigenvalue inside the bulk or below the bulk.
        """
        x = np.asarray(eigenvalue, dtype=float)
        roots = spike_roots(x, self.atoms, self.weights, self.aspect_ratio)
        real = np.where(np.abs(roots.imag) <= 1e-7 * np.abs(roots), roots.real, np.nan)
        with np.errstate(invalid="ignore"):
            distant = self.spike_slope(real) > 0
        outside = ~self.contains(x) & (x > self.bulk_edges[0, 0])
        best = np.max(np.where(distant & outside[..., None], real, -np.inf), axis=-1)
        return np.where(np.isfinite(best), best, np.nan)

    @cached_property
    def critical_points(self) -> Array:
        """The points a where `spike_slope` is 0, ascending, shape (2 * intervals,).

        Each of these points belongs to an end of an interval of noise eigenvalues; see
        `bulk_edges`.
        """
        return critical_points(self.atoms, self.weights, self.aspect_ratio)

    @cached_property
    def bulk_edges(self) -> Array:
        """The ends of the intervals that noise eigenvalues fill, ascending, shape (intervals, 2).

        The ends are the values of `spike_forward` at the `critical_points`.
        """
        edges = self.spike_forward(self.critical_points)
        return np.maximum(edges, 0.0).reshape(-1, 2)  # the lowest of a square matrix rounds to -0

    @property
    def upper_edge(self) -> float:
        """The upper end lambda_+ of the bulk, the range that noise eigenvalues fill."""
        return float(self.bulk_edges[-1, 1])

    def contains(self, x: ArrayLike) -> NDArray[np.bool_]:
        """Whether points x lie in the intervals of `bulk_edges`, ends included, same shape as x."""
        value = np.asarray(x, dtype=float)[..., None]
        inside = (value >= self.bulk_edges[:, 0]) & (value <= self.bulk_edges[:, 1])
        return np.any(inside, axis=-1)

    def edge_fluctuation(self, critical_point: float, rows: int) -> float:
        """Scale of the distance between the outermost noise eigenvalue and the predicted edge.

        The edge is the end of an interval of `bulk_edges`. The scale is
        N^{-2/3} (a^4 |g''(a)| / 2)^{1/3}, with g as in `spike_forward` and a the critical point.
        The distance is random: the scale times a Tracy-Widom variable, see `tracy_widom_cdf`. For
        the Marchenko-Pastur law this is the formula of the method BEMA, see `fit_unit_bulk`.

        Args:
            critical_point: The one of `critical_points` that belongs to the edge.
            rows: N, the number of rows of the noise.

        Returns:
            The scale, in units of the eigenvalues.

        Source:
            El Karoui, Ann. Probab. 35 (2007), theorem 1, in terms of g.
        """
        a = abs(critical_point)
        bend = a * abs(float(self.spike_curvature(critical_point))) / 2.0
        return float(a * (bend * rows**-2.0) ** (1 / 3))

    def stieltjes_transform(
        self, z: ArrayLike, *, companion: bool = False
    ) -> NDArray[np.complex128]:
        """Stieltjes transform m(z) = integral of dF(x) / (x - z), where F is `cdf`.

        With companion=True the result is the companion transform s(z) = c m(z) - (1 - c) / z, where
        c = p / N for noise X of N rows and p columns.

        Args:
            z: Points with positive imaginary part, any shape.
            companion: Return the companion transform, which is that of the N x N matrix X X'
                instead of X'X, where X' is the transpose.

        Returns:
            Complex values, same shape.

        Raises:
            ValueError: If a point does not lie in the upper half-plane.
        """
        points = np.asarray(z, dtype=complex)
        if np.any(points.imag <= 0):
            raise ValueError(
                f"stieltjes_transform needs points with positive imaginary part, got {z!r}; "
                "add a small imaginary part, or take the complex conjugate"
            )
        s = -1.0 / self._upper_root(points)
        return s if companion else (s + (1.0 - self.aspect_ratio) / points) / self.aspect_ratio

    def pdf(self, x: ArrayLike) -> Array:
        """Density of the noise eigenvalues at x, same shape as x; 0 outside of `bulk_edges`.

        The density is Im s(x + i0) / (pi c), where i0 means the limit from the upper half-plane.
        `stieltjes_transform` explains the companion transform s and the ratio c. If the
        eigenvalues reach down to 0 (c = 1), the density is infinite at 0.
        """
        points = np.asarray(x, dtype=float)
        singular = (points == 0) & (self.bulk_edges[0, 0] == 0)
        root = self._upper_root(np.where(singular, self.upper_edge, points))
        size = np.abs(root)
        density = root.imag / size / size / (np.pi * self.aspect_ratio)
        return np.where(singular, np.inf, np.where(self.contains(points), density, 0.0))

    def cdf(self, x: ArrayLike) -> Array:
        """Fraction of the noise eigenvalues that are at most x, same shape as x."""
        points = np.asarray(x, dtype=float)
        total = sum(interval.mass[-1] for interval in self._intervals)
        below = sum(interval.mass_up_to(points) for interval in self._intervals)
        return np.clip(below / total, 0.0, 1.0)

    def quantile(self, q: ArrayLike) -> Array:
        """Inverse of `cdf`: the value below which a fraction q of the noise eigenvalues lies.

        Args:
            q: Probabilities in [0, 1].

        Returns:
            The values, same shape as q. If there is a gap between two intervals of eigenvalues at
            q, the value is the lower end of the gap.

        Raises:
            ValueError: If a probability lies outside [0, 1] or is nan.
        """
        levels = np.asarray(q, dtype=float)
        if not np.all((levels >= 0) & (levels <= 1)):
            raise ValueError(
                f"quantile needs probabilities in [0, 1], got {q!r}; clip them, and leave out nan"
            )
        rest = levels * sum(interval.mass[-1] for interval in self._intervals)
        result = self._intervals[0].position_of(rest)
        for before, interval in pairwise(self._intervals):
            rest = rest - before.mass[-1]
            result = np.where(rest > 0, interval.position_of(rest), result)
        return result

    def moment(self, order: int) -> float:
        """The mean k-th power of the noise eigenvalues, where k = `order` is at least 0."""
        return population_moment(self.atoms, self.weights, self.aspect_ratio, order)

    def _upper_root(self, z: ArrayLike) -> NDArray[np.complex128]:
        return upper_root(z, self.atoms, self.weights, self.aspect_ratio)

    @cached_property
    def _intervals(self) -> list[Interval]:
        return [Interval.of(self.pdf, lower, upper) for lower, upper in self.bulk_edges]
