"""Families of step activations, and the steps from which the search in them starts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from hf_rmt.kernels.activations import Array, resolve_activation
from hf_rmt.kernels.problem import MatchingProblem
from hf_rmt.kernels.quantizer import quantized
from hf_rmt.kernels.solver import Pattern
from hf_rmt.kernels.steps import normal_density

REACH = 4.5
"""Bound of the thresholds at the start; the normal mass beyond, 7e-6, is too small for a solver."""
OUTER = np.array([[1.0], [0.0], [1.0]])


def sign_pattern(problem: MatchingProblem) -> Pattern:
    """The step b 1{x > 0} with the m1 of the goal."""
    points = np.zeros(1)
    height = problem.goal[0] / normal_density(points)
    return Pattern(points, np.eye(2), np.concatenate([-height / 2, height / 2]))


def one_level_patterns(problem: MatchingProblem) -> Iterator[Pattern]:
    """Steps b 1{x < s1 or x > s2} with s1, s2 on either side of 0, first on that of sign(m1 m2)."""
    side = np.sign(problem.goal[0] * problem.goal[1]) or 1.0
    for end in (side, -side):
        for width in (1.0, 3.0):
            points = np.sort(end * np.array([0.5, 0.5 + width]))
            yield Pattern(points, OUTER, np.array([-2.0 * np.sign(problem.goal[1])]))


def published_patterns(problem: MatchingProblem) -> Iterator[Pattern]:
    """Steps b 1{x < r1 or r2 < x <= r3 or x > r4}, r4 - r3 = r2 - r1."""
    ratio = 0.0 if problem.is_odd else problem.goal[2] / problem.goal[1]
    height = 2 * np.sqrt(ratio**2 + 1)
    basis, gaps = np.array([[1.0], [0.0], [1.0], [0.0], [1.0]]), np.array([0, 1, 0])
    for first in (-3.0, -2.0, -1.0, 0.0):
        for outer in (0.5, 1.5):
            for inner in (0.5, 1.5):
                points = first + np.cumsum([0.0, outer, inner, outer])
                yield Pattern(points, basis, np.array([height]), gaps, fixed=True)


def ternary_patterns(problem: MatchingProblem) -> Iterator[Pattern]:
    """Steps b (1{x > s2} - 1{x <= s1})."""
    height = np.sign(problem.goal[0])
    for first in (-2.0, -1.0, -0.5, 0.0):
        for width in (0.5, 1.0, 2.0):
            points = np.array([first, first + width])
            yield Pattern(points, np.array([[-1.0], [0.0], [1.0]]), np.array([height]))


def quantized_patterns(problem: MatchingProblem, levels: int) -> Iterator[Pattern]:
    """Best quantisers of the mean of activation and quadratic part, then of the latter alone."""
    function = resolve_activation(problem.activation)
    stretch = problem.target.tau

    def blend(share: float, xi: Array) -> Array:
        centred = (function(stretch * xi) - problem.target.m0) / problem.target.tau_out
        return np.asarray((1 - share) * centred + share * problem.quadratic(xi))

    for share in (0.5, 1.0):
        best = quantized(partial(blend, share), levels)
        inside = np.abs(best.points) < REACH
        cells = best.cells[np.concatenate([inside, [False]])]
        last = best.cells[1:][inside][-1:]
        basis = np.eye(levels + 1)[np.concatenate([cells, last])]
        yield Pattern(best.points[inside], basis, best.values)
