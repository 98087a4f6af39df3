from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import approx_fprime

from hf_rmt.spectra import (
    DoubleBulk,
    MarchenkoPastur,
    Phase,
    PowerLawBulk,
    fit_double_bulk,
    fit_power_law_bulk,
)
from hf_rmt.spectra.ensembles import eigenvalues_of, heavy_tailed_matrix, marchenko_pastur_matrix
from hf_rmt.spectra.fits.estimation import contour_problem
from hf_rmt.spectra.fits.power_law_bulk import _Problem, estimate_power_law

LAWS = [
    PowerLawBulk(-1.0, (8.0, 1.0), 0.5),
    PowerLawBulk(0.0, (3.0, 1.0), 0.25),
    PowerLawBulk(2.0, (6.0, 0.5), 1.0),
]


def sample(law, rows, seed, spikes=()):
    """A matrix whose variances are the population's quantiles, and some spikes."""
    columns = round(rows * law.aspect_ratio)
    q = (np.arange(columns - len(spikes)) + 0.5) / (columns - len(spikes))
    k, (high, low) = law.exponent, law.variances
    tau = low * (high / low) ** q if k == 0 else (low**k + q * (high**k - low**k)) ** (1 / k)
    noise = np.random.default_rng(seed).standard_normal((rows, columns))
    return noise * np.sqrt(np.concatenate([spikes, tau]) / rows)


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_the_population_has_the_moments_of_its_density(law):
    high, low = law.variances
    mass = quad(lambda tau: tau ** (law.exponent - 1), low, high)[0]
    for order in (1, 2, 3):
        integral = quad(lambda tau, n=order: tau ** (law.exponent - 1 + n), low, high)[0]
        assert law.weights @ law.atoms**order == pytest.approx(integral / mass, rel=1e-6)
    assert law.weights.sum() == pytest.approx(1)


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_a_large_matrix_follows_the_law(law):
    """Linear statistics fluctuate by 1 / p; the cdf of 600 eigenvalues by about log p / p."""
    rows = round(600 / law.aspect_ratio)
    values = np.sort(eigenvalues_of(sample(law, rows, seed=0)))
    levels = (np.arange(600) + 0.5) / 600
    assert np.abs(law.cdf(values) - levels).max() < 0.01
    assert law.moment(2) == pytest.approx(np.mean(values**2), rel=0.02)
    assert values[-1] == pytest.approx(law.upper_edge, rel=0.05)


@pytest.mark.parametrize(("high", "ratio"), [(1000.0, 0.03), (300.0, 0.1)])
def test_a_wide_range_is_one_bulk_for_long_matrices(high, ratio):
    """Nodes that are far apart would have bumps of their own, with gaps between them."""
    law = PowerLawBulk(0.0, (high, 1.0), ratio)
    values = np.sort(eigenvalues_of(sample(law, round(200 / ratio), seed=0)))
    levels = (np.arange(200) + 0.5) / 200
    assert np.abs(law.cdf(values) - levels).max() < 0.02
    assert law.quantile(0.5) == pytest.approx(values[100], rel=0.05)


@pytest.mark.parametrize("ratio", [0.05, 0.25, 1.0])
@pytest.mark.parametrize("exponent", [-2.0, -1.0, 0.0, 1.0])
@pytest.mark.parametrize("high", [10.0, 1000.0])
def test_the_density_has_the_mass_and_the_mean_of_the_law(exponent, high, ratio):
    """Both by the trapezoidal rule in the square root of an eigenvalue.

    For negative exponents the nodes near the upper end have tiny weights and may keep bumps of
    their own. They hold little mass but several percent of the mean.
    """
    law = PowerLawBulk(exponent, (high, 1.0), ratio)
    lower, upper = np.sqrt(law.bulk_edges[0])
    root = (lower + upper) / 2 - (upper - lower) / 2 * np.cos(np.linspace(0, np.pi, 4001)[1:-1])
    density = 2 * root * law.pdf(root**2)
    assert np.trapezoid(density, root) == pytest.approx(1, abs=5e-3)
    assert np.trapezoid(root**2 * density, root) == pytest.approx(
        law.moment(1), rel=1e-2 if exponent >= 0 else 0.1
    )


@pytest.mark.parametrize("scale", [1e-200, 1e-40, 1e-12, 1e40])
def test_the_scale_of_a_law_does_not_matter(scale):
    plain = LAWS[0]
    law = plain.rescaled(scale)
    np.testing.assert_allclose(law.bulk_edges / scale, plain.bulk_edges, rtol=1e-9)
    np.testing.assert_allclose(law.quantile(0.3) / scale, plain.quantile(0.3), rtol=1e-9)


@pytest.mark.parametrize("exponent", [50.0, -50.0, 500.0, -500.0])
def test_a_steep_density_has_edges(exponent):
    """The weights of one end underflow; the other end is nearly a law of one variance."""
    law = PowerLawBulk(exponent, (10.0, 1.0), 0.5)
    assert 0 < law.bulk_edges[0, 0] < law.bulk_edges[0, 1]
    single = MarchenkoPastur(float(law.atoms @ law.weights), 0.5)
    np.testing.assert_allclose(law.quantile([0.2, 0.8]), single.quantile([0.2, 0.8]), rtol=0.02)


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_the_law_is_found_with_its_spikes(law):
    rows = round(400 / law.aspect_ratio)
    spikes = law.critical_points[-1] * np.array([20.0, 6.0, 2.5])
    weight = sample(law, rows, seed=1, spikes=spikes)
    fit = fit_power_law_bulk(eigenvalues_of(weight), weight.shape)
    assert (fit.n_spikes, fit.phase, fit.converged) == (3, Phase.SPIKED, True)
    assert fit.distance < 0.01
    assert fit.residual < 1.8
    assert fit.law.variances[0] == pytest.approx(law.variances[0], rel=0.2)
    assert fit.law.atoms @ fit.law.weights == pytest.approx(law.atoms @ law.weights, rel=0.05)
    assert fit.spikes == pytest.approx(spikes, rel=0.25)


def test_it_holds_where_two_variances_do_not():
    law = PowerLawBulk(-1.0, (8.0, 1.0), 0.5)
    values = eigenvalues_of(sample(law, 1200, seed=2))
    spread, double = (fit(values, (1200, 600)) for fit in (fit_power_law_bulk, fit_double_bulk))
    assert spread.n_spikes <= 1 < double.n_spikes
    assert spread.residual < 1.8 < double.residual


def test_one_variance_is_a_narrow_range():
    weight = marchenko_pastur_matrix((600, 300), variance=2.0, spikes=(20.0,), seed=0)
    fit = fit_power_law_bulk(eigenvalues_of(weight), (600, 300))
    assert fit.n_spikes == 1
    exact = DoubleBulk(0.0, (2.0, 2.0), 0.5).upper_edge
    assert fit.law.upper_edge == pytest.approx(exact, rel=0.03)


@pytest.mark.parametrize("factor", [1e-140, 1e-3, 1e140])
def test_scaling_the_weight_scales_the_range(factor):
    weight = sample(LAWS[0], 400, seed=0, spikes=[60.0])
    fit = fit_power_law_bulk(eigenvalues_of(weight), weight.shape)
    scaled = fit_power_law_bulk(eigenvalues_of(factor * weight.T), weight.shape[::-1])
    assert scaled.n_spikes == fit.n_spikes == 1
    assert scaled.law.exponent == pytest.approx(fit.law.exponent, rel=1e-4)
    square = factor**2
    assert scaled.law.variances == pytest.approx([square * v for v in fit.law.variances], rel=1e-4)


def test_heavy_tails_get_finite_numbers():
    values = eigenvalues_of(heavy_tailed_matrix((200, 150), exponent=1.0, seed=0))
    fit = fit_power_law_bulk(values, (200, 150))
    assert np.isfinite([fit.upper_edge, fit.distance, fit.residual, *fit.spikes]).all()


@pytest.mark.parametrize("side", [24, 33])
def test_every_residual_is_a_number_and_the_order_of_rows_does_not_matter(side):
    """In a small matrix the range grows to its bounds, where (SS) is hard to solve."""
    for seed in range(8):
        weight = np.random.default_rng(seed).standard_normal((side, side))
        fits = []
        for order in (np.arange(side), np.random.default_rng(seed).permutation(side)):
            values = np.linalg.svd(weight[order], compute_uv=False) ** 2
            fits.append(fit_power_law_bulk(values, weight.shape))
        first, second = fits
        assert np.isfinite(first.residual)
        assert first.residual == pytest.approx(second.residual, rel=1e-3)
        assert (first.n_spikes, first.converged) == (second.n_spikes, second.converged)


def test_a_law_that_cannot_be_solved_is_no_result(monkeypatch):
    """Where the transform is not found, the residual is large and nothing converged."""
    monkeypatch.setattr(_Problem, "_newton", lambda _, s, *rest: np.full_like(s, np.nan))
    estimate = estimate_power_law(eigenvalues_of(sample(LAWS[0], 80, seed=0)), 80)
    assert np.isfinite(estimate.residual)
    assert estimate.residual > 1e3
    assert not estimate.converged


def test_the_jacobian_is_the_derivative():
    noise = eigenvalues_of(sample(LAWS[0], 400, seed=0))
    problem = _Problem(*contour_problem(noise / noise.mean(), 0.5))
    for x in (problem.start(0.5, 0.0), problem.start(1.0, -2.0), np.array([-0.3, 0.4, 1.5])):
        numeric = approx_fprime(x, problem.residual, 1e-7)
        exact = problem.jacobian(x)
        np.testing.assert_allclose(exact, numeric, atol=2e-5 * np.abs(exact).max())


def test_the_model_on_the_contour_is_the_law():
    noise = eigenvalues_of(sample(LAWS[0], 400, seed=0))
    problem = _Problem(*contour_problem(noise / noise.mean(), 0.5))
    x = problem.start(0.8, -1.0)
    s = problem.residual(x) * np.tile(problem.deviation, 2)
    law = problem.law(x, 1.0)
    exact = law.stieltjes_transform(problem.points, companion=True) - problem.transform
    np.testing.assert_allclose(s, np.concatenate([exact.real, exact.imag]), atol=1e-9)
    np.testing.assert_allclose(problem.position(law, 1.0), x, rtol=1e-9)


def test_a_start_nearby_leads_to_the_same_law():
    noise = eigenvalues_of(sample(LAWS[1], 800, seed=0))
    cold = estimate_power_law(noise, 800).law
    warm = estimate_power_law(noise, 800, start=PowerLawBulk(0.3, (3.5, 0.9), 0.25)).law
    assert warm.variances == pytest.approx(cold.variances, rel=1e-4)


def test_rescaled_keeps_the_shape():
    law = LAWS[0].rescaled(3.0, aspect_ratio=0.4)
    assert law == PowerLawBulk(-1.0, (24.0, 3.0), 0.4)
    assert LAWS[0].rescaled(3.0).upper_edge == pytest.approx(3 * LAWS[0].upper_edge)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, (1.0, 2.0), 0.5), "swap them"),
        ((1.0, (1.0, 1.0), 0.5), "MarchenkoPastur"),
        ((1.0, (1.0, 0.0), 0.5), "positive"),
        ((np.nan, (2.0, 1.0), 0.5), "exponent must be finite"),
        ((1.0, (2.0, 1.0), 1.5), "pass the transpose"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        PowerLawBulk(*arguments)
