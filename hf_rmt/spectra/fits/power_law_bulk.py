"""The power-law bulk: noise whose variances tau have the density tau^(k - 1) on an interval.

The noise of trained weights does not have two variances but a range of them. Most variances lie
near the lower end. The law (the predicted density of noise eigenvalues) has three parameters: the
two ends of the range and the exponent k. The logarithm of tau has a uniform density for k = 0 and
an exponential one otherwise, so numerical integrals need only a few (Gauss-Legendre) nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logit

from hf_rmt.spectra.fits.double_bulk import fitted, self_consistent
from hf_rmt.spectra.fits.estimation import BulkEstimate, contour_problem, least_squares, split_parts
from hf_rmt.spectra.fits.separation import separate_by
from hf_rmt.spectra.laws.continuous import ContinuousBulk
from hf_rmt.spectra.laws.law import BulkLaw, check_positive, check_unit
from hf_rmt.spectra.laws.spike_map import Array
from hf_rmt.spectra.split import SpectrumFit

NODES = 64
POSITIONS, QUADRATURE = np.polynomial.legendre.leggauss(NODES)
RESOLUTION, MOST_PANELS = 8.0, 64
"""The number of `PowerLawBulk.atoms` is RESOLUTION h^2 / c, rounded up to a multiple of NODES, but
at most NODES * MOST_PANELS. Here h is `half_width` and c is `aspect_ratio`. In the spectrum, each
atom makes a bump about pi c / (2 h) wide. Atoms farther apart would give separate bumps."""
WIDEST = 4.0
"""Half the largest range of the log of the noise variances, so their largest ratio is e^8."""
FARTHEST = 12.0
"""Largest absolute value of log(m / mean eigenvalue). The middle variance m is the geometric mean
of the largest and the smallest variance of the noise."""
STEEPEST_TILT = 8.0
"""Largest tilt: exponent k times half width h, as in `_Problem`. So the density of the log of the
noise variances falls by at most a factor e^16."""
STARTS = ((0.3, 0.0), (1.0, -1.5), (2.0, -4.0))
"""Half widths and tilts (see `_Problem`) from which the solver starts; the best result counts."""
NEWTON_STEPS = 12
HEIGHTS = np.append(np.geomspace(10.0, 0.01, 10), 0.0)
"""The root s(z) of equation (SS) in `estimation` is followed from far above the point z down to z.
These are the imaginary parts that are added to z, in units of |z| plus the largest variance."""
UNSOLVED = 1e6
"""The residual if the equation (SS) of `estimation` has no solution. The value is finite, so that
the solver turns back."""
NEWTON_PRECISION = 1e-8
"""Newton's method stops if the relative change of a root is at most this. The remaining error is
about the square of this change."""

Model = tuple[float, Array, Array, np.ndarray]
"""A law as the solver needs it: half width (see `_Problem`), noise variances, their weights, and
s(z) at the points z of `estimation`."""


@dataclass(frozen=True)
class PowerLawBulk(ContinuousBulk):
    """Law (density) of noise eigenvalues if the noise variances tau have the density tau^(k - 1).

    Args:
        exponent: k, any finite number; a negative k gives many small variances.
        variances: The ends of the range of tau, (largest, smallest), largest > smallest > 0.
        aspect_ratio: c = p / N in (0, 1], the columns of the noise divided by its rows.

    Raises:
        ValueError: If an argument lies outside its range.

    Source:
        Silverstein & Choi, J. Multivar. Anal. 54 (1995) for the spectrum of any population.

    Examples:
        >>> law = PowerLawBulk(exponent=-1.0, variances=(8.0, 1.0), aspect_ratio=0.25)
        >>> round(law.moment(1), 3)
        2.377
        >>> law.bulk_edges.shape
        (1, 2)
    """

    exponent: float
    variances: tuple[float, float]
    aspect_ratio: float

    def __post_init__(self) -> None:
        for variance in self.variances:
            check_positive("variances", variance)
        if self.variances[0] <= self.variances[1]:
            raise ValueError(
                f"variances must be (largest, smallest), got {self.variances}; swap them, or use "
                "MarchenkoPastur where they are equal"
            )
        if not np.isfinite(self.exponent):
            raise ValueError(f"exponent must be finite, got {self.exponent}; pass a finite one")
        check_unit("aspect_ratio", self.aspect_ratio, remedy="pass the transpose")

    @property
    def half_width(self) -> float:
        """Half the range of the logarithm of the noise variances."""
        return float(np.log(self.variances[0] / self.variances[1]) / 2)

    @cached_property
    def atoms(self) -> Array:
        """The noise variances, ascending, at which numerical integrals are evaluated."""
        middle = np.sqrt(self.variances[0]) * np.sqrt(self.variances[1])
        return np.asarray(middle * np.exp(self.half_width * self._quadrature[0]))

    @cached_property
    def weights(self) -> Array:
        """The fractions of the columns of the noise matrix that have the variances `atoms`."""
        return _tilted(self.exponent * self.half_width, *self._quadrature)

    @cached_property
    def _quadrature(self) -> tuple[Array, Array]:
        """Quadrature nodes on [-1, 1] and their weights, as many as `RESOLUTION` asks for."""
        needed = RESOLUTION * self.half_width**2 / (self.aspect_ratio * NODES)
        panels = int(np.clip(np.ceil(needed), 1, MOST_PANELS))
        middles = (2 * np.arange(panels) + 1) / panels - 1
        nodes = middles[:, None] + POSITIONS / panels
        return nodes.ravel(), np.tile(QUADRATURE / panels, panels)

    def rescaled(self, factor: float, *, aspect_ratio: float | None = None) -> Self:
        """A copy with all noise variances times a factor and, if given, a new `aspect_ratio`."""
        first, second = self.variances
        ratio = self.aspect_ratio if aspect_ratio is None else aspect_ratio
        return type(self)(self.exponent, (first * factor, second * factor), ratio)


def fit_power_law_bulk(eigenvalues: ArrayLike, shape: tuple[int, int]) -> SpectrumFit:
    """Fit noise with a range of variances (`PowerLawBulk`) to eigenvalues, and find the signal.

    Args:
        eigenvalues: Squared singular values of the weight, shape (min(shape),), in any order.
        shape: Shape of the weight; its orientation does not matter.

    Returns:
        The fit; see `hf_rmt.spectra`. Signal and noise are found as in `fit_double_bulk`.

    Raises:
        TypeError: If the shape is no pair of whole numbers.
        ValueError: If the eigenvalues do not fit the shape or are clearly negative.

    Examples:
        >>> from hf_rmt.spectra.ensembles import double_bulk_matrix
        >>> weight = double_bulk_matrix(
        ...     (800, 400), mixing=0.4, variances=(3.0, 1.0), spikes=(30.0, 20.0), seed=0
        ... )
        >>> fit = fit_power_law_bulk(np.linalg.svd(weight, compute_uv=False) ** 2, weight.shape)
        >>> fit.n_spikes, str(fit.phase)
        (2, 'bulk+spikes')
    """
    separator = partial(separate_by, estimate_power_law)
    return fitted(eigenvalues, shape, partial(self_consistent, separator))


def estimate_power_law(
    noise: Array, rows: int, *, start: BulkLaw | None = None, precision: float = 1e-9
) -> BulkEstimate:
    """Fit a `PowerLawBulk` (noise with a range of variances) to noise eigenvalues.

    Args:
        noise: Eigenvalues without the signal, descending, shape (n,), n >= 3, not all zero.
        rows: N, the number of rows of the noise. If N is less than n, the matrix counts as square.
        start: A power-law bulk near the result. If it is None, several starts are tried.
        precision: Relative tolerance of the solver.

    Returns:
        The fitted law, its residual, and whether the solver converged.
    """
    scale = float(noise.mean())
    problem = _Problem(*contour_problem(noise / scale, min(len(noise) / rows, 1.0)))
    if isinstance(start, PowerLawBulk):
        position = problem.solve(problem.position(start, scale), precision)
    else:
        rough = [problem.solve(problem.start(*each), 1e-2) for each in STARTS]
        best = min(rough, key=lambda each: float(np.sum(each[1] ** 2)))
        position = problem.solve(best[0], precision)
    x, residuals, converged = position
    size = rows * float(np.sqrt(np.mean(residuals**2)))
    return BulkEstimate(problem.law(x, scale), size, converged)


class _Problem:
    """The equations s(z) = s_N(z), as in `estimation._Problem`, that fit a `PowerLawBulk`.

    `_shape` turns the unknowns x into log m, the half width h and the tilt k h. The noise variances
    tau have the density tau^(k - 1), and log tau lies between log m - h and log m + h.
    """

    def __init__(
        self, points: np.ndarray, transform: np.ndarray, deviation: Array, aspect_ratio: float
    ) -> None:
        self.points, self.transform, self.deviation = points, transform, deviation
        self.aspect_ratio = aspect_ratio
        self._root = transform
        self._last: tuple[bytes, Model] | None = None

    def solve(self, x: Array, precision: float) -> tuple[Array, Array, bool]:
        """Start the solver at `x`; return the best x, its residuals, and whether it converged."""
        with np.errstate(all="ignore"):
            position, residuals, converged = least_squares(self, x, precision)
            return position, residuals, converged and _solves(self._transform(position)[-1])

    def residual(self, x: Array) -> Array:
        s = self._transform(x)[-1]
        found = split_parts((s - self.transform) / self.deviation)
        return found if _solves(s) else np.full_like(found, UNSOLVED)

    def jacobian(self, x: Array) -> Array:
        """Derivatives of the residuals by `x`, from (SS): -1/s + c E[tau / (1 + tau s)] - z = 0.

        The docstring of the module `estimation` explains (SS) and its symbols.
        """
        width, tau, weights, s = self._transform(x)
        share = 1 / (1 + np.outer(s, tau))
        rise = weights * tau * share**2
        centred = POSITIONS - weights @ POSITIONS
        columns = np.stack(
            [
                rise.sum(1),
                (rise * POSITIONS).sum(1) * width * expit(-x[1]),
                (weights * centred * tau * share).sum(1) / np.cosh(x[2] / STEEPEST_TILT) ** 2,
            ],
            axis=1,
        )
        steepness = 1 / s**2 - self.aspect_ratio * (weights * (tau * share) ** 2).sum(1)
        factor = -self.aspect_ratio / (steepness * self.deviation)
        result = split_parts(columns * factor[:, None])
        return result if _solves(s) else np.zeros_like(result)

    def start(self, width: float, tilt: float) -> Array:
        """The unknowns x for this half width and tilt (see `_Problem`) and a mean variance of 1."""
        mean = float(_tilted(tilt) @ np.exp(width * POSITIONS))
        inside = np.clip(tilt / STEEPEST_TILT, -0.99, 0.99)
        share = np.clip(width / WIDEST, 0.01, 0.99)
        return np.array([-np.log(mean), logit(share), STEEPEST_TILT * np.arctanh(inside)])

    def position(self, law: PowerLawBulk, scale: float) -> Array:
        """The unknowns x (see `_Problem`) of `law`, after its variances are divided by `scale`."""
        x = self.start(law.half_width, law.exponent * law.half_width)
        x[0] = np.log(np.sqrt(law.variances[0] / scale) * np.sqrt(law.variances[1] / scale))
        return x

    def law(self, x: Array, scale: float) -> PowerLawBulk:
        """The `PowerLawBulk` that `x` describes (see `_Problem`), its variances times `scale`."""
        middle, width, tilt = _shape(x)
        first, second = (float(scale * np.exp(middle + sign * width)) for sign in (1, -1))
        return PowerLawBulk(tilt / width, (first, second), self.aspect_ratio)

    def _transform(self, x: Array) -> Model:
        """The `Model` at the unknowns `x` (see `_Problem`), found by Newton's method."""
        if self._last is not None and self._last[0] == x.tobytes():
            return self._last[1]
        middle, width, tilt = _shape(x)
        tau = np.exp(middle + width * POSITIONS)
        weights = _tilted(tilt)
        root = self._newton(self._root, self.points, tau, weights)
        if not _solves(root):
            root = self._followed(tau, weights)
        if _solves(root):
            self._root = root
        self._last = x.tobytes(), (width, tau, weights, root)
        return self._last[1]

    def _newton(self, s: np.ndarray, points: np.ndarray, tau: Array, weights: Array) -> np.ndarray:
        for _ in range(NEWTON_STEPS):
            share = tau / (1 + np.outer(s, tau))
            value = -1 / s + self.aspect_ratio * (share @ weights) - points
            step = value / (1 / s**2 - self.aspect_ratio * (share**2 @ weights))
            s = s - step
            if np.all(np.abs(step) <= NEWTON_PRECISION * np.abs(s)):
                return s
        return np.full_like(s, np.nan)

    def _followed(self, tau: Array, weights: Array) -> np.ndarray:
        """Solve equation (SS) of `estimation` for s(z): start far above z and go down to z."""
        size = np.abs(self.points) + tau[-1]
        s = -1 / (self.points + 1j * HEIGHTS[0] * size)
        for height in HEIGHTS:
            s = self._newton(s, self.points + 1j * height * size, tau, weights)
        return s


def _solves(s: np.ndarray) -> bool:
    return bool(np.all(np.isfinite(s) & (s.imag > 0)))  # Newton's method can end in nan + inf j


def _shape(x: Array) -> tuple[float, float, float]:
    """Turn the unknowns x into log m, half width h and tilt k h (see `_Problem`), within limits."""
    middle, share, steepness = np.nan_to_num(x)  # with a flat Jacobian the solver may try nan
    width = WIDEST * max(float(expit(share)), 1e-3)
    tilt = STEEPEST_TILT * np.tanh(steepness / STEEPEST_TILT)
    return float(np.clip(middle, -FARTHEST, FARTHEST)), width, float(tilt)


def _tilted(tilt: float, nodes: Array = POSITIONS, quadrature: Array = QUADRATURE) -> Array:
    """Quadrature weights, of sum 1, for a density proportional to exp(tilt x) on [-1, 1]."""
    weights = quadrature * np.exp(tilt * nodes - abs(tilt))
    return np.asarray(weights / weights.sum())
