from __future__ import annotations

import numpy as np
import pytest

from hf_rmt.kernels import exact_kernels, gaussian_moments
from hf_rmt.kernels.simulation import gaussian_mixture, simulated_kernels, ternary_weights


def norm(symmetric):
    return np.abs(np.linalg.eigvalsh(symmetric)).max()


def network_gradients(data, width, generator):
    """CK and NTK of f = w'relu(W_2 tanh(W_1 x) / sqrt d) / sqrt d from all its gradients."""
    mean = gaussian_moments("relu", tau=gaussian_moments("tanh", tau=1.0).tau_out).m0
    first, second = (generator.standard_normal((width, k)) for k in (data.shape[1], width))
    top = generator.standard_normal(width)
    rows = []
    for x in data:
        hidden = np.tanh(first @ x)
        below = hidden / np.sqrt(width)
        arguments = second @ below
        signal = top * (arguments > 0) / np.sqrt(width)
        lower = second.T @ signal * (1 - hidden**2) / np.sqrt(width)
        outputs = (np.maximum(arguments, 0) - mean) / np.sqrt(width)
        rows.append((outputs, np.outer(signal, below).ravel(), np.outer(lower, x).ravel()))
    features, *inner = (np.array(part) for part in zip(*rows, strict=True))
    conjugate = features @ features.T
    return conjugate, conjugate + sum(part @ part.T for part in inner)


def test_gradients_of_a_wide_network_have_the_exact_kernels():
    """At width 1500 and n = 8 an entry is off by some 1 / sqrt(1500) = 3 %; three networks."""
    data = gaussian_mixture((8, 30), seed=0)[0]
    exact = exact_kernels(data, ["tanh", "relu"], tau=1.0)
    generator = np.random.default_rng(1)
    drawn = [network_gradients(data, 1500, generator) for _ in range(3)]
    conjugate, tangent = (sum(kernels) / 3 for kernels in zip(*drawn, strict=True))
    assert norm(conjugate - exact.conjugate) < 0.07 * norm(exact.conjugate)
    assert norm(tangent - exact.tangent) < 0.07 * norm(exact.tangent)


@pytest.mark.parametrize(
    ("sparsity", "width"), [(None, 60_000), (0.5, 6_000)], ids=["gaussian", "ternary"]
)
def test_drawn_networks_approach_the_exact_kernels(sparsity, width):
    """The noise of a layer is some 2 sqrt(n / width) of its bulk; ternary entries add 1 / p."""
    data = gaussian_mixture((24, 600), seed=0)[0]
    activations = ["gelu", "relu"]
    exact = exact_kernels(data, activations)
    options = {"width": width, "sparsity": sparsity, "tangent": True}
    drawn = simulated_kernels(data, activations, **options, seed=2)
    bound = 3 * np.sqrt(len(data) / width)
    assert norm(drawn.conjugate - exact.conjugate) < bound * norm(exact.conjugate)
    assert norm(drawn.tangent - exact.tangent) < bound * norm(exact.tangent)


def test_a_number_repeats_the_network_and_the_ck_stands_alone():
    data = gaussian_mixture((10, 20), seed=0)[0]
    first = simulated_kernels(data, ["relu"], width=3000, seed=5)
    again = simulated_kernels(data, ["relu"], width=3000, tangent=True, seed=5)
    np.testing.assert_array_equal(first.conjugate, again.conjugate)
    assert first.tangent is None


def test_ternary_weights_have_variance_one():
    weights = ternary_weights((400, 500), sparsity=0.75, seed=0)
    np.testing.assert_allclose(np.unique(weights), [-2, 0, 2])
    assert np.mean(weights == 0) == pytest.approx(0.75, abs=0.005)
    assert weights.mean() == pytest.approx(0, abs=0.01)
    assert weights.var() == pytest.approx(1, abs=0.02)
    with pytest.raises(ValueError, match=r"sparsity must lie in \[0, 1\), got 1"):
        ternary_weights((2, 2), sparsity=1, seed=0)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_mixture_has_the_means_stated(classes):
    data, labels = gaussian_mixture((3000, 50), mean_norm=6.0, classes=classes, seed=0)
    means = np.array([data[labels == a].mean(0) for a in range(classes)]) * np.sqrt(50)
    np.testing.assert_allclose(np.linalg.norm(means, axis=1), 6, rtol=0.05)
    if classes == 2:
        np.testing.assert_allclose(means[0], -means[1], atol=0.2)
    spread = (data - means[labels] / np.sqrt(50)).var() * 50
    assert spread == pytest.approx(1, abs=0.02)
