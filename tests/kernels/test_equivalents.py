from __future__ import annotations

import numpy as np
import pytest

from hf_rmt.kernels import (
    StepActivation,
    conjugate_kernel_equivalent,
    exact_kernels,
    gaussian_moments,
    kernel_coefficients,
    mixture_statistics,
    ntk_equivalent,
)
from hf_rmt.kernels.equivalents import layer_moments
from hf_rmt.kernels.next_order import kernel_polynomials
from hf_rmt.kernels.simulation import gaussian_mixture

DEEP = ["gelu", "relu", "silu"]


def norm(symmetric):
    return np.abs(np.linalg.eigvalsh(symmetric)).max()


def errors(size, activations, **options):
    data, _ = gaussian_mixture((size, size), seed=0)
    exact = exact_kernels(data, activations)
    found = (
        conjugate_kernel_equivalent(data, activations, **options),
        ntk_equivalent(data, activations, **options),
    )
    pairs = zip(found, (exact.conjugate, exact.tangent), strict=True)
    return np.array([norm(ours - kernel) / norm(kernel) for ours, kernel in pairs])


def three_classes(n, p):
    generator = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2], n // 3)
    scales = np.array([0.95, 1.0, 1.05])[labels, None] + 0.2 * np.sign(np.arange(p) - p / 2)
    return generator.standard_normal((len(labels), p)) * scales / np.sqrt(p), labels


def test_the_recursions_are_the_published_ones():
    tau, alpha, beta, kappa = 0.9, (1.0, 0.0, 0.0, 1.0), (1.0, 0.0, 0.0), 0.9**2
    layers = kernel_coefficients(DEEP, tau=tau)
    assert (layers[0].tau, layers[0].alpha, layers[0].beta) == (tau, alpha, beta)
    for activation, layer in zip(DEEP, layers[1:], strict=True):
        m = gaussian_moments(activation, tau=tau)
        below = alpha
        alpha = (
            m.m1**2 * below[0],
            m.m1**2 * below[1] + m.m2**2 * below[3] ** 2 / 4,
            m.m1**2 * below[2] + m.m2**2 * below[0] ** 2 / 2,
            m.m3 * below[3],
        )
        beta = (
            alpha[0] + m.m1**2 * beta[0],
            alpha[1] + m.m1**2 * beta[1],
            alpha[2] + m.m1**2 * beta[2] + m.m2**2 * below[0] * beta[0],
        )
        tau = m.tau_out
        kappa = tau**2 + kappa * m.slope_second_moment
        np.testing.assert_allclose(layer.alpha, alpha)
        np.testing.assert_allclose(layer.beta, beta)
        assert (layer.tau, layer.kappa) == pytest.approx((tau, np.sqrt(kappa)))


def test_the_equivalents_are_a_naive_transcription():
    data, labels = three_classes(30, 50)
    known = mixture_statistics(data, labels)
    top = kernel_coefficients(DEEP, tau=known.tau)[-1]
    v = np.hstack([known.classes / np.sqrt(50), known.psi[:, None]])
    for function, (first, second, third), scale in (
        (conjugate_kernel_equivalent, top.alpha[:3], top.tau),
        (ntk_equivalent, top.beta, top.kappa),
    ):
        t = known.traces[:, None]
        a = np.block(
            [[second * t @ t.T + third * known.products, second * t], [second * t.T, second]]
        )
        published = scale**2 - known.tau**2 * first - known.tau**4 * third
        expected = first * data @ data.T + v @ a @ v.T + published * np.eye(30)
        options = {"statistics": known, "published": True}
        np.testing.assert_allclose(function(data, DEEP, **options), expected, atol=1e-12)
        corrected = expected + known.tau**4 * third * np.eye(30)
        np.testing.assert_allclose(function(data, DEEP, statistics=known), corrected, atol=1e-12)


def test_one_layer_is_the_single_layer_equivalent():
    """d1 X'X + d2 V A V' + d0 I with A = [[t t' + 2 T, t], [t', 1]], of Tiomoko Ali et al. 2022.

    In d0, d1, d2 the identity has no tau_0^4 a3: the two sources agree as corrected.
    """
    data, labels = three_classes(30, 50)
    known = mixture_statistics(data, labels)
    moments, t = gaussian_moments("gelu", tau=known.tau), known.traces[:, None]
    a = np.block([[t @ t.T + 2 * known.products, t], [t.T, np.ones((1, 1))]])
    v = np.hstack([known.classes / np.sqrt(50), known.psi[:, None]])
    single = moments.d1 * data @ data.T + moments.d2 * v @ a @ v.T + moments.d0 * np.eye(30)
    deep = conjugate_kernel_equivalent(data, ["gelu"], statistics=known)
    np.testing.assert_allclose(single, deep, atol=1e-13)


def test_the_published_identity_does_not_converge_and_the_corrected_one_does():
    """As published the distance tends to a3 tau_0^4, 0.047 of the CK's norm; ours falls."""
    published = [errors(size, ["relu"], published=True) for size in (128, 512)]
    corrected = [errors(size, ["relu"]) for size in (128, 512)]
    assert (published[1] > 0.055).all()
    assert (corrected[0] < 0.045).all()
    assert (corrected[1] < 0.6 * corrected[0]).all()
    assert (corrected[1] < 0.3 * published[1]).all()


@pytest.mark.parametrize("activations", [["relu"], ["tanh"], ["relu"] * 3, DEEP])
def test_the_next_order_is_of_order_one_over_p(activations):
    small, large = (errors(size, activations, order=2) for size in (96, 384))
    assert (small < 0.006).all()
    assert (large < small / 2.5).all()


@pytest.mark.parametrize("order", [1, 2])
def test_classes_of_different_covariance(order):
    """Differences of trace of order sqrt p, as the theorem wants; labels move them out of psi."""
    data, labels = three_classes(300, 300)
    exact = exact_kernels(data, DEEP[:2]).conjugate
    for known in (mixture_statistics(data, labels), mixture_statistics(data)):
        ours = conjugate_kernel_equivalent(data, DEEP[:2], statistics=known, order=order)
        assert norm(ours - exact) < (0.1, 0.01)[order - 1] * norm(exact)


def test_the_polynomials_begin_with_the_coefficients_of_the_theorem():
    moments = layer_moments(DEEP, tau=1.1)
    top = kernel_coefficients(DEEP, tau=1.1)[-1]
    leading = [(1, 0, 0), (0, 1, 1), (2, 0, 0)]
    cross, diagonal = kernel_polynomials(moments, tangent=False)
    np.testing.assert_allclose([cross[key] for key in leading], top.alpha[:3])
    assert diagonal[0, 0, 0] == pytest.approx(top.tau**2)
    assert diagonal[0, 1, 0] == pytest.approx(top.alpha[3])
    cross, diagonal = kernel_polynomials(moments, tangent=True)
    np.testing.assert_allclose([cross[key] for key in leading], top.beta)
    assert diagonal[0, 0, 0] == pytest.approx(top.kappa**2)


def test_arguments_out_of_range_are_refused():
    data, _ = gaussian_mixture((10, 20), seed=0)
    step = StepActivation((0.0,), (-1.0, 1.0))
    with pytest.raises(ValueError, match="jumps has no NTK"):
        ntk_equivalent(data, [step])
    assert np.isfinite(conjugate_kernel_equivalent(data, [step], order=2)).all()
    with pytest.raises(ValueError, match="order must be 1 or 2, and 1 with published=True, got 3"):
        conjugate_kernel_equivalent(data, ["relu"], order=3)
    with pytest.raises(ValueError, match="1 with published=True, got 2"):
        ntk_equivalent(data, ["relu"], order=2, published=True)
    with pytest.raises(ValueError, match="10 inputs, got 9"):
        ntk_equivalent(data, ["relu"], statistics=mixture_statistics(data[:9]))
    with pytest.raises(ValueError, match="each hidden layer, got 'relu'"):
        conjugate_kernel_equivalent(data, "relu")
