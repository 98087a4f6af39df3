"""Estimating the double bulk of noise eigenvalues: PDBLS on the upper half-plane.

The published estimator solves (SS), z = -1/s + c E[tau / (1 + tau s)], by least squares at real
points away from the spectrum. Here the points lie around the singular values of the bulk, where the
empirical transform still depends on the shape of the density. The s(z) of the law is compared with
the empirical s(z). Each difference is divided by its standard deviation, which the central limit
theorem of linear spectral statistics gives. For a start, (SS) itself is solved. The mixing t is
linear in it, so all pairs of variances on a grid are tried at once. If the solver ends in a law
that misfits, it also starts from a unit bulk, and the result with the smaller residual is taken.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from scipy.optimize import leastsq
from scipy.special import expit, logit

from hf_rmt.spectra.laws.double_bulk import DoubleBulk
from hf_rmt.spectra.laws.law import BulkLaw
from hf_rmt.spectra.laws.spike_map import Array, upper_root

CONTOUR_POINTS = 24
CONTOUR_HEIGHT = 0.2
"""The contour of singular values is half an ellipse; its half axes are 1.06 and 0.2 times half the
width of the bulk. On simulated double bulks, heights of 0.1 to 0.3 give the same results within
noise."""
STEEPEST = 0.1
"""Least ratio of real to imaginary part on the contour, so that z avoids the negative real axis."""
GRID = 20
SMALLEST_SHARE = 0.05
"""A bulk holds at least this fraction of the noise."""
SMALLEST_BULK = 8
"""A bulk holds at least this many eigenvalues; otherwise a few spikes could count as a bulk."""
LARGEST_FLOOR = 0.35
"""Largest value of the least share, so that a law of fewer than 24 eigenvalues exists."""
SMALLEST_VARIANCE = 1e-3
"""Lower bound of a variance in units of the mean eigenvalue."""
SAME_VARIANCE = 1e-6
"""Relative difference below which the two variances count as one."""
SMALLEST_DEVIATION = 1e-6
"""Least standard deviation, times the distance to the real axis; it prevents division by zero."""
MAX_EVALUATIONS = 100
ADEQUATE = 1.8
"""Largest residual of a law that holds. None of 180 simulated double bulks exceeded 1.6. Laws that
fitted spikes as a bulk had residuals of at least 2.5."""


def least_mixing(count: int) -> float:
    """The smallest fraction of `count` noise eigenvalues that may form a bulk of their own.

    Args:
        count: Number of noise eigenvalues, at least 1.

    Returns:
        A fraction: 0.05, or more if that is fewer than 8 eigenvalues, but at most 0.35.

    Examples:
        >>> least_mixing(400), least_mixing(32)
        (0.05, 0.25)
    """
    return min(max(SMALLEST_SHARE, SMALLEST_BULK / count), LARGEST_FLOOR)


@dataclass(frozen=True)
class BulkEstimate:
    """A fitted law.

    Attributes:
        law: The law of the noise.
        residual: Root mean square of the standardised residuals; about 0.8 where the law holds.
        converged: Whether the least-squares solver converged.
    """

    law: BulkLaw
    residual: float
    converged: bool


class Residuals(Protocol):
    """The functions that the solver needs; x holds the unknowns of a problem."""

    def residual(self, x: Array) -> Array:
        """The residuals, shape (equations,)."""

    def jacobian(self, x: Array) -> Array:
        """Their derivatives, shape (equations, unknowns)."""


def least_squares(problem: Residuals, x: Array, precision: float) -> tuple[Array, Array, bool]:
    """The result of the least-squares solver that starts at x.

    Args:
        problem: The residuals and their derivatives.
        x: The start, shape (unknowns,).
        precision: Relative tolerance of the position and of the sum of squares.

    Returns:
        The position, the residuals there, and whether the solver converged.
    """
    position, _, details, _, status = leastsq(
        problem.residual,
        x,
        Dfun=problem.jacobian,
        full_output=True,
        ftol=precision,
        xtol=precision,
        maxfev=MAX_EVALUATIONS,
    )
    residuals = details["fvec"]
    return position, residuals, status in (1, 2, 3, 4) and bool(np.isfinite(residuals).all())


def estimate_bulk(
    noise: Array, rows: int, *, start: BulkLaw | None = None, precision: float = 1e-9
) -> BulkEstimate:
    """Fit a double bulk to noise eigenvalues.

    Args:
        noise: Eigenvalues without the spikes, descending, shape (n,), n >= 3, not all zero.
        rows: N; if it is less than n, the matrix counts as square.
        start: A double bulk near the result; without it the whole grid is searched.
        precision: Relative tolerance of the solver on parameters and residual.

    Returns:
        The estimate. Scaling the eigenvalues scales its variances and nothing else.
    """
    scale = float(noise.mean())
    problem = _Problem.of(noise / scale, min(len(noise) / rows, 1.0))
    guess = start if isinstance(start, DoubleBulk) else None
    first = problem.position(guess, scale) if guess else problem.grid_search()
    position, cost, converged = problem.solve(first, precision)
    if rows * cost > ADEQUATE:  # a local minimum, perhaps
        ends = (position, cost, converged), problem.solve(problem.unit_start(), precision)
        position, cost, converged = min(ends, key=lambda end: end[1])
    return BulkEstimate(problem.law(position, scale), rows * cost, converged)


def coarse_bulk(noise: Array, rows: int) -> DoubleBulk:
    """The best law on the grid alone; arguments as for `estimate_bulk`."""
    scale = float(noise.mean())
    problem = _Problem.of(noise / scale, min(len(noise) / rows, 1.0))
    return problem.law(problem.grid_search(), scale)


@dataclass(frozen=True)
class _Problem:
    """The equations s(z; t, sigma_1^2, sigma_2^2) = s_N(z) on the contour.

    The unknowns are logits of (t, log sigma_1^2, log sigma_2^2) within a box, whose bounds are
    `lower` and `upper`.
    """

    points: np.ndarray
    transform: np.ndarray
    slope: np.ndarray
    deviation: Array
    lower: Array
    upper: Array
    aspect_ratio: float
    _last: dict[bytes, tuple[tuple[float, float, float], np.ndarray]] = field(default_factory=dict)

    @classmethod
    def of(cls, noise: Array, aspect_ratio: float) -> _Problem:
        """The problem for some noise: transform on the contour, its slope, and its CLT deviation.

        N^2 Var s_N(z) = |1 / (z - z*)^2 - |s'|^2 / (s - s*)^2| up to a constant of order 1 (Bai &
        Silverstein 2004, eq. 1.20); the factor N is applied to the residual.
        """
        z = _contour(noise)
        resolvent = 1 / (noise - z[:, None])
        s = aspect_ratio * resolvent.mean(1) - (1 - aspect_ratio) / z
        slope = aspect_ratio * (resolvent**2).mean(1) + (1 - aspect_ratio) / z**2
        variance = np.abs(1 / z.imag**2 - np.abs(slope) ** 2 / s.imag**2) / 4
        deviation = np.sqrt(np.maximum(variance, (SMALLEST_DEVIATION / z.imag) ** 2))
        # The lowest edge lies below the least variance. So a narrow bulk has a narrow box.
        least = noise[-1] / (1 + np.sqrt(aspect_ratio)) ** 2
        logs = np.log([max(SMALLEST_VARIANCE, least), noise[0]])
        floor = least_mixing(len(noise))
        lower, upper = np.transpose([(floor, 1 - floor), logs, logs])
        return cls(z, s, slope, deviation, lower, upper, aspect_ratio)

    def solve(self, x: Array, precision: float) -> tuple[Array, float, bool]:
        """The minimum from x, its root mean square residual without N, and whether it converged."""
        with np.errstate(over="ignore"):  # in the unused covariance, if t is at its bound
            position, residuals, converged = least_squares(self, x, precision)
        return position, float(np.sqrt(np.mean(residuals**2))), converged

    def unit_start(self) -> Array:
        """Two halves whose variances differ by less than the width of a unit bulk."""
        apart = np.sqrt(self.aspect_ratio) / 2
        return self._inside(0.5, apart, -apart)

    def residual(self, x: Array) -> Array:
        _, s = self._model(x)
        return split_parts((s - self.transform) / self.deviation)

    def jacobian(self, x: Array) -> Array:
        """Derivatives of s(z) from (SS), ds = -dz / z'(s), times derivatives of the values by x."""
        (mixing, first, second), s = self._model(x)
        high, low = first / (1 + first * s), second / (1 + second * s)
        rise_high, rise_low = mixing * high**2, (1 - mixing) * low**2
        columns = np.stack([high - low, rise_high / first, rise_low / second], axis=1)
        steepness = 1 / s**2 - self.aspect_ratio * (rise_high + rise_low)
        weight = -self.aspect_ratio / (steepness * self.deviation)
        chain = (self.upper - self.lower) * expit(x) * expit(-x)
        return split_parts(columns * weight[:, None]) * chain

    def grid_search(self) -> Array:
        """The pair of variances on a logarithmic grid that solves (SS) best, with its mixing."""
        logs = np.linspace(self.lower[1], self.upper[1], GRID)
        variances = np.exp(logs)
        weight = np.abs(self.slope) / self.deviation
        pull = (self.points + 1 / self.transform) / self.aspect_ratio
        target = split_parts(pull * weight)
        features = split_parts(
            variances / (1 + variances * self.transform[:, None]) * weight[:, None]
        )
        low, high = np.triu_indices(GRID, 1)
        contrast = features[:, high] - features[:, low]
        rest = target[:, None] - features[:, low]
        mixing = np.sum(contrast * rest, 0) / np.sum(contrast**2, 0)
        mixing = np.clip(mixing, self.lower[0], self.upper[0])
        best = np.argmin(np.sum((rest - mixing * contrast) ** 2, 0))
        return self._inside(mixing[best], logs[high[best]], logs[low[best]])

    def position(self, law: DoubleBulk, scale: float) -> Array:
        """The position of a law in the search space."""
        return self._inside(law.mixing, *np.log(np.array(law.variances) / scale))

    def _inside(self, *values: float) -> Array:
        inner = (np.array(values) - self.lower) / (self.upper - self.lower)
        return logit(np.clip(inner, 0.01, 0.99))

    def law(self, x: Array, scale: float) -> DoubleBulk:
        mixing, first, second = self._values(x)
        if first < second:
            mixing, first, second = 1 - mixing, second, first
        if first - second <= SAME_VARIANCE * first:
            first = second = mixing * first + (1 - mixing) * second
        variances = (float(first * scale), float(second * scale))
        return DoubleBulk(float(mixing), variances, self.aspect_ratio)

    def _model(self, x: Array) -> tuple[tuple[float, float, float], np.ndarray]:
        """The values at x and the law's s on the contour; the last result is kept."""
        key = x.tobytes()
        if key not in self._last:
            self._last.clear()
            mixing, first, second = values = self._values(x)
            atoms, weights = np.array([second, first]), np.array([1 - mixing, mixing])
            order = np.argsort(atoms)
            root = upper_root(self.points, atoms[order], weights[order], self.aspect_ratio)
            self._last[key] = values, -1 / root
        return self._last[key]

    def _values(self, x: Array) -> tuple[float, float, float]:
        """(t, sigma_1^2, sigma_2^2)."""
        inside = np.where(np.isfinite(x), x, 0.0)  # a flat Jacobian can make the solver try nan
        mixing, *logs = self.lower + (self.upper - self.lower) * expit(inside)
        first, second = np.exp(logs)
        return float(mixing), float(first), float(second)


def contour_problem(
    noise: Array, aspect_ratio: float
) -> tuple[np.ndarray, np.ndarray, Array, float]:
    """The data to which any law is fitted: points, the empirical s there, its deviations, and c.

    Args:
        noise: Eigenvalues without the spikes, descending, of mean 1.
        aspect_ratio: c in (0, 1].

    Returns:
        Complex points and values, positive deviations, each of shape (CONTOUR_POINTS,), and c.
    """
    problem = _Problem.of(noise, aspect_ratio)
    return problem.points, problem.transform, problem.deviation, aspect_ratio


def _contour(noise: Array) -> np.ndarray:
    """Points in the upper half-plane around the bulk, shape (CONTOUR_POINTS,)."""
    first, last = np.sqrt(noise[0]), np.sqrt(noise[-1])
    middle = (first + last) / 2
    half = max((first - last) / 2, 1e-3 * middle)
    angle = (np.arange(CONTOUR_POINTS) + 0.5) / CONTOUR_POINTS * np.pi
    across = middle + half * (1 + 0.3 * CONTOUR_HEIGHT) * np.cos(angle)
    above = half * CONTOUR_HEIGHT * np.sin(angle)
    return (np.maximum(np.abs(across), STEEPEST * above) + 1j * above) ** 2


def split_parts(values: np.ndarray) -> Array:
    """Real parts followed by imaginary parts, as one real vector."""
    return np.concatenate([values.real, values.imag])
