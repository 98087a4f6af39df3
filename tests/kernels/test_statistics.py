from __future__ import annotations

import numpy as np
import pytest

from hf_rmt.kernels import (
    conjugate_kernel_equivalent,
    exact_kernels,
    mixture_statistics,
    ntk_equivalent,
)

P = 400
FIRST, SECOND = np.diag(np.linspace(0.5, 1.5, P)), np.diag(np.full(P, 1.3))


@pytest.fixture(scope="module")
def mixture():
    generator = np.random.default_rng(0)
    labels = np.repeat(["a", "b"], [250, 350])
    scales = np.where((labels == "a")[:, None], np.diag(FIRST), np.diag(SECOND)) ** 0.5
    return generator.standard_normal((600, P)) * scales / np.sqrt(P), labels


def test_given_covariances_are_transcribed(mixture):
    data, labels = mixture
    known = mixture_statistics(data, labels, covariances=[FIRST, SECOND])
    mean = (250 * FIRST + 350 * SECOND) / 600
    assert known.tau**2 == pytest.approx(np.trace(mean) / P)
    traces = [np.trace(c - mean) / np.sqrt(P) for c in (FIRST, SECOND)]
    np.testing.assert_allclose(known.traces, traces)
    products = [[np.trace(a @ b) / P for b in (FIRST, SECOND)] for a in (FIRST, SECOND)]
    np.testing.assert_allclose(known.products, products)
    np.testing.assert_allclose(known.psi[:250], (data[:250] ** 2).sum(1) - np.trace(FIRST) / P)
    np.testing.assert_array_equal(known.classes.sum(0), [250, 350])


def test_the_estimates_approach_the_covariances(mixture):
    """tr C / p has error sqrt(2 tr C^2 / n) / p = 2e-4; T some 1 % at these n and p."""
    data, labels = mixture
    known = mixture_statistics(data, labels, covariances=[FIRST, SECOND])
    found = mixture_statistics(data, labels)
    assert found.tau == pytest.approx(known.tau, abs=0.005)
    np.testing.assert_allclose(found.traces, known.traces, atol=0.15)
    np.testing.assert_allclose(found.products, known.products, rtol=0.03)
    np.testing.assert_allclose(found.classes.T @ found.psi, 0, atol=1e-10)
    total = found.classes @ found.traces / np.sqrt(P) + found.psi
    np.testing.assert_allclose(total, (data**2).sum(1) - found.tau**2, atol=1e-12)


def test_products_are_means_over_pairs_of_distinct_inputs(mixture):
    data = mixture[0][:5]
    squares = P * (data @ data.T) ** 2
    inside = (squares[2, 3] + squares[2, 4] + squares[3, 4]) / 3
    expected = [[squares[0, 1], squares[:2, 2:].mean()], [squares[:2, 2:].mean(), inside]]
    found = mixture_statistics(data, [0, 0, 1, 1, 1])
    np.testing.assert_allclose(found.products, expected)


def test_without_labels_there_is_one_class(mixture):
    found = mixture_statistics(mixture[0])
    assert found.classes.shape == (600, 1)
    np.testing.assert_allclose(found.traces, 0, atol=1e-12)


def test_shapes_that_do_not_fit_are_refused(mixture):
    data, labels = mixture
    with pytest.raises(ValueError, match=r"labels must have shape \(600,\), got \(5,\)"):
        mixture_statistics(data, labels[:5])
    with pytest.raises(ValueError, match="at least 2 inputs"):
        mixture_statistics(data, np.arange(600))
    with pytest.raises(ValueError, match=r"covariances must have shape \(2, 400, 400\)"):
        mixture_statistics(data, labels, covariances=[FIRST])
    with pytest.raises(ValueError, match="finite matrix"):
        mixture_statistics(data[0])


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_empty_data_are_refused_by_everything_that_takes_data(shape):
    calls = (
        lambda data: mixture_statistics(data),
        lambda data: conjugate_kernel_equivalent(data, ["tanh"]),
        lambda data: ntk_equivalent(data, ["tanh"]),
        lambda data: exact_kernels(data, ["tanh"]),
    )
    for call in calls:
        with pytest.raises(ValueError, match="at least one sample and one feature"):
            call(np.zeros(shape))
