from __future__ import annotations

import numpy as np
import pytest

from hf_rmt.kernels import gaussian_moments, match_step_activation
from hf_rmt.kernels.families import one_level_patterns
from hf_rmt.kernels.problem import WITHOUT_TAU, MatchingProblem
from hf_rmt.kernels.steps import matched_quantities


@pytest.mark.parametrize("function", [np.abs, np.cos, np.square])
def test_even_activations_have_a_symmetric_step(function):
    step = match_step_activation(function, tau=1.0)
    assert step.thresholds[0] == pytest.approx(-step.thresholds[1])
    assert step.heights[2] == step.heights[0]
    moments, target = (
        gaussian_moments(lambda x: step(x), tau=1.0),
        gaussian_moments(function, tau=1.0),
    )
    assert (moments.m2, moments.m3) == pytest.approx((target.m2, target.m3))


@pytest.mark.parametrize("tau", [1e-4, 1e-3, 3e-3])
@pytest.mark.parametrize("name", ["gelu", "gelu_new", "quick_gelu", "silu", "mish", "hardswish"])
def test_nearly_linear_activations_have_a_narrow_cell(name, tau):
    """By quadrature around the cell, whose height over the rest is near 1 / tau."""
    step = match_step_activation(name, tau=tau)
    low, high = np.array(step.thresholds) / tau
    nodes, weights = np.polynomial.legendre.leggauss(20)
    xi = low + (high - low) * (nodes + 1) / 2
    jump = step.heights[1] - step.heights[0]
    density = weights * (high - low) / 2 * np.exp(-(xi**2) / 2) / np.sqrt(2 * np.pi)
    mass, first, second = (float(density @ part) for part in (xi**0, xi, xi**2 - 1))
    target = gaussian_moments(name, tau=tau)
    assert jump * first == pytest.approx(target.m1 * tau, rel=1e-8)
    assert jump * second == pytest.approx(target.m2 * tau**2, rel=1e-5)
    m3 = jump**2 * second / 2 - jump * mass * jump * second
    assert m3 == pytest.approx(target.m3 * tau**2, rel=1e-5)


def test_nearly_every_three_moments_have_a_step():
    """Random m1, m2 and m3 of either sign, over two or three decades."""
    rng = np.random.default_rng(0)
    for _ in range(40):
        signs, sizes = rng.choice([-1, 1], 3), 10 ** rng.uniform([-2, -2, -2], [0, 0, 1])
        goal = np.array([*signs * sizes, 1.0])
        problem = MatchingProblem("any", None, 1.0, goal)
        found, residual = problem.search(one_level_patterns(problem), WITHOUT_TAU)
        assert residual < 1e-10, goal
        np.testing.assert_allclose(
            matched_quantities(found.points, found.heights)[0][:3], goal[:3], atol=1e-9
        )
