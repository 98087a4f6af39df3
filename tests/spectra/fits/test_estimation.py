from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from hf_rmt.spectra import DoubleBulk, MarchenkoPastur
from hf_rmt.spectra.ensembles import double_bulk_matrix, eigenvalues_of, marchenko_pastur_matrix
from hf_rmt.spectra.fits.estimation import _Problem, coarse_bulk, estimate_bulk, least_mixing

TRUTH = {"mixing": 0.4, "variances": (3.0, 1.0)}


def exact_sample(law, size):
    """Quantiles of a law, descending: its spectrum without any fluctuation."""
    return law.quantile((np.arange(size)[::-1] + 0.5) / size)


@pytest.mark.parametrize("c", [0.25, 0.5, 1.0])
@pytest.mark.parametrize(
    ("mixing", "variances"), [(0.4, (3.0, 1.0)), (0.1, (20.0, 1.0)), (0.8, (2e-6, 1e-6))]
)
def test_a_spectrum_without_fluctuation_gives_its_own_law(mixing, variances, c):
    law = DoubleBulk(mixing=mixing, variances=variances, aspect_ratio=c)
    estimate = estimate_bulk(exact_sample(law, 2000), round(2000 / c))
    assert estimate.converged
    assert estimate.law.mixing == pytest.approx(mixing, rel=0.01)
    assert estimate.law.variances == pytest.approx(variances, rel=0.005)


def test_the_error_is_that_of_the_fluctuations():
    """Ten draws at p = 400: the median error of t is about 1 %, of the variances 0.5 %."""
    errors = []
    for seed in range(10):
        noise = eigenvalues_of(double_bulk_matrix((800, 400), **TRUTH, seed=seed))
        law = estimate_bulk(noise, 800).law
        found = np.array([law.mixing, *law.variances])
        errors.append(np.abs(found / [0.4, 3.0, 1.0] - 1))
    assert np.all(np.median(errors, axis=0) < [0.02, 0.01, 0.01])


@pytest.mark.parametrize("shape", [(200, 200), (800, 400), (2000, 300)])
def test_the_residual_is_of_order_one_whatever_the_size(shape):
    residuals = [
        estimate_bulk(eigenvalues_of(double_bulk_matrix(shape, **TRUTH, seed=s)), shape[0]).residual
        for s in range(6)
    ]
    assert 0.4 < np.median(residuals) < 1.4


def test_the_residual_tells_that_the_law_does_not_hold():
    assert estimate_bulk(np.linspace(4.0, 1.0, 300), 300).residual > 10


def test_the_jacobian_is_the_derivative():
    noise = eigenvalues_of(double_bulk_matrix((300, 150), **TRUTH, seed=0))
    problem = _Problem.of(noise / noise.mean(), 0.5)
    for x in (np.zeros(3), np.array([0.4, 1.0, -0.7]), np.array([-1.0, -0.5, 0.8])):
        numeric = approx_fprime(x, problem.residual, 1e-7)
        exact = problem.jacobian(x)
        np.testing.assert_allclose(exact, numeric, atol=2e-5 * np.abs(exact).max())


def test_the_empirical_transform_and_its_slope_are_those_of_the_law():
    law = DoubleBulk(**TRUTH, aspect_ratio=0.25)
    problem = _Problem.of(exact_sample(law, 2000), 0.25)
    step = 1e-6
    ahead, behind = (
        law.stieltjes_transform(problem.points + h, companion=True) for h in (step, -step)
    )
    np.testing.assert_allclose(problem.transform, (ahead + behind) / 2, rtol=1e-3)
    np.testing.assert_allclose(problem.slope, (ahead - behind) / (2 * step), rtol=1e-2)


def test_a_start_nearby_leads_to_the_same_law():
    noise = eigenvalues_of(double_bulk_matrix((400, 200), **TRUTH, seed=0))
    cold = estimate_bulk(noise, 400).law
    start = DoubleBulk(mixing=0.5, variances=(2.5, 1.2), aspect_ratio=0.4)
    warm = estimate_bulk(noise, 400, start=start).law
    assert (warm.mixing, *warm.variances) == pytest.approx((cold.mixing, *cold.variances), rel=1e-6)


def test_the_grid_alone_is_near():
    noise = eigenvalues_of(double_bulk_matrix((800, 400), **TRUTH, seed=0))
    law = coarse_bulk(noise, 800)
    assert law.upper_edge == pytest.approx(
        DoubleBulk(**TRUTH, aspect_ratio=0.5).upper_edge, rel=0.1
    )


def test_a_unit_bulk_is_fitted_as_one():
    noise = eigenvalues_of(marchenko_pastur_matrix((600, 300), variance=5.0, seed=0))
    law = estimate_bulk(noise, 600).law
    unit = MarchenkoPastur(variance=5.0, aspect_ratio=0.5)
    assert law.upper_edge == pytest.approx(unit.upper_edge, rel=0.02)
    assert law.moment(1) == pytest.approx(5.0, rel=0.01)


def test_more_noise_than_rows_counts_as_square():
    assert estimate_bulk(np.linspace(4.0, 1e-3, 50), 40).law.aspect_ratio == 1.0


def test_the_input_is_left_alone():
    noise = np.linspace(4.0, 1.0, 50)
    noise.setflags(write=False)
    estimate_bulk(noise, 60)


@pytest.mark.parametrize("size", [12, 24, 32, 100, 159, 160, 4000])
def test_a_bulk_has_eight_eigenvalues_or_a_twentieth(size):
    floor = least_mixing(size)
    assert 0.05 <= floor < 0.5
    assert floor * size >= min(8, 0.35 * size) - 1e-9
    noise = np.linspace(1, 0.1, size)
    noise[:2] = 20.0
    law = estimate_bulk(noise, 2 * size).law
    assert floor - 1e-9 <= law.mixing <= 1 - floor + 1e-9


def test_a_solver_that_tries_nan_gets_a_finite_residual():
    noise = eigenvalues_of(marchenko_pastur_matrix((80, 40), seed=0))
    problem = _Problem.of(noise / noise.mean(), 0.5)
    assert np.isfinite(problem.residual(np.array([np.nan, 0.0, 0.0]))).all()
