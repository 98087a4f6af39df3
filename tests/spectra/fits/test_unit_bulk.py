from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq, minimize

from hf_rmt.spectra import MarchenkoPastur, Phase, fit_unit_bulk, tracy_widom_quantile
from hf_rmt.spectra.ensembles import (
    double_bulk_matrix,
    eigenvalues_of,
    low_rank_matrix,
    marchenko_pastur_matrix,
)
from hf_rmt.spectra.fits.unit_bulk import fit_bema, fit_kernel, kernel_density

SHAPES = [(300, 120), (150, 150)]
ESTIMATORS = ["bema", "kernel"]


def spectrum(shape: tuple[int, int], seed: int = 1) -> np.ndarray:
    return eigenvalues_of(
        double_bulk_matrix(shape, mixing=0.3, variances=(3.0, 1.0), spikes=(30.0, 20.0), seed=seed)
    )


def textbook_density(x: float, variance: float, c: float) -> float:
    """Marchenko & Pastur's own formula."""
    low, high = variance * (1 - np.sqrt(c)) ** 2, variance * (1 + np.sqrt(c)) ** 2
    inside = low < x < high
    return np.sqrt((high - x) * (x - low)) / (2 * np.pi * variance * c * x) if inside else 0.0


def textbook_upper_quantile(q: float, c: float) -> float:
    """Where the mass above is q; over angles x = m - h cos(a), which tames the edges."""
    middle, half = 1 + c, 2 * np.sqrt(c)

    def above(angle: float) -> float:
        def integrand(a: float) -> float:
            return textbook_density(middle - half * np.cos(a), 1.0, c) * half * np.sin(a)

        return quad(integrand, angle, np.pi, epsabs=1e-10)[0]

    return middle - half * np.cos(brentq(lambda a: above(a) - q, 1e-9, np.pi - 1e-9))


@pytest.mark.parametrize("shape", SHAPES)
def test_bema_step_by_step(shape: tuple[int, int]) -> None:
    values = spectrum(shape)
    n, p = shape
    c = p / n
    numerator = denominator = 0.0
    for k in range(1, p + 1):
        if 0.2 * p <= k <= 0.8 * p:
            q = textbook_upper_quantile(k / p, c)
            numerator += q * values[k - 1]
            denominator += q**2
    variance = numerator / denominator
    spread = n ** (-2 / 3) * c ** (-1 / 6) * (1 + c**0.5) ** (4 / 3)
    edge = variance * ((1 + c**0.5) ** 2 + tracy_widom_quantile(0.9) * spread)
    fit = fit_unit_bulk(values, shape)
    assert isinstance(fit.law, MarchenkoPastur)
    assert (fit.law.variance, fit.law.aspect_ratio) == (pytest.approx(variance, rel=1e-6), c)
    assert fit.upper_edge == pytest.approx(edge, rel=1e-6)
    np.testing.assert_array_equal(fit.is_signal, values > edge)
    far = fit_unit_bulk(values, shape, beta=0.01).upper_edge
    assert far - edge == pytest.approx(
        variance * spread * (tracy_widom_quantile(0.99) - tracy_widom_quantile(0.9)), rel=1e-6
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_step_by_step(shape: tuple[int, int]) -> None:
    """The same least squares on a grid of its own, ten times as fine."""
    values = spectrum(shape)
    nu, p, c = np.sqrt(values), shape[1], shape[1] / shape[0]
    grid = np.linspace(0.0, 4 * nu[p // 2], 4000)
    measured = np.zeros(len(grid))
    for i in range(p):
        width = (nu[max(i - 15, 0)] - nu[min(i + 15, p - 1)]) / 2
        bell = np.exp(-((grid - nu[i]) ** 2) / (2 * width**2)) / np.sqrt(2 * np.pi * width**2)
        measured += bell / p
    np.testing.assert_allclose(kernel_density(nu, grid), measured, rtol=1e-9, atol=1e-12)

    def squares(x: np.ndarray) -> float:
        density = [2 * point * textbook_density(point**2, float(x[0]) ** 2, c) for point in grid]
        return float(np.sum((measured - density) ** 2))

    best = minimize(squares, [nu[p // 2]], method="Nelder-Mead", options={"xatol": 1e-6})
    fit = fit_unit_bulk(values, shape, "kernel")
    variance = float(best.x[0]) ** 2
    assert (fit.law.variance, fit.law.aspect_ratio) == (pytest.approx(variance, rel=5e-3), c)
    assert fit.upper_edge == pytest.approx(variance * (1 + c**0.5) ** 2, rel=5e-3)
    np.testing.assert_array_equal(fit.is_signal, values > fit.upper_edge)


@pytest.mark.parametrize(("estimator", "tolerance"), [("bema", 0.02), ("kernel", 0.1)])
@pytest.mark.parametrize("shape", [(400, 300), (300, 400), (400, 400)])
def test_the_variance_of_unit_bulks_is_found(
    estimator: str, tolerance: float, shape: tuple[int, int]
) -> None:
    """The trace alone fixes sigma^2 to (2 / N p)^{1/2} = 0.4 %; smoothing widens the bulk."""
    weight = marchenko_pastur_matrix(shape, variance=4.0, spikes=(80.0, 60.0), seed=0)
    fit = fit_unit_bulk(eigenvalues_of(weight), shape, estimator)
    assert fit.law.variance == pytest.approx(4.0, rel=tolerance)
    assert fit.law.aspect_ratio == min(shape) / max(shape)
    assert fit.distance < 0.04
    if estimator == "bema":
        assert fit.n_spikes == 2
        np.testing.assert_allclose(fit.spikes, [80, 60], rtol=0.25)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_scaling_scales_the_law_and_nothing_else(estimator: str) -> None:
    values = spectrum((300, 120))
    plain = fit_unit_bulk(values, (300, 120), estimator)
    scaled = fit_unit_bulk(1e8 * values[::-1], (120, 300), estimator)
    assert scaled.law.variance == pytest.approx(1e8 * plain.law.variance, rel=1e-6)
    assert scaled.upper_edge == pytest.approx(1e8 * plain.upper_edge, rel=1e-6)
    assert scaled.n_spikes == plain.n_spikes


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_law_is_the_one_that_the_noise_is_held_against(estimator: str) -> None:
    """A baseline is taken as published: spikes take nothing out of its noise."""
    fit = fit_unit_bulk(spectrum((300, 120)), (300, 120), estimator)
    assert fit.noise_law is fit.law
    noise = fit.eigenvalues[~fit.is_signal][::-1]
    steps = np.arange(1, len(noise) + 1) / len(noise)
    naive = max(
        max(abs(steps - fit.law.cdf(noise))), max(abs(fit.law.cdf(noise) - steps + steps[0]))
    )
    assert fit.distance == pytest.approx(naive, abs=1e-9)
    assert fit.moment(1) == pytest.approx(
        (fit.spikes.sum() + (120 - fit.n_spikes) * fit.law.variance) / 120, rel=1e-9
    )


def test_the_rows_of_the_method_table_are_these_estimators() -> None:
    values = spectrum((300, 120))
    assert fit_bema(values, (300, 120)).law == fit_unit_bulk(values, (300, 120), "bema").law
    assert fit_kernel(values, (300, 120)).law == fit_unit_bulk(values, (300, 120), "kernel").law
    assert fit_bema(values, (300, 120)).law != fit_kernel(values, (300, 120)).law


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_hopeless_spectra_are_degenerate(estimator: str) -> None:
    weight = low_rank_matrix((60, 40), rank=3, seed=0)
    fit = fit_unit_bulk(eigenvalues_of(weight), (60, 40), estimator)
    assert (fit.phase, fit.law) == (Phase.DEGENERATE, None)
    assert "low-rank" in fit.reason
    equal = fit_unit_bulk(np.ones(40), (60, 40), estimator)
    assert (equal.phase, equal.n_spikes) == (Phase.LAWLESS, 0)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="bema, kernel, got 'pdb'"):
        fit_unit_bulk(np.ones(40), (60, 40), "pdb")
    with pytest.raises(ValueError, match="has 40 eigenvalues"):
        fit_unit_bulk(np.ones(39), (60, 40))


@pytest.mark.parametrize("estimator", ["bema", "kernel"])
@pytest.mark.parametrize(
    ("beta", "kind"), [(np.nan, ValueError), (0, ValueError), ("a", TypeError)]
)
def test_a_beta_that_is_no_probability_is_named(
    estimator: str, beta: object, kind: type[Exception]
) -> None:
    with pytest.raises(kind, match=rf"beta must .* got {beta!r}"):
        fit_unit_bulk(np.linspace(1, 3, 40), (60, 40), estimator, beta=beta)  # type: ignore[arg-type]
