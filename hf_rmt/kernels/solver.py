"""Finds, in a family of step functions, the one whose Gaussian moments are nearest to a goal.

`GaussianMoments` defines the moments.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from hf_rmt.kernels.activations import Array
from hf_rmt.kernels.steps import matched_quantities

EVALUATIONS = 150
LEAST_GAP = 1e-7
LOG_GAPS = (-20.0, 3.0)
FAR = 30.0
"""Largest absolute value of a step function's threshold, even if a search fails. Beyond it, the
normal density is practically 0."""


@dataclass(frozen=True)
class Pattern:
    """A family of step functions, and the one of them with which the search in `solve` starts.

    Args:
        points: Thresholds, ascending, for an argument of variance 1.
        basis: A matrix of shape (cells, values), where the cells are the intervals between the
            points. The heights of the step function in the cells are `basis @ values`.
        values: The numbers that give the heights, at the start of the search.
        gaps: An index for each gap between neighbouring points. Gaps with the same index stay
            equal. With None, all gaps are free.
        fixed: Whether the search leaves the values as they are.
    """

    points: Array
    basis: Array
    values: Array
    gaps: NDArray[np.intp] | None = None
    fixed: bool = False

    @property
    def heights(self) -> Array:
        """The values of the step function between neighbouring thresholds, shape (cells,)."""
        return self.basis @ self.values


def solve(pattern: Pattern, goal: Array, weights: Array) -> tuple[Pattern, float]:
    """The step function of the pattern's family whose moments are nearest to the goal.

    Args:
        pattern: The family and the start.
        goal: (m1, m2, m3, variance) at tau = 1; see `GaussianMoments`.
        weights: Factors by which the four differences from the goal are multiplied.

    Returns:
        The step function, as a `Pattern`, and the Euclidean norm of the multiplied differences. If
        two of its thresholds meet, the results are the given pattern and infinity.
    """
    family = _Family(pattern)

    def difference(z: Array) -> Array:
        at = family.member(z)
        return weights * (matched_quantities(at.points, at.heights)[0] - goal)

    found = least_squares(
        difference,
        family.start,
        lambda z: weights[:, None] * family.derivative(z),
        xtol=1e-15,
        ftol=1e-15,
        gtol=1e-15,
        max_nfev=EVALUATIONS,
    )
    best = family.member(found.x)
    if (np.diff(best.points) < LEAST_GAP).any():
        return pattern, np.inf
    return best, float(np.sqrt(2 * found.cost))


class _Family:
    """The step functions of a `Pattern`, each of which is described by a vector z.

    z holds the first threshold, the logarithms of the gaps between thresholds, and the values. Gaps
    that stay equal share one entry. Fixed values have none.
    """

    def __init__(self, pattern: Pattern) -> None:
        self.pattern = pattern
        count = len(pattern.points)
        index = np.arange(count - 1) if pattern.gaps is None else pattern.gaps
        self._pick = np.eye(index.max(initial=-1) + 1)[index]  # (gaps, distinct gaps)
        self._later = np.tri(count, count - 1, -1)
        self._values = 1 + self._pick.shape[1]

    @property
    def start(self) -> Array:
        gaps = self._pick.T @ np.diff(self.pattern.points) / self._pick.sum(0)
        values = self.pattern.values[: 0 if self.pattern.fixed else None]
        return np.concatenate([self.pattern.points[:1], np.log(gaps), values])

    def member(self, z: Array) -> Pattern:
        points = np.clip(z[0] + self._later @ self._gaps(z), -FAR, FAR)
        values = self.pattern.values if self.pattern.fixed else z[self._values :]
        return replace(self.pattern, points=points, values=values)

    def derivative(self, z: Array) -> Array:
        """Derivatives of four moments of a step function with respect to z, shape (4, len(z)).

        `matched_quantities` lists the moments. The vector z describes the step function, as in
        `_Family`.
        """
        at = self.member(z)
        _, by_points, by_heights = matched_quantities(at.points, at.heights)
        gaps = by_points @ (self._later * self._gaps(z)) @ self._pick
        values = by_heights @ at.basis[:, : 0 if at.fixed else None]
        return np.hstack([by_points.sum(1, keepdims=True), gaps, values])

    def _gaps(self, z: Array) -> Array:
        return np.exp(np.clip(self._pick @ z[1 : self._values], *LOG_GAPS))
