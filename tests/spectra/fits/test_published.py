"""The published estimator against a transcription of its statement, loop by loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import least_squares

from hf_rmt.spectra import fit_double_bulk
from hf_rmt.spectra.ensembles import double_bulk_matrix, eigenvalues_of
from hf_rmt.spectra.fits.published import criteria, initial_spikes, published_bulk


def transcribed_criteria(values, rows):
    columns = len(values)
    lam = [math.nan, *values]  # lam[1] is the largest
    theta = [math.nan] + [math.exp(2 * (lam[i] - lam[i + 1])) for i in range(1, columns)]
    eda, edb = [], []
    for k in range(1, int(6 * rows**0.1) + 1):
        mean = sum(theta[i] for i in range(k + 1, columns)) / (columns - k - 1)
        drop = lam[1] - lam[k + 1]
        fit = rows * (columns - k - 1) * math.log(mean)
        eda.append(-rows * drop + fit + 2 * columns * k)
        edb.append(-rows * math.log(columns) * drop + fit + columns * k * math.log(rows))
    return eda, edb


def transcribed_count(values, rows):
    return max(1 + each.index(min(each)) for each in transcribed_criteria(values, rows))


def transcribed_parameters(values, rows):
    k0 = transcribed_count(values, rows)
    noise, c = values[k0:], (len(values) - k0) / rows
    u = [-10 * j / 21 for j in range(1, 21)]
    if c < 1:
        u += [0.5 * noise[-1] * j / 21 for j in range(1, 21)]
    u = np.array(u + [noise[0] * (5 + 5 * j / 21) for j in range(1, 21)])
    s = np.array([-(1 - c) / x + sum(1 / (v - x) for v in noise) / rows for x in u])

    def residual(x):
        t, first, second = x
        right = -1 / s + c * (t * first / (1 + first * s) + (1 - t) * second / (1 + second * s))
        return right - u

    low, high = noise[-1], noise[0]
    starts = [(0.5, low + 0.75 * (high - low), low + 0.25 * (high - low))]
    box = ([0, low, low], [1, high, high])
    return least_squares(residual, starts[0], bounds=box).x


@pytest.mark.parametrize("shape", [(300, 300), (400, 200), (200, 800)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_is_the_published_algorithm(shape, seed):
    weight = double_bulk_matrix(
        shape, mixing=0.5, variances=(2.0, 1.0), spikes=[14.0, 12.0, 9.0, 8.0], seed=seed
    )
    values, rows = eigenvalues_of(weight), max(shape)
    np.testing.assert_allclose(criteria(values, rows), transcribed_criteria(values, rows))
    assert initial_spikes(values, rows) == transcribed_count(values, rows)
    t, first, second = transcribed_parameters(values, rows)
    if first < second:
        t, first, second = 1 - t, second, first
    law = published_bulk(values, rows).law
    assert (law.mixing, *law.variances) == pytest.approx((t, first, second), rel=1e-4)


def test_the_spikes_lie_above_the_asymptotic_edge():
    nearest = np.inf
    for seed in range(25):
        weight = double_bulk_matrix(
            (200, 100), mixing=0.5, variances=(2, 1), spikes=[20], seed=seed
        )
        values = eigenvalues_of(weight)
        fit = fit_double_bulk(values, weight.shape, published=True)
        assert fit.published
        assert fit.upper_edge == fit.law.upper_edge
        np.testing.assert_array_equal(fit.is_signal, values > fit.law.upper_edge)
        assert fit.noise_law is fit.law
        nearest = min(nearest, values[fit.is_signal][-1] / fit.upper_edge)
    assert nearest < 1.01  # or the position of the edge would not have been tested


def test_the_criteria_depend_on_the_scale_and_do_not_overflow():
    spikes = [14.0, 12.0, 9.0, 8.0]
    weight = double_bulk_matrix((400, 200), mixing=0.5, variances=(2, 1), spikes=spikes, seed=0)
    values = eigenvalues_of(weight)
    assert initial_spikes(values, 400) > initial_spikes(1e-4 * values, 400) == 1
    assert initial_spikes(1e8 * values, 400) >= 1


def test_equal_eigenvalues_leave_nothing_to_fit():
    estimate = published_bulk(np.ones(60), 90)
    assert estimate.law.variances == (1.0, 1.0)
    assert not estimate.converged
