"""Fits the double bulk (noise of two variances) to noise eigenvalues by their transform s(z).

s(z), the companion transform of `BulkLaw.stieltjes_transform`, is a function of complex z that
determines the spectrum. s solves the equation (SS), z = -1/s + c E[tau / (1 + tau s)]. Here E is
the mean over the variances tau of the noise, and c = p / N for N rows and p columns. The published
estimator, PDBLS, solves (SS) by least squares at real points.

This module uses complex points z on a curve around the eigenvalues, where s(z) depends more on the
shape of the density. The s(z) of a law, a density predicted for noise, is compared with that of the
eigenvalues. Each difference is divided by its standard deviation, which follows from a central
limit theorem. The solver starts from a first guess. For it, all pairs of variances on a grid are
tried, each with the best t (the fraction with the larger variance); (SS) is linear in t. If the law
that it finds does not fit, it starts again from two similar variances. The better result is taken.
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
"""The square roots of the points of `_contour` form half an ellipse with half axes of 1.06 and 0.2
times half the range of singular values. Heights of 0.1 to 0.3 were as good in simulations."""
STEEPEST = 0.1
"""Least ratio Re w / Im w for w = sqrt(z), z in `_contour`. So no z is near a negative number."""
GRID = 20
SMALLEST_SHARE = 0.05
SMALLEST_BULK = 8
"""Least share and least number of noise eigenvalues per noise variance; fewer may be signal."""
LARGEST_FLOOR = 0.35
"""Largest value of `least_mixing`. With 15 eigenvalues, 8 / count alone would be over one half."""
SMALLEST_VARIANCE = 1e-3
"""Lower bound of a variance of the noise, in units of the mean eigenvalue."""
SAME_VARIANCE = 1e-6
"""If the two variances of the noise differ by at most this share, they count as one."""
SMALLEST_DEVIATION = 1e-6
"""The standard deviation of s_N(z) (see `_Problem`) counts as at least this divided by Im z."""
MAX_EVALUATIONS = 100
ADEQUATE = 1.8
"""A fit to noise holds if its `BulkEstimate.residual` is at most this. None of 180 simulated cases
of noise exceeded 1.6. Fits that took a signal for noise had at least 2.5."""


def least_mixing(count: int) -> float:
    """The smallest fraction of the noise that may have one of the two variances; see `_Problem`.

    Args:
        count: Number of noise eigenvalues, at least 1.

    Returns:
        The larger of 0.05 and 8 / count, but at most 0.35.

    Examples:
        >>> least_mixing(400), least_mixing(32)
        (0.05, 0.25)
    """
    return min(max(SMALLEST_SHARE, SMALLEST_BULK / count), LARGEST_FLOOR)


@dataclass(frozen=True)
class BulkEstimate:
    """A fitted law, the density that theory predicts for noise eigenvalues.

    Attributes:
        law: The law of the noise.
        residual: Root mean square of the residuals, see `SpectrumFit.residual`.
        converged: Whether the least-squares solver converged.
    """

    law: BulkLaw
    residual: float
    converged: bool


class Residuals(Protocol):
    """The equations that `least_squares` solves; the array x holds the unknowns."""

    def residual(self, x: Array) -> Array:
        """The residual of each equation at the unknowns x, shape (equations,)."""

    def jacobian(self, x: Array) -> Array:
        """The derivatives of the residuals with respect to x, shape (equations, unknowns)."""


def least_squares(problem: Residuals, x: Array, precision: float) -> tuple[Array, Array, bool]:
    """Find the unknowns of `problem` with the least sum of squared residuals.

    Args:
        problem: The residuals and their derivatives.
        x: The unknowns at which the solver starts, shape (unknowns,).
        precision: Relative tolerance of the unknowns and of the sum of squares.

    Returns:
        The unknowns found, the residuals there, and whether the solver converged.
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
    """Fit a double bulk (noise of two variances) to noise eigenvalues.

    Args:
        noise: Eigenvalues without the signal, descending, shape (n,), n >= 3, not all zero.
        rows: N, the longer side of the matrix of noise. If it is less than n, n is used for it.
        start: A double bulk near the result. If None, a grid of variances is searched.
        precision: Relative tolerance of the solver on parameters and residual.

    Returns:
        A `BulkEstimate`. A factor common to all eigenvalues changes only the variances in it.
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
    """The best double bulk on a coarse grid of variances; arguments are as in `estimate_bulk`."""
    scale = float(noise.mean())
    problem = _Problem.of(noise / scale, min(len(noise) / rows, 1.0))
    return problem.law(problem.grid_search(), scale)


@dataclass(frozen=True)
class _Problem:
    """The equations s(z) = s_N(z) that fit noise of two variances; z are complex points.

    s is the transform of a law, s_N that of the noise eigenvalues; see the module `estimation`. In
    the law, a fraction t of the noise has variance sigma_1^2, the rest has sigma_2^2. The vector
    v = (t, log sigma_1^2, log sigma_2^2) lies between the vectors `lower` and `upper`. The unknowns
    are x = logit((v - lower) / (upper - lower)), a vector without bounds.
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
        """Make the equations from noise eigenvalues; `_Problem` explains s and s_N.

        Each equation is divided by the standard deviation of s_N(z). Up to a factor of order 1,
        N^2 Var s_N(z) = |1 / (z - z*)^2 - |s'|^2 / (s - s*)^2| for a matrix with N rows (Bai &
        Silverstein 2004, eq. 1.20). Here s' is ds/dz, and * means the complex conjugate.
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
        """Solve from the start `x`; return unknowns, RMS residual and whether it converged."""
        with np.errstate(over="ignore"):  # in the unused covariance, if t is at its bound
            position, residuals, converged = least_squares(self, x, precision)
        return position, float(np.sqrt(np.mean(residuals**2))), converged

    def unit_start(self) -> Array:
        """The start x of the solver (see `_Problem`) for t = 1/2 and two variances near 1."""
        apart = np.sqrt(self.aspect_ratio) / 2
        return self._inside(0.5, apart, -apart)

    def residual(self, x: Array) -> Array:
        _, s = self._model(x)
        return split_parts((s - self.transform) / self.deviation)

    def jacobian(self, x: Array) -> Array:
        """Derivatives of the residuals with respect to `x`, shape (equations, unknowns)."""
        (mixing, first, second), s = self._model(x)
        high, low = first / (1 + first * s), second / (1 + second * s)
        rise_high, rise_low = mixing * high**2, (1 - mixing) * low**2
        columns = np.stack([high - low, rise_high / first, rise_low / second], axis=1)
        steepness = 1 / s**2 - self.aspect_ratio * (rise_high + rise_low)
        weight = -self.aspect_ratio / (steepness * self.deviation)  # by (SS): ds = -dz / z'(s)
        chain = (self.upper - self.lower) * expit(x) * expit(-x)
        return split_parts(columns * weight[:, None]) * chain

    def grid_search(self) -> Array:
        """The unknowns x (see `_Problem`) of the best fit, where the variances lie on a grid."""
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
        """The unknowns x (see `_Problem`) for `law` with its variances divided by `scale`."""
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
        """The noise parameters (t, sigma_1^2, sigma_2^2) at x, and their s(z); see `_Problem`."""
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
        """The noise parameters (t, sigma_1^2, sigma_2^2) at the unknowns x; see `_Problem`."""
        inside = np.where(np.isfinite(x), x, 0.0)  # a flat Jacobian can make the solver try nan
        mixing, *logs = self.lower + (self.upper - self.lower) * expit(inside)
        first, second = np.exp(logs)
        return float(mixing), float(first), float(second)


def contour_problem(
    noise: Array, aspect_ratio: float
) -> tuple[np.ndarray, np.ndarray, Array, float]:
    """The points z and the values s(z) to which a law is fitted; see the module `estimation`.

    Args:
        noise: Eigenvalues without the signal, descending, of mean 1.
        aspect_ratio: c in (0, 1], the columns of the noise divided by its rows.

    Returns:
        z; s(z); the standard deviation of s(z), times the number of rows; and `aspect_ratio`.
    """
    problem = _Problem.of(noise, aspect_ratio)
    return problem.points, problem.transform, problem.deviation, aspect_ratio


def _contour(noise: Array) -> np.ndarray:
    """Complex points z around the noise eigenvalues, with Im z > 0, shape (CONTOUR_POINTS,)."""
    first, last = np.sqrt(noise[0]), np.sqrt(noise[-1])
    middle = (first + last) / 2
    half = max((first - last) / 2, 1e-3 * middle)
    angle = (np.arange(CONTOUR_POINTS) + 0.5) / CONTOUR_POINTS * np.pi
    across = middle + half * (1 + 0.3 * CONTOUR_HEIGHT) * np.cos(angle)
    above = half * CONTOUR_HEIGHT * np.sin(angle)
    return (np.maximum(np.abs(across), STEEPEST * above) + 1j * above) ** 2


def split_parts(values: np.ndarray) -> Array:
    """The real parts of `values`, then the imaginary parts: [1 + 2j] becomes [1, 2]."""
    return np.concatenate([values.real, values.imag])
