from __future__ import annotations

import numpy as np
import pytest

from hf_rmt.spectra.ensembles import (
    double_bulk_matrix,
    eigenvalues_of,
    heavy_tailed_matrix,
    low_rank_matrix,
    marchenko_pastur_matrix,
    power_law_matrix,
)

DOUBLE = {"mixing": 0.25, "variances": (4.0, 1.0)}


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (200, 200)])
def test_the_population_is_the_stated_one(shape):
    """Column sums of squares have relative deviation sqrt(2 / N) = 0.08 to 0.1."""
    weight = double_bulk_matrix(shape, **DOUBLE, spikes=np.full(40, 100.0), seed=0)
    assert weight.shape == shape
    tall = weight if shape[0] >= shape[1] else weight.T
    energy = (tall**2).sum(0)
    assert energy[:40].mean() == pytest.approx(100.0, rel=0.1)
    upper = round(0.25 * 160)
    assert energy[40 : 40 + upper].mean() == pytest.approx(4.0, rel=0.1)
    assert energy[40 + upper :].mean() == pytest.approx(1.0, rel=0.1)
    assert energy[40 : 40 + upper].min() > 2.0 > energy[40 + upper :].max()


def test_a_number_repeats_and_a_generator_moves_on():
    first = double_bulk_matrix((30, 20), **DOUBLE, seed=5)
    np.testing.assert_array_equal(first, double_bulk_matrix((30, 20), **DOUBLE, seed=5))
    generator = np.random.default_rng(5)
    np.testing.assert_array_equal(first, double_bulk_matrix((30, 20), **DOUBLE, seed=generator))
    assert not np.allclose(first, double_bulk_matrix((30, 20), **DOUBLE, seed=generator))


def test_transposing_the_shape_transposes_the_matrix():
    wide = double_bulk_matrix((20, 30), **DOUBLE, seed=1)
    np.testing.assert_array_equal(wide.T, double_bulk_matrix((30, 20), **DOUBLE, seed=1))


def test_the_unit_bulk_has_one_variance():
    weight = marchenko_pastur_matrix((400, 100), variance=3.0, spikes=[90.0], seed=0)
    energy = (weight**2).sum(0)
    assert energy[0] == pytest.approx(90.0, rel=0.3)
    assert energy[1:].mean() == pytest.approx(3.0, rel=0.05)


def test_heavy_tails_are_heavier_the_smaller_the_exponent():
    reach = [
        eigenvalues_of(heavy_tailed_matrix((300, 200), exponent=e, seed=0))[0] for e in (1, 2, 30)
    ]
    assert reach[0] > 10 * reach[1] > 10 * reach[2]
    assert heavy_tailed_matrix((20, 30), exponent=2, seed=0).shape == (20, 30)


@pytest.mark.parametrize("shape", [(40, 25), (25, 40)])
def test_power_law_singular_values_are_exact(shape):
    weight = power_law_matrix(shape, exponent=1.5, seed=0)
    assert weight.shape == shape
    expected = np.arange(1, 26.0) ** -3.0
    np.testing.assert_allclose(eigenvalues_of(weight), expected, rtol=1e-9)


def test_the_rank_is_exact():
    eigenvalues = eigenvalues_of(low_rank_matrix((40, 60), rank=7, seed=0))
    assert np.sum(eigenvalues > 1e-20 * eigenvalues[0]) == 7
    assert not low_rank_matrix((5, 6), rank=0, seed=0).any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: double_bulk_matrix((9, 2), **DOUBLE, spikes=[9.0] * 3, seed=0), "at most 2"),
        (lambda: double_bulk_matrix((9, 2), **DOUBLE, spikes=[-9.0], seed=0), "positive"),
        (lambda: double_bulk_matrix((9, 2), mixing=2, variances=(2, 1), seed=0), "mixing must"),
        (lambda: heavy_tailed_matrix((9, 2), exponent=0.0, seed=0), "exponent must be positive"),
        (lambda: low_rank_matrix((9, 2), rank=3, seed=0), r"rank must lie in \[0, 2\], got 3"),
    ],
)
def test_arguments_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
