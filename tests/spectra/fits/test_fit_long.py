"""Noise of long matrices, p / N from 1e-4 to 0.02: a narrow bulk of few eigenvalues.

A tokenizer's embedding of a small model is such a matrix. Its bulk is an interval of relative half
width 2 sqrt(p / N) around the variance.
"""

from __future__ import annotations

import numpy as np
import pytest

from hf_rmt.spectra import MarchenkoPastur, Phase, fit_double_bulk, fit_power_law_bulk
from hf_rmt.spectra.fits import separation
from hf_rmt.spectra.fits.estimation import estimate_bulk

SHAPES = [
    (2048, 32),
    (5000, 33),
    (4096, 32),
    (8192, 32),
    (16384, 32),
    (12000, 48),
    (50257, 48),
    (16384, 64),
    (30522, 64),
]
LONGER = [(200, 24), (1000, 28), (32000, 32), (100000, 100), (1000000, 64)]


def gaussian(shape, seed, *, spikes=()):
    """Descending eigenvalues of X'X for a Gaussian X, from the triangle of its QR factorisation.

    Source: Bartlett's decomposition, so that no matrix of a million rows is drawn.
    """
    rows, columns = shape
    generator = np.random.default_rng([*shape, seed])
    triangle = np.triu(generator.standard_normal((columns, columns)), 1)
    triangle[np.diag_indices(columns)] = np.sqrt(generator.chisquare(rows - np.arange(columns)))
    triangle[:, : len(spikes)] *= np.sqrt(spikes)
    return np.linalg.svd(triangle, compute_uv=False) ** 2


def uniform(shape, seed):
    """Eigenvalues of X'X for uniform entries, as a new nn.Linear has them."""
    entries = np.random.default_rng([*shape, seed]).random(shape) - 0.5
    return np.linalg.eigvalsh(entries.T @ entries)


@pytest.mark.parametrize(
    ("shape", "fit", "draws"),
    [
        *((shape, fit_double_bulk, 20) for shape in SHAPES + LONGER),
        *((shape, fit_power_law_bulk, 4) for shape in SHAPES),
    ],
)
def test_gaussian_noise_is_random(shape, fit, draws):
    """Of 20 draws at a false rate of 0.1 %, two are wrong with probability 2e-4."""
    fits = [fit(gaussian(shape, seed), shape) for seed in range(draws)]
    wrong = [each for each in fits if (each.phase, each.n_spikes) != (Phase.RANDOM, 0)]
    assert len(wrong) <= 1, wrong
    variances = [each.law.moment(1) / shape[0] for each in fits]
    deviation = np.sqrt(2 / (shape[0] * shape[1]))  # of the mean of N p squares
    np.testing.assert_allclose(
        variances, 1.0, atol=0.02 * np.sqrt(shape[1] / shape[0]) + 5 * deviation
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_uniform_noise_is_random(shape):
    fits = [fit_double_bulk(uniform(shape, seed), shape) for seed in range(5)]
    assert sum((each.phase, each.n_spikes) != (Phase.RANDOM, 0) for each in fits) <= 1


@pytest.mark.parametrize("shape", SHAPES + LONGER, ids=str)
def test_a_spike_of_twice_the_critical_value_is_found(shape):
    """It lies about 1 / sqrt(c) standard deviations sqrt(2 / N) of its own above the edge."""
    law = MarchenkoPastur(1.0, shape[1] / shape[0])
    spikes = 2 * law.critical_points[-1:]
    for seed in range(20):
        fit = fit_double_bulk(gaussian(shape, seed, spikes=spikes), shape)
        assert fit.phase is Phase.SPIKED
        np.testing.assert_array_equal(np.flatnonzero(fit.is_signal), [0])


@pytest.mark.parametrize("shape", [*SHAPES, (200, 100), (64, 64)], ids=str)
def test_the_residual_of_a_unit_bulk_is_of_order_one(shape):
    """A local minimum with a second bulk far from the eigenvalues has 2.3 and more."""
    residuals = [
        estimate_bulk(np.sort(gaussian(shape, s))[::-1], shape[0]).residual for s in range(20)
    ]
    assert np.max(residuals) < 2.2
    assert np.median(residuals) < 1.3


def test_a_start_never_calls_most_of_a_spectrum_spikes(monkeypatch):
    values = gaussian((5000, 33), 0)
    far = MarchenkoPastur(1e-3, 0.0066)
    monkeypatch.setattr(separation, "coarse_bulk", lambda *_: far)
    assert not separation._certain_spikes(values, 5000).any()
