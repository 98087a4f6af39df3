"""Estimating the double bulk of noise eigenvalues: PDBLS on the upper half-plane.

The published estimator solves (SS), z = -1/s + c E[tau / (1 + tau s)], by least squares at real
points away from the spectrum. Here the points lie on half an ellipse around the bulk, where the
empirical transform still sees the shape of the density, and every residual is measured in its
own standard deviation from the central limit theorem of linear spectral statistics. The mixing t
enters linearly, so all pairs of variances on a grid are tried at once and the best is polished.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares
from scipy.special import expit, logit

from hf_rmt.spectra.double_bulk import DoubleBulk
from hf_rmt.spectra.laws import Array

CONTOUR_POINTS = 24
CONTOUR_HEIGHT = 0.2
"""Half axes of the ellipse: 1.06 times the half width of the bulk, and 0.2 times it. Chosen on
simulated double bulks, where heights of 0.1 to 0.5 are alike within noise."""
GRID = 32
MIXING_RANGE = (0.05, 0.95)
"""A bulk is at least this fraction of the noise; otherwise a few spikes would pass for one."""
SMALLEST_VARIANCE = 1e-3
"""Lower bound of a variance in units of the mean eigenvalue."""
SAME_VARIANCE = 1e-6
"""Relative difference below which the two variances count as one."""


@dataclass(frozen=True)
class BulkEstimate:
    """A fitted law.

    Attributes:
        law: The double bulk.
        residual: Root mean square of the standardised residuals, relative to the bulk's width.
        position: Where the search ended, to start a nearby one from.
        converged: Whether the least-squares solver says so.
    """

    law: DoubleBulk
    residual: float
    position: Array
    converged: bool


def estimate_bulk(
    noise: Array, rows: int, *, start: Array | None = None, precision: float = 1e-14
) -> BulkEstimate:
    """Fit a double bulk to noise eigenvalues.

    Args:
        noise: Eigenvalues without the spikes, descending, shape (n,), n >= 3, not all zero.
        rows: N; where it is less than n, the matrix counts as square.
        start: Position of a nearby estimate; without it the whole grid is searched.
        precision: Relative tolerance of the solver.

    Returns:
        The estimate. Scaling the eigenvalues scales its variances and nothing else.
    """
    scale = float(noise.mean())
    problem = _Problem.of(noise / scale, min(len(noise) / rows, 1.0))
    solution = least_squares(
        problem.residual,
        problem.grid_search() if start is None else start,
        jac=problem.jacobian,
        method="lm",
        ftol=precision,
        xtol=precision,
        gtol=precision,
        max_nfev=200,
    )
    residual = float(np.sqrt(np.mean(solution.fun**2)))
    return BulkEstimate(problem.law(solution.x, scale), residual, solution.x, solution.status > 0)


@dataclass(frozen=True)
class _Problem:
    """The equations t f(sigma_1^2) + (1 - t) f(sigma_2^2) = target, f(v) = v / (1 + v s).

    Unknowns are logits of (t, log sigma_1^2, log sigma_2^2) within their box, whose two columns
    `lower` and `upper` are.
    """

    transform: np.ndarray
    target: Array
    deviation: Array
    lower: Array
    upper: Array
    aspect_ratio: float

    @classmethod
    def of(cls, noise: Array, aspect_ratio: float) -> _Problem:
        """Empirical transform on the contour, and the deviation the CLT gives each equation.

        Var r(z) = |1 / (s - s*)^2 - 1 / (|s'|^2 (z - z*)^2)| up to a constant (Bai & Silverstein
        2004, eq. 1.20, carried to z by r = -(s_N - s) / s').
        """
        middle = (noise[0] + noise[-1]) / 2
        half = max((noise[0] - noise[-1]) / 2, 1e-3 * middle)
        angle = (np.arange(CONTOUR_POINTS) + 0.5) / CONTOUR_POINTS * np.pi
        width, height = half * (1 + 0.3 * CONTOUR_HEIGHT), half * CONTOUR_HEIGHT
        z = middle + width * np.cos(angle) + 1j * height * np.sin(angle)
        resolvent = 1 / (noise - z[:, None])
        s = aspect_ratio * resolvent.mean(1) - (1 - aspect_ratio) / z
        slope = aspect_ratio * (resolvent**2).mean(1) + (1 - aspect_ratio) / z**2
        variance = 1 / (4 * z.imag**2 * np.abs(slope) ** 2) - 1 / (4 * s.imag**2)
        deviation = np.sqrt(np.abs(variance))
        variances = np.log([max(SMALLEST_VARIANCE, noise[-1] / 4), noise[0]])
        lower, upper = np.transpose([MIXING_RANGE, variances, variances])
        target = _split((z + 1 / s) / aspect_ratio / deviation)
        return cls(s, target, deviation, lower, upper, aspect_ratio)

    def features(self, variances: Array, power: int = 1) -> Array:
        """v / (1 + v s)^power, shape (2 * points, len(variances)); power 2 is v f'(v)."""
        values = variances / (1 + variances * self.transform[:, None]) ** power
        return _split(values / self.deviation[:, None])

    def residual(self, x: Array) -> Array:
        mixing, *logs = self._values(x)
        first, second = self.features(np.exp(logs)).T
        return mixing * first + (1 - mixing) * second - self.target

    def jacobian(self, x: Array) -> Array:
        mixing, *logs = self._values(x)
        first, second = self.features(np.exp(logs)).T
        rise_first, rise_second = self.features(np.exp(logs), power=2).T
        slopes = (self.upper - self.lower) * expit(x) * expit(-x)
        columns = [first - second, mixing * rise_first, (1 - mixing) * rise_second]
        return np.stack(columns, axis=1) * slopes

    def grid_search(self) -> Array:
        """The best pair of variances on a logarithmic grid, each with its best mixing."""
        logs = np.linspace(self.lower[1], self.upper[1], GRID)
        features = self.features(np.exp(logs))
        low, high = np.triu_indices(GRID, 1)
        contrast = features[:, high] - features[:, low]
        rest = self.target[:, None] - features[:, low]
        mixing = np.clip(np.sum(contrast * rest, 0) / np.sum(contrast**2, 0), *MIXING_RANGE)
        best = np.argmin(np.sum((rest - mixing * contrast) ** 2, 0))
        values = np.array([mixing[best], logs[high[best]], logs[low[best]]])
        inner = (values - self.lower) / (self.upper - self.lower)
        return logit(np.clip(inner, 0.01, 0.99))

    def law(self, x: Array, scale: float) -> DoubleBulk:
        mixing, *logs = self._values(x)
        first, second = np.exp(logs)
        if first < second:
            mixing, first, second = 1 - mixing, second, first
        if first - second <= SAME_VARIANCE * first:
            first = second = mixing * first + (1 - mixing) * second
        variances = (float(first * scale), float(second * scale))
        return DoubleBulk(float(mixing), variances, self.aspect_ratio)

    def _values(self, x: Array) -> Array:
        return self.lower + (self.upper - self.lower) * expit(x)


def _split(values: np.ndarray) -> Array:
    """Real parts over imaginary parts."""
    return np.concatenate([values.real, values.imag])
