from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from hf_rmt.spectra import DoubleBulk, Phase, fit_double_bulk, fit_power_law_bulk
from hf_rmt.spectra.ensembles import (
    double_bulk_matrix,
    eigenvalues_of,
    heavy_tailed_matrix,
    low_rank_matrix,
    marchenko_pastur_matrix,
    power_law_matrix,
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


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize(
    ("eigenvalues", "shape", "reason"),
    [
        (np.full(100, np.nan), (200, 100), "nan or inf"),
        (np.r_[np.inf, np.ones(99)], (200, 100), "nan or inf"),
        (np.zeros(100), (200, 100), "zero"),
        (eigenvalues_of(np.full((100, 100), 0.3)), (100, 100), "rank 1 of 100"),
        (eigenvalues_of(low_rank_matrix((120, 100), rank=20, seed=0)), (120, 100), "rank 20"),
        (np.array([2.0]), (1, 300), "1 eigenvalues, fewer than the 24"),
        (np.arange(1.0, 24.0), (23, 23), "23 eigenvalues"),
        (np.zeros(0), (0, 10), "0 eigenvalues"),
    ],
    ids=["nan", "inf", "zero", "rank one", "low rank", "1 x n", "small", "empty"],
)
def test_a_degenerate_weight_has_a_reason_and_no_law(eigenvalues, shape, reason, published):
    fit = fit_double_bulk(eigenvalues, shape, published=published)
    assert fit.phase is Phase.DEGENERATE
    assert reason in fit.reason
    assert fit.law is None
    assert fit.noise_law is None
    assert (fit.n_spikes, fit.converged, len(fit.spikes)) == (0, False, 0)
    assert np.isnan([fit.upper_edge, fit.residual, fit.distance, fit.moment(1)]).all()
    assert fit.shape == (max(shape), min(shape))


STRANGE = {
    "Student 1": eigenvalues_of(heavy_tailed_matrix((200, 150), exponent=1.0, seed=0)),
    "Student 2": eigenvalues_of(heavy_tailed_matrix((200, 150), exponent=2.0, seed=0)),
    "Student 3": eigenvalues_of(heavy_tailed_matrix((200, 150), exponent=3.0, seed=0)),
    "power law 0.3": eigenvalues_of(power_law_matrix((200, 150), exponent=0.3, seed=0)),
    "power law 0.5": eigenvalues_of(power_law_matrix((200, 150), exponent=0.5, seed=0)),
    "power law 1": eigenvalues_of(power_law_matrix((200, 150), exponent=1.0, seed=0)),
    "power law 2": eigenvalues_of(power_law_matrix((200, 150), exponent=2.0, seed=0)),
    "geometric": np.geomspace(1e-10, 1, 150),
    "a few zeros": np.r_[eigenvalues_of(marchenko_pastur_matrix((200, 140), seed=0)), np.zeros(10)],
    "a giant": np.r_[1e9, eigenvalues_of(marchenko_pastur_matrix((200, 149), seed=0))],
}


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("shape", [(200, 150), (150, 150), (5000, 150)], ids=str)
@pytest.mark.parametrize("name", STRANGE)
def test_every_spectrum_gets_finite_numbers_in_bounded_time(name, shape, published):
    start = time.process_time()
    fit = fit_double_bulk(STRANGE[name], shape, published=published)
    assert time.process_time() - start < 2.0
    assert fit.phase is not Phase.DEGENERATE
    numbers = [fit.upper_edge, fit.residual, fit.distance, fit.moment(1), *parameters(fit)]
    assert np.isfinite([*numbers, *fit.spikes]).all()
    assert len(fit.spikes) == fit.n_spikes
    assert (fit.phase is Phase.HEAVY_TAILED) == (fit.reason != "")


@pytest.mark.parametrize("name", ["Student 1", "power law 0.5", "power law 1", "power law 2"])
def test_heavy_tails_are_called_so(name):
    assert fit_double_bulk(STRANGE[name], (200, 150)).phase is Phase.HEAVY_TAILED


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


@pytest.mark.parametrize(
    ("eigenvalues", "message"),
    [
        (np.ones(5), r"shape \(600, 300\) has 300 eigenvalues, got an array of shape \(5,\)"),
        (np.ones((300, 1)), "pass the squared singular values"),
        (np.r_[-1.0, np.ones(299)], "cannot be negative, got -1"),
        (None, r"300 eigenvalues, got an array of shape \(\)"),
    ],
)
def test_eigenvalues_that_cannot_be_are_refused(eigenvalues, message):
    with pytest.raises(ValueError, match=message):
        fit_double_bulk(eigenvalues, SHAPE)


@pytest.mark.parametrize("shape", [None, 300, (300,), (600.0, 300), (2, 600, 300), "ab"])
def test_a_shape_that_is_none_is_refused(shape):
    with pytest.raises(TypeError, match="shape must be the two sides of the weight"):
        fit_double_bulk(np.ones(300), shape)


def layers(folder):
    """Spectra of the matrices in the repeated blocks of a checkpoint."""
    tensors = load_file(next(folder.rglob("model.safetensors")))
    names = [name for name in tensors if ".layer." in name and tensors[name].ndim == 2]
    weights = [tensors[name].astype(float) for name in names]
    return [fit_double_bulk(eigenvalues_of(weight), weight.shape) for weight in weights]


def check_layers(fits):
    assert np.median([fit.distance for fit in fits]) <= 0.04
    assert np.median([fit.n_spikes for fit in fits]) >= 5
    assert all(fit.n_spikes <= fit.shape[1] / 6 for fit in fits)
    assert np.mean([fit.phase is Phase.SPIKED for fit in fits]) > 0.8


def test_layers_of_a_trained_bert(trained_bert):
    check_layers(layers(trained_bert))


def test_layers_of_a_trained_vision_transformer(real_data):
    check_layers(layers(real_data / "models" / "dinov2-small"))


def mlp_distances(folder, names):
    """Kolmogorov distances of the power law and of PDB on the MLP layers of a checkpoint."""
    tensors = load_file(next(folder.rglob("model.safetensors")))
    found = []
    for name, tensor in tensors.items():
        if any(part in name for part in names) and tensor.ndim == 2 and "attention" not in name:
            tall = (
                tensor.astype(float) if len(tensor) >= tensor.shape[1] else tensor.T.astype(float)
            )
            values = np.linalg.eigvalsh(tall.T @ tall)
            fits = (fit(values, tensor.shape) for fit in (fit_power_law_bulk, fit_double_bulk))
            found.append([fit.distance for fit in fits])
    return np.median(found, axis=0)


def test_a_spread_population_fits_the_mlps_of_a_trained_bert(trained_bert):
    spread, double = mlp_distances(trained_bert, (".intermediate.dense", ".output.dense"))
    assert spread <= 0.02 < 0.03 < double


def test_a_spread_population_fits_the_mlps_of_a_trained_vision_transformer(real_data):
    spread, double = mlp_distances(real_data / "models" / "dinov2-small", (".mlp.fc",))
    assert spread <= 0.02 < 0.03 < double
