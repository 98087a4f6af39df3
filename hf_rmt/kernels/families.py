"""Families of step activations, and the steps from which the search in them starts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr

from hf_rmt.kernels.activations import Array, resolve_activation
from hf_rmt.kernels.problem import MatchingProblem
from hf_rmt.kernels.quantizer import quantized
from hf_rmt.kernels.solver import LEAST_GAP, Pattern
from hf_rmt.kernels.steps import matched_quantities, normal_density

REACH = 4.5
"""Bound of the thresholds at the start; the normal mass beyond, 7e-6, is too small for a solver."""
PLACES = (1e-6, 8.0)
"""Where the threshold s2 of a symmetric step is looked for."""
OUTER = np.array([[1.0], [0.0], [1.0]])


def sign_pattern(problem: MatchingProblem) -> Pattern:
    """The step b 1{x > 0} with the m1 of the goal."""
    points = np.zeros(1)
    height = problem.goal[0] / normal_density(points)
    return Pattern(points, np.eye(2), np.concatenate([-height / 2, height / 2]))


def one_level_patterns(problem: MatchingProblem) -> Iterator[Pattern]:
    """Steps b 1{x < s1 or x > s2}, from starts of three kinds.

    An activation such as relu has both thresholds on one side of 0, first on that of sign(m1 m2). A
    nearly odd one has them close together. One whose m1 is small, such as |x|, has them on either
    side of 0.
    """
    side = np.sign(problem.goal[0] * problem.goal[1]) or 1.0
    for end in (side, -side):
        for width in (1.0, 3.0):
            points = np.sort(end * np.array([0.5, 0.5 + width]))
            yield Pattern(points, OUTER, np.array([-2.0 * np.sign(problem.goal[1])]))
    yield from _narrow_patterns(problem)
    yield from _straddling_patterns(problem)


def _narrow_patterns(problem: MatchingProblem) -> Iterator[Pattern]:
    """The start for a great height b: a cell of small width w at s.

    It has m1 = -b w s phi(s), m2 = b w (1 - s^2) phi(s) and m3 near -b m2 / 2. So s is one of the
    two solutions of s^2 - s m2 / m1 = 1, that with the sign of -b m1.
    """
    first, second, third = problem.goal[:3]
    if first and second and third:
        height, ratio = -2 * third / second, second / first
        place = ratio / 2 - np.sign(first * height) * np.hypot(ratio / 2, 1.0)
        slope = abs(height * place * normal_density(place))
        if LEAST_GAP * slope < abs(first) < slope:
            points = place + abs(first) / slope / 2 * np.array([-1.0, 1.0])
            yield Pattern(points, OUTER, np.array([height]))


def _straddling_patterns(problem: MatchingProblem) -> Iterator[Pattern]:
    """The step with s2 = -s1 that has the m2 and the m3, and steps with unlike s1 and s2.

    With P the mass between s1 and s2, m2 = 2 b s2 phi(s2) and m3 / m2 = b (P - 1/2).
    """
    _, second, third = problem.goal[:3]
    if not second:
        return

    def excess(place: float) -> float:
        density = float(normal_density(np.array(place)))
        return 2 * ndtr(place) - 1.5 - third / second**2 * 2 * place * density

    within = excess(PLACES[0]) < 0 < excess(PLACES[1])
    place = brentq(excess, *PLACES) if within else 1.0
    for low, high in ((-place, place), (-0.5, 1.5), (-1.5, 0.5)):
        points = np.array([low, high])
        quantities = matched_quantities(points, OUTER[:, 0])[0]
        yield Pattern(points, OUTER, np.array([second / quantities[1]]))


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
