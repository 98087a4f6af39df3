"""Step activations, which are piecewise constant functions, and formulas for their moments.

The moments are the Gaussian moments of `GaussianMoments`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr

from hf_rmt.kernels.activations import Array
from hf_rmt.kernels.gaussian_moments import (
    DEGREE,
    GaussianMoments,
    check_scale,
    hermite_polynomials,
)


@dataclass(frozen=True)
class StepActivation:
    """Piecewise constant function: s(x) = heights[j] where thresholds[j-1] < x <= thresholds[j].

    Args:
        thresholds: Points where the value changes, ascending, at least one.
        heights: Values below, between and above the thresholds; k + 1 values for k thresholds.

    Raises:
        ValueError: If the thresholds do not ascend or the number of heights is wrong.

    Examples:
        >>> StepActivation((0.0,), (-1.0, 1.0))([-2.0, 0.5])
        array([-1.,  1.])
    """

    thresholds: tuple[float, ...]
    heights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.thresholds or len(self.heights) != len(self.thresholds) + 1:
            raise ValueError(
                "a step activation needs k + 1 heights for k thresholds, with k at least 1, got "
                f"{len(self.heights)} heights for {len(self.thresholds)} thresholds; pass one "
                "height for each interval below, between and above the thresholds"
            )
        if not (np.diff(self.thresholds) > 0).all():
            raise ValueError(f"thresholds must ascend, got {self.thresholds}; sort them")

    def __call__(self, x: ArrayLike) -> Array:
        """The values of the step activation at x, an array of any shape."""
        return np.asarray(self.heights)[np.searchsorted(self.thresholds, np.asarray(x))]

    @property
    def levels(self) -> int:
        """Number of distinct heights, minus one. An output fits into log2(levels + 1) bits."""
        return len(set(self.heights)) - 1

    def moments_at(self, tau: float, *, degree: int = DEGREE) -> GaussianMoments:
        """The `GaussianMoments` of the step activation s, by a formula.

        They are means E over arguments tau xi, where xi is standard normal. For k > 0,
        E s^(k)(tau xi) is the sum of jump * He_{k-1}(u) phi(u) / tau^k over the thresholds. Here
        jump is the change of s at the threshold, u is threshold / tau, phi is the normal density,
        and He_k are the Hermite polynomials.

        Args:
            tau: Standard deviation of the argument tau xi, > 0.
            degree: Largest k of the mean derivatives E s^(k).

        Returns:
            The moments; those of s'^2 are infinite.
        """
        check_scale(tau, degree)
        points = np.asarray(self.thresholds) / tau
        heights = np.asarray(self.heights)
        masses = cell_masses(points)
        mean = float(masses @ heights)
        density = hermite_polynomials(points, max(degree, DEGREE)) * normal_density(points)
        powers = tau ** -np.arange(1.0, degree + 1)
        means = [mean, *(powers * (density[:degree] @ np.diff(heights)))]
        squares = (heights - mean) ** 2
        slopes = density[1:6:2] @ np.diff(squares) / (2 * tau**2) ** np.arange(1, 4)
        variances = [float(masses @ squares), *slopes]
        return GaussianMoments(tau, _floats(means), _floats(variances), (np.inf,) * 3)


def cell_masses(points: Array) -> Array:
    """Standard normal probabilities of the intervals below, between and above ascending points."""
    return np.diff(ndtr(np.concatenate([[-np.inf], points, [np.inf]])))


def normal_density(x: Array) -> Array:
    """The standard normal density phi(x)."""
    return np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)


def matched_quantities(points: Array, heights: Array) -> tuple[Array, Array, Array]:
    """The moments m1, m2, m3 and the variance of a step activation, and their derivatives.

    A step activation is a piecewise constant function. The moments are those of `GaussianMoments`
    at tau = 1.

    Args:
        points: Thresholds, shape (k,).
        heights: Values of the function below, between and above the thresholds, shape (k + 1,). The
            mean of the function need not be 0.

    Returns:
        The moments and the variance, shape (4,); their derivatives with respect to the points,
        shape (4, k); and those with respect to the heights, shape (4, k + 1).
    """
    heights = heights - heights[0]  # all four are the same, and large equal heights cancel here
    masses, density = cell_masses(points), normal_density(points)
    first, slope = points * density, (1 - points**2) * density
    jumps, squares = np.diff(heights), np.diff(heights**2)
    density_drops, first_drops = _drops(points, density)
    mean, m2 = masses @ heights, first_drops @ heights[1:]
    m3 = first_drops @ heights[1:] ** 2 / 2 - mean * m2
    values = [density_drops @ heights[1:], m2, m3, masses @ heights**2 - mean**2]
    mean_by_points = -jumps * density
    by_points = [
        -first * jumps,
        slope * jumps,
        slope * squares / 2 - mean * slope * jumps - m2 * mean_by_points,
        -squares * density - 2 * mean * mean_by_points,
    ]
    by_density, by_first = _by_heights(density), _by_heights(first)
    by_heights = [
        by_density,
        by_first,
        (heights - mean) * by_first - m2 * masses,
        2 * masses * (heights - mean),
    ]
    return np.array(values), np.array(by_points), np.array(by_heights)


def _drops(points: Array, density: Array) -> tuple[Array, Array]:
    """By how much phi(x) and x phi(x) fall from the left end of each cell to its right end.

    A cell is the interval from a threshold to the next, or from the last one to infinity. phi is
    the normal density, given as `density` at the thresholds. In a narrow cell, plain subtraction
    would lose digits. They matter if the step activation has a very large value in that cell.
    """
    left, right = points[:-1], points[1:]
    growth = (right - left) * (right + left) / 2
    largest = np.maximum(density[:-1], density[1:])
    drops = -np.sign(growth) * largest * np.expm1(-np.abs(growth))
    first_drops = right * drops - (right - left) * density[:-1]
    return np.append(drops, density[-1]), np.append(first_drops, points[-1] * density[-1])


def _by_heights(weights: Array) -> Array:
    """Derivatives of sum_j w_j (h_{j+1} - h_j) with respect to the numbers h.

    For the weights w = [a, b] they are [-a, a - b, b].
    """
    return np.concatenate([[0.0], weights]) - np.concatenate([weights, [0.0]])


def _floats(values: list[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
