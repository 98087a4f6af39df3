"""Spectra that no double bulk has, and eigenvalues that cannot be."""

from __future__ import annotations

import time

import numpy as np
import pytest

from hf_rmt.spectra import Phase, fit_double_bulk
from hf_rmt.spectra.ensembles import (
    eigenvalues_of,
    heavy_tailed_matrix,
    low_rank_matrix,
    marchenko_pastur_matrix,
    power_law_matrix,
)

SHAPE = (600, 300)


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
    numbers = [
        fit.upper_edge,
        fit.residual,
        fit.distance,
        fit.moment(1),
        fit.law.mixing,
        *fit.law.variances,
    ]
    assert np.isfinite([*numbers, *fit.spikes]).all()
    assert len(fit.spikes) == fit.n_spikes
    assert (fit.phase is Phase.HEAVY_TAILED) == (fit.reason != "")


@pytest.mark.parametrize("name", ["Student 1", "power law 0.5", "power law 1", "power law 2"])
def test_heavy_tails_are_called_so(name):
    assert fit_double_bulk(STRANGE[name], (200, 150)).phase is Phase.HEAVY_TAILED


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
