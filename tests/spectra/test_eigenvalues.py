from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from hf_rmt.spectra import (
    Phase,
    fit_double_bulk,
    fit_power_law_bulk,
    fit_unit_bulk,
    truncate,
)
from hf_rmt.spectra.eigenvalues import why_lawless
from hf_rmt.spectra.ensembles import double_bulk_matrix, eigenvalues_of, marchenko_pastur_matrix

SHAPE = (200, 100)
NOISE = eigenvalues_of(marchenko_pastur_matrix(SHAPE, spikes=[20.0], seed=0))
CLUSTERS = np.repeat([1.0, 5.0, 40.0], [30, 30, 40])
FITS = {
    "pdb": fit_double_bulk,
    "published": partial(fit_double_bulk, published=True),
    "bema": fit_unit_bulk,
    "power law": fit_power_law_bulk,
    "kernel": partial(fit_unit_bulk, estimator="kernel"),
    "svd": partial(truncate, fraction=0.5),
}
ANY = set(Phase)
LAWLESS = {Phase.LAWLESS}
DEGENERATE = {Phase.DEGENERATE}
LAWFUL = {Phase.SPIKED, Phase.HEAVY_TAILED}
SPECTRA = {
    "zeros": (np.zeros(100), SHAPE, DEGENERATE, "zero"),
    "rank one": (np.r_[3.0, np.zeros(99)], SHAPE, DEGENERATE, "rank 1"),
    "eleven zeros": (np.r_[NOISE[:89], np.zeros(11)], SHAPE, DEGENERATE, "rank 89"),
    "ten zeros": (np.r_[NOISE[:90], np.zeros(10)], SHAPE, LAWFUL, ""),
    "one row": (np.ones(1), (1, 300), DEGENERATE, "1 eigenvalues"),
    "empty": (np.zeros(0), (0, 10), DEGENERATE, "0 eigenvalues"),
    "few": (np.arange(23.0) + 1, (23, 23), DEGENERATE, "23 eigenvalues"),
    "nan": (np.r_[np.nan, NOISE[1:]], SHAPE, DEGENERATE, "nan or inf"),
    "inf": (np.r_[np.inf, NOISE[1:]], SHAPE, DEGENERATE, "nan or inf"),
    "identity": (np.ones(100), (100, 100), LAWLESS, "orthogonal"),
    "orthogonal": (np.full(100, 0.3), SHAPE, LAWLESS, "orthogonal"),
    "rounded": (1 + 1e-7 * np.arange(100.0), SHAPE, LAWLESS, "orthogonal"),
    "two values": (np.repeat([1.0, 2.0], 50), SHAPE, LAWLESS, "orthogonal"),
    "two far values": (np.repeat([1.0, 30.0], [80, 20]), SHAPE, LAWLESS, "only 2 distinct values"),
    "three values": (CLUSTERS, SHAPE, LAWLESS, "only 3 distinct values"),
    "spiked identity": (np.r_[50.0, 20.0, np.ones(98)], SHAPE, LAWLESS, "only 3 distinct values"),
    "perturbed identity": (1 + 0.3 * np.linspace(0, 1, 100), SHAPE, LAWLESS, "orthogonal"),
    "tiny": (1e-250 * NOISE, SHAPE, LAWFUL, ""),
    "huge": (1e250 * NOISE, SHAPE, LAWFUL, ""),
    "nearly too small": (1e-300 * NOISE, SHAPE, LAWFUL, ""),
    "nearly too large": (1e300 * NOISE, SHAPE, LAWFUL, ""),
    "too small": (1e-307 * NOISE, SHAPE, DEGENERATE, "scale the weight"),
    "denormal": (5e-322 * NOISE, SHAPE, DEGENERATE, "scale the weight"),
    "too large": (1e305 * NOISE, SHAPE, DEGENERATE, "scale the weight"),
    "geometric": (np.geomspace(1e-11, 1, 100), SHAPE, {Phase.HEAVY_TAILED}, ""),
    "giant": (np.r_[1e9, NOISE[1:]], SHAPE, LAWFUL, ""),
}


@pytest.mark.parametrize("method", FITS)
@pytest.mark.parametrize("name", SPECTRA)
def test_every_spectrum_gets_a_verdict_and_every_number_can_be_asked_for(name, method):
    values, shape, phases, reason = SPECTRA[name]
    fit = FITS[method](values, shape)
    if method != "svd":  # which looks for no law
        assert fit.phase in phases
        assert reason in fit.reason
    assert len(fit.spikes) == fit.n_spikes
    assert 0 <= fit.signal_energy <= 1
    numbers = [fit.moment(1), fit.moment(2), fit.empirical_moment(2), fit.stable_rank]
    assert all(isinstance(number, float) for number in numbers)
    if fit.noise_law is not None:
        assert np.isfinite([fit.upper_edge, fit.distance, *fit.spikes]).all()
        assert np.isfinite(fit.noise_law.pdf(fit.noise[:-1])).all()
        assert np.all(np.diff(fit.noise_law.cdf(fit.noise)) <= 0)


@pytest.mark.parametrize("method", FITS)
@pytest.mark.parametrize(
    ("values", "message"),
    [(np.full(100, -1.0), "cannot be negative"), (np.ones(99), "has 100 eigenvalues")],
)
def test_what_cannot_be_eigenvalues_is_refused(values, message, method):
    with pytest.raises(ValueError, match=message):
        FITS[method](values, SHAPE)


@pytest.mark.parametrize("shape", [(24, 24), (600, 30), (300, 300), (2000, 100)])
@pytest.mark.parametrize("ratio", [1.0, 50.0])
def test_noise_is_never_called_lawless(shape, ratio):
    """The relative variance has standard deviation about 2 c / p, far from half of c."""
    for seed in range(20):
        weight = double_bulk_matrix(shape, mixing=0.3, variances=(ratio, 1.0), seed=seed)
        assert why_lawless(eigenvalues_of(weight), shape[0]) == ""


def odd_spectrum(generator):
    """A spectrum of some strange kind with its shape."""
    columns = int(generator.integers(24, 70))
    rows = int(columns * np.exp(generator.exponential(0.6)))
    noise = eigenvalues_of(generator.standard_normal((rows, columns)))
    noise[: generator.integers(12)] *= np.exp(generator.exponential(2.0))
    pairs = np.repeat(generator.random(columns // 2 + 1), 2)[:columns]
    kinds = [
        np.exp(generator.standard_normal(columns) * generator.exponential(1.5)),
        generator.random(columns),
        np.abs(generator.standard_t(1, columns)),
        pairs * (1 + 1e-4 * generator.random(columns)),
        np.r_[generator.random(columns - columns // 12) + 0.1, np.zeros(columns // 12)],
        noise,
    ]
    return kinds[generator.integers(len(kinds))] * 10.0 ** generator.integers(-8, 8), (
        rows,
        columns,
    )


@pytest.mark.parametrize("fit", [fit_double_bulk, fit_power_law_bulk])
@pytest.mark.parametrize("seed", range(40))
def test_odd_spectra_get_finite_numbers(fit, seed):
    values, shape = odd_spectrum(np.random.default_rng(seed))
    found = fit(values, shape)
    assert len(found.spikes) == found.n_spikes
    if found.law is not None:
        numbers = [found.upper_edge, found.distance, found.residual, *found.spikes]
        assert np.isfinite(numbers).all()
