from __future__ import annotations

import numpy as np
import pytest
from numpy.polynomial.hermite_e import hermegauss

from hf_rmt.kernels import StepActivation, exact_kernels
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
