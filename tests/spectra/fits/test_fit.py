from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hf_rmt.spectra import DoubleBulk, Phase, fit_double_bulk
from hf_rmt.spectra.ensembles import (
    double_bulk_matrix,
    eigenvalues_of,
    marchenko_pastur_matrix,
)

SHAPE = (600, 300)
TRUTH = DoubleBulk(mixing=0.4, variances=(4.0, 1.0), aspect_ratio=0.5)
SPIKES = TRUTH.critical_points[-1] * np.array([40.0, 9.0, 8.9, 3.0, 1.8])
WEIGHT = double_bulk_matrix(SHAPE, mixing=0.4, variances=(4.0, 1.0), spikes=SPIKES, seed=0)
EIGENVALUES = eigenvalues_of(WEIGHT)


@pytest.fixture(scope="module")
def fit():
    return fit_double_bulk(EIGENVALUES, SHAPE)


def parameters(fit):
    return (fit.law.mixing, *fit.law.variances)


def test_the_truth_is_found(fit):
    assert (fit.n_spikes, fit.phase, fit.converged, fit.reason) == (5, Phase.SPIKED, True, "")
    assert parameters(fit) == pytest.approx((0.4, 4.0, 1.0), rel=0.05)
    assert fit.distance < 0.02
    assert fit.law.aspect_ratio == pytest.approx(295 / 600)
    np.testing.assert_array_equal(fit.eigenvalues, EIGENVALUES)
    np.testing.assert_array_equal(fit.is_signal, fit.upper_edge < EIGENVALUES)


def test_the_spikes_are_recovered(fit):
    """A sample spike has relative deviation sqrt(2 / N) = 0.06; the weakest twice that."""
    assert fit.spikes == pytest.approx(SPIKES, rel=0.25)
    assert np.all(np.diff(fit.spikes) < 0)
    assert np.all(fit.spikes < fit.eigenvalues[:5])


def test_a_signal_eigenvalue_inside_the_bulk_stands_for_itself(fit):
    other = replace(fit, is_signal=np.arange(300) < 40)
    assert np.isfinite(other.spikes).all()
    assert other.spikes[-1] == EIGENVALUES[39]


def test_many_spikes_do_not_bias_the_variances():
    """Thirty spikes take 7.5 % of the rows; ten draws know the bias to about 0.5 %."""
    found = []
    for seed in range(10):
        law = DoubleBulk(mixing=0.5, variances=(3.0, 1.0), aspect_ratio=1.0)
        spikes = law.critical_points[-1] * np.geomspace(2, 100, 30)
        weight = double_bulk_matrix(
            (400, 400), mixing=0.5, variances=(3.0, 1.0), spikes=spikes, seed=seed
        )
        fit = fit_double_bulk(eigenvalues_of(weight), (400, 400))
        assert fit.n_spikes == 30
        found.append(parameters(fit))
    assert np.median(found, axis=0) == pytest.approx([0.5, 3.0, 1.0], rel=0.02)


def test_the_noise_law_is_that_of_a_smaller_matrix(fit):
    law = fit.noise_law
    assert law.aspect_ratio == pytest.approx(295 / 595)
    assert law.mixing == fit.law.mixing
    assert law.variances == pytest.approx([v * 595 / 600 for v in fit.law.variances])
    noise = np.sort(EIGENVALUES[5:])
    distance = np.abs(law.cdf(noise) - (np.arange(295) + 0.5) / 295).max() + 0.5 / 295
    assert fit.distance == pytest.approx(distance)


def test_moments_of_the_whole_population(fit):
    """The sample's moments have relative errors of order 1 / N, the spikes' of sqrt(2 / N)."""
    for order, tolerance in ((1, 0.02), (2, 0.05)):
        assert fit.moment(order) == pytest.approx(fit.empirical_moment(order), rel=tolerance)
        assert fit.empirical_moment(order) == pytest.approx(np.mean(EIGENVALUES**order))
    assert fit.moment(0) == 1.0


@pytest.mark.parametrize("published", [False, True])
def test_moments_of_the_bulk_are_those_of_its_law_and_its_noise(published):
    fit = fit_double_bulk(EIGENVALUES, SHAPE, published=published)
    for order in (1, 2, 3):
        assert fit.moment(order, bulk=True) == fit.noise_law.moment(order)
        measured = np.mean(EIGENVALUES[~fit.is_signal] ** order)
        assert fit.empirical_moment(order, bulk=True) == pytest.approx(measured)


def test_moments_of_the_bulk_agree_where_the_law_holds(fit):
    """Relative errors are of order 1 / N = 0.002 times the order squared."""
    for order in (1, 2, 3):
        measured = fit.empirical_moment(order, bulk=True)
        assert fit.moment(order, bulk=True) == pytest.approx(measured, rel=0.005 * order**2)


def test_null_directions_are_no_noise():
    values = np.concatenate([EIGENVALUES[:-10], np.zeros(10)])
    noise = fit_double_bulk(values, SHAPE).noise
    assert len(noise) == 300 - 5 - 10
    assert noise[-1] > 0


def test_energies(fit):
    assert fit.signal_energy == pytest.approx(EIGENVALUES[:5].sum() / EIGENVALUES.sum())
    assert fit.stable_rank == pytest.approx(EIGENVALUES.sum() / EIGENVALUES[0])


@pytest.mark.parametrize("published", [False, True])
def test_the_order_of_the_eigenvalues_and_the_orientation_do_not_matter(published):
    fit = fit_double_bulk(EIGENVALUES, SHAPE, published=published)
    shuffled = np.random.default_rng(0).permutation(EIGENVALUES)
    shuffled.setflags(write=False)
    other = fit_double_bulk(shuffled, SHAPE[::-1], published=published)
    assert parameters(other) == parameters(fit)
    np.testing.assert_array_equal(other.is_signal, fit.is_signal)


@pytest.mark.parametrize("factor", [1e-140, 1e-6, 1e-3, 0.1, 7.0, 1e6, 1e140])
def test_scaling_the_weight_scales_the_variances(fit, factor):
    scaled = fit_double_bulk(eigenvalues_of(factor * WEIGHT), SHAPE)
    np.testing.assert_array_equal(scaled.is_signal, fit.is_signal)
    assert scaled.law.mixing == pytest.approx(fit.law.mixing, rel=1e-6)
    scale = factor**2
    assert scaled.law.variances == pytest.approx([scale * v for v in fit.law.variances], rel=1e-6)
    assert scaled.upper_edge == pytest.approx(scale * fit.upper_edge, rel=1e-6)
    assert scaled.spikes == pytest.approx(scale * fit.spikes, rel=1e-6)
    assert (scaled.distance, scaled.residual) == pytest.approx(
        (fit.distance, fit.residual), rel=1e-5
    )


def rotated(weight):
    generator = np.random.default_rng(1)
    left, right = (np.linalg.qr(generator.standard_normal((n, n)))[0] for n in weight.shape)
    return left @ weight @ right


@pytest.mark.parametrize(
    "change",
    [np.transpose, rotated, lambda w: w[::-1, np.random.default_rng(2).permutation(w.shape[1])]],
    ids=["transpose", "rotation", "permutation"],
)
@pytest.mark.parametrize("ratio", [1.0, 1.4, 4.0, 20.0])
def test_transposing_rotating_and_permuting_change_nothing(change, ratio):
    weight = double_bulk_matrix((300, 200), mixing=0.3, variances=(ratio, 1.0), seed=3)
    weight[:, 0] *= 20
    fit = fit_double_bulk(eigenvalues_of(weight), weight.shape)
    other = fit_double_bulk(eigenvalues_of(change(weight)), change(weight).shape)
    np.testing.assert_array_equal(other.is_signal, fit.is_signal)
    assert parameters(other) == pytest.approx(parameters(fit), rel=1e-6)


def test_noise_is_random_and_a_wrong_bulk_is_said_to_be():
    noise = fit_double_bulk(eigenvalues_of(marchenko_pastur_matrix(SHAPE, seed=4)), SHAPE)
    steps = np.r_[np.linspace(1.0, 1.6, 75), np.linspace(3.0, 4.6, 75)]
    assert (noise.phase, noise.n_spikes, noise.reason) == (Phase.RANDOM, 0, "")
    assert "Kolmogorov distance" in fit_double_bulk(steps, (300, 150)).reason


def test_null_directions_are_neither_noise_nor_signal():
    weight = WEIGHT.copy()
    weight[:, -20:] = 0.0
    fit = fit_double_bulk(eigenvalues_of(weight), SHAPE)
    assert fit.n_spikes == 5
    assert fit.law.aspect_ratio == pytest.approx(275 / 600)
    assert fit.residual < 1.8
    assert fit.moment(1) == pytest.approx(fit.empirical_moment(1), rel=0.02)


def test_eigenvalues_of_single_precision_will_do(fit):
    noise = 1e-7 * EIGENVALUES[0] * np.random.default_rng(0).standard_normal(len(EIGENVALUES))
    single = fit_double_bulk((EIGENVALUES + noise).astype(np.float32), SHAPE)
    assert single.n_spikes == fit.n_spikes
    assert parameters(single) == pytest.approx(parameters(fit), rel=1e-3)
    square = marchenko_pastur_matrix((300, 300), spikes=[30.0], seed=0).astype(np.float32)
    gram = np.linalg.eigvalsh(square.T @ square)
    rounded = fit_double_bulk(np.r_[-1e-6, gram[1:]], (300, 300))
    assert (rounded.n_spikes, rounded.eigenvalues[-1]) == (1, 0.0)


def test_the_input_is_left_alone():
    values = EIGENVALUES.copy()
    values.setflags(write=False)
    fit = fit_double_bulk(values, SHAPE)
    assert fit.eigenvalues is not values
