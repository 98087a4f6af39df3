"""Families of step activations, and starting points for a search in these families.

A step activation is a piecewise constant function with a few values. The search is for one that
has the same Gaussian moments as another activation; see `GaussianMoments`.
"""

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
"""A search for a step activation starts with no threshold whose absolute value is larger than this.
The normal probability of larger values, 7e-6, is too small for the solver."""
PLACES = (1e-6, 8.0)
"""The interval in which s2 is searched, for a step activation with the thresholds -s2 and s2."""
OUTER = np.array([[1.0], [0.0], [1.0]])


def sign_pattern(problem: MatchingProblem) -> Pattern:
    """The step activation b 1{x > 0} that has the mean slope m1 which `problem` asks for.

    The height is b, and 1{x > 0} is 1 if x > 0, and otherwise 0. For m1, see `GaussianMoments`.
    """
    points = np.zeros(1)
    height = problem.goal[0] / normal_density(points)
    return Pattern(points, np.eye(2), np.concatenate([-height / 2, height / 2]))


def one_level_patterns(problem: MatchingProblem) -> Iterator[Pattern]:
    """Starting points of the search for a step activation b 1{x < s1 or x > s2}.

    The height is b, s1 and s2 are thresholds, and 1{...} is 1 if the condition holds, otherwise 0.
    There are three kinds of starting points. For an activation such as relu, both thresholds lie on
    the same side of 0; the side with the sign of m1 m2 is tried first (m1 and m2 are the moments of
    `GaussianMoments`). For a nearly odd activation, the two thresholds lie close together. If m1 is
    small, as for |x|, one threshold lies on each side of 0.
    """
    side = np.sign(problem.goal[0] * problem.goal[1]) or 1.0
    for end in (side, -side):
        for width in (1.0, 3.0):
            points = np.sort(end * np.array([0.5, 0.5 + width]))
            yield Pattern(points, OUTER, np.array([-2.0 * np.sign(problem.goal[1])]))
    yield from _narrow_patterns(problem)
    yield from _straddling_patterns(problem)


def _narrow_patterns(problem: MatchingProblem) -> Iterator[Pattern]:
    """At most one starting point of `one_level_patterns`, with a large height b.

    Both thresholds lie near a number s, at a small distance w from each other. The moments of this
    step activation (see `GaussianMoments`) are m1 = -b w s phi(s), m2 = b w (1 - s^2) phi(s) and m3
    near -b m2 / 2, where phi is the normal density. So s solves s^2 - s m2 / m1 = 1. Of the two
    solutions, the one with the sign of -b m1 is taken.
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
    """Three starting points of `one_level_patterns` with the thresholds s1 < 0 < s2.

    One has s2 = -s1, and two are not symmetric. If possible, the symmetric step activation has the
    wanted moments m2 and m3 (see `GaussianMoments`). For the height b, these are
    m2 = 2 b s2 phi(s2) and m3 = b m2 (P - 1/2). Here phi is the normal density, and P is the normal
    probability of the interval from s1 to s2.
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
    """Starting points for step activations b 1{x < r1 or r2 < x <= r3 or x > r4}.

    The height is b, and the thresholds have r4 - r3 = r2 - r1. 1{...} is 1 if the condition holds,
    otherwise 0. The search for a step activation that solves `problem` starts from these points.
    """
    ratio = 0.0 if problem.is_odd else problem.goal[2] / problem.goal[1]
    height = 2 * np.sqrt(ratio**2 + 1)
    basis, gaps = np.array([[1.0], [0.0], [1.0], [0.0], [1.0]]), np.array([0, 1, 0])
    for first in (-3.0, -2.0, -1.0, 0.0):
        for outer in (0.5, 1.5):
            for inner in (0.5, 1.5):
                points = first + np.cumsum([0.0, outer, inner, outer])
                yield Pattern(points, basis, np.array([height]), gaps, fixed=True)


def ternary_patterns(problem: MatchingProblem) -> Iterator[Pattern]:
    """Starting points for step activations b (1{x > s2} - 1{x <= s1}) of height b.

    The thresholds are s1 and s2, and 1{...} is 1 if the condition holds, otherwise 0. The search
    for a step activation that solves `problem` starts from these points.
    """
    height = np.sign(problem.goal[0])
    for first in (-2.0, -1.0, -0.5, 0.0):
        for width in (0.5, 1.0, 2.0):
            points = np.array([first, first + width])
            yield Pattern(points, np.array([[-1.0], [0.0], [1.0]]), np.array([height]))


def quantized_patterns(problem: MatchingProblem, levels: int) -> Iterator[Pattern]:
    """Two starting points of the search for a step activation with `levels` + 1 values.

    A step activation is piecewise constant. One starting point approximates the function
    (f + q) / 2, and the other approximates q; see `quantized`. Here f is the activation of
    `problem`, shifted and scaled to mean 0 and variance 1 for normal arguments, and q is
    `MatchingProblem.quadratic`.
    """
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
