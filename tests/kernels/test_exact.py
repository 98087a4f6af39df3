from __future__ import annotations

import numpy as np
import pytest
from numpy.polynomial.hermite_e import hermegauss
from scipy.special import erf

from hf_rmt.kernels import StepActivation, exact_kernels
from hf_rmt.kernels.exact import _check_correlations
from hf_rmt.kernels.simulation import gaussian_mixture


@pytest.fixture(scope="module")
def data():
    return gaussian_mixture((30, 60), seed=0)[0] * 1.3


def pair_average(function, covariance):
    """E f(u) f(v) by a product rule."""
    nodes, weights = hermegauss(90)
    root = np.linalg.cholesky(covariance)
    u = root[0, 0] * nodes[:, None] + 0 * nodes
    v = root[1, 0] * nodes[:, None] + root[1, 1] * nodes
    return weights @ (function(u) * function(v)) @ weights / (2 * np.pi)


@pytest.mark.parametrize("depth", [1, 3])
def test_arc_cosine_kernels_are_the_series(data, depth):
    closed = exact_kernels(data, ["relu"] * depth)
    series = exact_kernels(data, [lambda x: np.maximum(x, 0)] * depth)
    np.testing.assert_allclose(closed.conjugate, series.conjugate, atol=1e-12)
    np.testing.assert_allclose(closed.tangent, series.tangent, atol=1e-12)


def test_a_pair_of_inputs_by_two_dimensional_quadrature(data):
    kernels = exact_kernels(data, [lambda x: np.sin(x - 0.3)], tau=1.1)
    gram = data @ data.T
    nodes, weights = hermegauss(90)
    mean = weights @ np.sin(1.1 * nodes - 0.3) / np.sqrt(2 * np.pi)
    for i, j in ((0, 1), (4, 29)):
        block = gram[np.ix_([i, j], [i, j])]
        value = pair_average(lambda x: np.sin(x - 0.3) - mean, block)
        slope = pair_average(lambda x: np.cos(x - 0.3), block)
        assert kernels.conjugate[i, j] == pytest.approx(value, abs=1e-9)
        assert kernels.tangent[i, j] == pytest.approx(value + gram[i, j] * slope, abs=1e-9)
    arguments = np.sqrt(gram[3, 3]) * nodes - 0.3
    diagonal = weights @ (np.sin(arguments) - mean) ** 2 / np.sqrt(2 * np.pi)
    assert kernels.conjugate[3, 3] == pytest.approx(diagonal, abs=1e-9)


def test_the_kernel_of_the_sign_is_the_arcsine(data):
    step = StepActivation((0.0,), (-1.0, 1.0))
    norms = np.linalg.norm(data, axis=1)
    cosine = data @ data.T / np.outer(norms, norms)
    np.fill_diagonal(cosine, 1.0)
    for activation in (step, "sign"):
        kernels = exact_kernels(data, [activation])
        np.testing.assert_allclose(kernels.conjugate, 2 / np.pi * np.arcsin(cosine), atol=1e-10)
        assert kernels.tangent is None


def test_the_scale_is_that_of_the_inputs_unless_given(data):
    scale = np.sqrt((data**2).sum(1).mean())
    default, given = exact_kernels(data, ["gelu"]), exact_kernels(data, ["gelu"], tau=scale)
    np.testing.assert_array_equal(default.conjugate, given.conjugate)
    other = exact_kernels(data, ["gelu"], tau=2 * scale)
    assert not np.allclose(default.conjugate, other.conjugate)


def test_inputs_that_are_too_close_or_zero_are_refused(data):
    twice = np.concatenate([data, 1.1 * data[:1]])
    with pytest.raises(ValueError, match=r"correlate less than 0\.73 .* got 1\.0000"):
        exact_kernels(twice, ["gelu"])
    assert np.isfinite(exact_kernels(twice, ["relu"]).tangent).all()
    for name in ("gelu", "relu"):
        with pytest.raises(ValueError, match="positive norm"):
            exact_kernels(np.concatenate([data, 0 * data[:1]]), [name])
    with pytest.raises(ValueError, match="pass a list"):
        exact_kernels(data, "relu")


RATIOS = (2.0, 10.0, 30.0)


def of_unequal_norms(ratio, count=30):
    """Inputs that correlate by 0.5 or so, with norms from 1 / sqrt(ratio) to sqrt(ratio)."""
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((count, 200)) + rng.standard_normal(200)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return directions * np.geomspace(ratio**-0.5, ratio**0.5, count)[:, None]


def cosines(kernel):
    norms = np.sqrt(np.diag(kernel))
    found = np.clip(kernel / np.outer(norms, norms), -1.0, 1.0)
    np.fill_diagonal(found, 1.0)
    return found


def erf_kernels(kernel, tangent):
    """Williams 1997: E erf(u) erf(v) = 2 / pi arcsin(2 K_ij / sqrt((1 + 2 K_ii) (1 + 2 K_jj)))."""
    sizes = np.outer(1 + 2 * np.diag(kernel), 1 + 2 * np.diag(kernel))
    raised = 2 / np.pi * np.arcsin(2 * kernel / np.sqrt(sizes))
    slopes = 4 / np.pi / np.sqrt(sizes - 4 * kernel**2)
    return raised, raised + tangent * slopes


def assert_near(found, expected, rtol):
    """Every entry, as a part of the geometric mean of the two entries on the diagonal."""
    norms = np.sqrt(np.diag(expected))
    assert np.abs((found - expected) / np.outer(norms, norms)).max() < rtol


@pytest.mark.parametrize("count", [30, 150])
@pytest.mark.parametrize("ratio", RATIOS)
def test_norms_may_differ_by_any_factor(ratio, count):
    """With 30 inputs some layers have a row for each input; with 150 a table has them all."""
    data = of_unequal_norms(ratio, count)
    gram = data @ data.T
    sign = exact_kernels(data, ["sign"])
    assert_near(sign.conjugate, 2 / np.pi * np.arcsin(cosines(gram)), 1e-10)
    relu, kinked = exact_kernels(data, ["relu"]), exact_kernels(data, [lambda x: np.maximum(x, 0)])
    assert_near(kinked.conjugate, relu.conjugate, 1e-10)
    assert_near(kinked.tangent, relu.tangent, 1e-10)
    conjugate, tangent = gram, gram
    for depth in (1, 2):
        conjugate, tangent = erf_kernels(conjugate, tangent)
        found = exact_kernels(data, [erf] * depth)
        assert_near(found.conjugate, conjugate, 1e-10)
        assert_near(found.tangent, tangent, 1e-10)


@pytest.mark.parametrize("ratio", RATIOS)
def test_steps_of_inputs_of_unequal_norms_are_those_of_a_simulation(ratio):
    """200,000 draws, |s| <= 2: entries have a standard error below 4 / sqrt(200,000) = 0.009."""
    data = of_unequal_norms(ratio, 10)
    step = StepActivation((-0.3, 0.5), (1.0, 0.0, 2.0))
    found = exact_kernels(data, [step], tau=1.0).conjugate
    root = np.linalg.cholesky(data @ data.T)
    normal = np.random.default_rng(1).standard_normal((200_000, 10)) @ root.T
    values = step(normal) - step.moments_at(1.0).m0
    np.testing.assert_allclose(found, values.T @ values / len(values), atol=4 * 0.009)


def test_a_large_mean_is_subtracted_without_rounding(data):
    plain, shifted = (
        exact_kernels(data, [lambda x, shift=shift: np.tanh(x) + shift]) for shift in (0.0, 1e6)
    )
    assert_near(shifted.conjugate, plain.conjugate, 1e-8)


def test_a_matrix_that_no_features_have_is_refused():
    _check_correlations(np.array([[1.0, -2.0], [-2.0, 4.0]]), "relu")
    for value in (2.1, -1e9, np.nan):
        with pytest.raises(ValueError, match=r"inputs 0 and 1 after 'relu'.* similar norms"):
            _check_correlations(np.array([[1.0, value], [value, 4.0]]), "relu")
