from __future__ import annotations

import numpy as np
import pytest

from hf_rmt.spectra import DoubleBulk, tracy_widom_quantile
from hf_rmt.spectra.ensembles import double_bulk_matrix, eigenvalues_of, marchenko_pastur_matrix
from hf_rmt.spectra.fits import separation
from hf_rmt.spectra.fits.separation import _outside, finite_size_edges, most_spikes, separate


def spiked(shape, *, mixing, variances, strength, seed):
    """Eigenvalues of a double bulk with spikes at multiples of its critical value."""
    law = DoubleBulk(mixing=mixing, variances=variances, aspect_ratio=min(shape) / max(shape))
    spikes = law.critical_points[-1] * np.asarray(strength)
    return eigenvalues_of(
        double_bulk_matrix(shape, mixing=mixing, variances=variances, spikes=spikes, seed=seed)
    )


@pytest.mark.parametrize("shape", [(400, 400), (800, 400), (1200, 300), (331, 257)])
@pytest.mark.parametrize("count", [0, 1, 12, 30])
def test_the_number_of_spikes_is_exact(shape, count):
    strength = np.geomspace(1.6, 100, count)
    values = spiked(shape, mixing=0.4, variances=(4.0, 1.0), strength=strength, seed=count)
    result = separate(values, shape[0])
    np.testing.assert_array_equal(np.flatnonzero(result.signal), np.arange(count))
    assert result.converged
    assert result.adequate
    assert result.reason == ""


def test_two_intervals_and_a_spike_in_their_gap():
    shape = (2000, 400)
    law = DoubleBulk(mixing=0.5, variances=(20.0, 1.0), aspect_ratio=0.2)
    middle = law.bulk_edges[0, 1] * 1.6
    assert middle < law.bulk_edges[1, 0] / 1.3
    spikes = [law.critical_points[-1] * 3, law.spike_inverse(middle)]
    weight = double_bulk_matrix(shape, mixing=0.5, variances=(20.0, 1.0), spikes=spikes, seed=0)
    result = separate(eigenvalues_of(weight), 2000)
    np.testing.assert_array_equal(np.flatnonzero(result.signal), [0, 200])


@pytest.mark.parametrize("seed", range(4))
def test_a_small_far_bulk_is_no_crowd_of_spikes(seed):
    """A tenth of the dimensions at ten times the variance, which the start takes for spikes."""
    values = spiked((400, 400), mixing=0.1, variances=(10.0, 1.0), strength=[3, 5], seed=seed)
    result = separate(values, 400)
    assert result.signal.sum() == 2
    assert result.estimate.law.mixing == pytest.approx(0.1, abs=0.02)


def test_a_crowd_of_spikes_is_no_small_bulk():
    """Twenty weak spikes on an almost unit bulk, which a second bulk of 5 % would swallow."""
    values = spiked(
        (800, 400), mixing=0.5, variances=(1.3, 1.0), strength=np.geomspace(1.6, 4, 20), seed=1
    )
    assert separate(values, 800).signal.sum() == 20


STRONG = [(6, 6, 6), (10, 6, 4), (6,) * 6, (20, 10, 5, 4), (30, 20, 10, 8, 6), (5,) * 5]


@pytest.mark.parametrize("shape", [(32, 64), (32, 32), (80, 40), (40, 40), (64, 128), (64, 64)])
@pytest.mark.parametrize(("mixing", "variances"), [(0.0, (1.0, 1.0)), (0.4, (4.0, 1.0))])
def test_strong_spikes_in_a_small_matrix_are_no_second_bulk(shape, mixing, variances):
    """With 97 % right, more than 4 of 42 are wrong with probability 0.01."""
    right = 0
    for seed in range(42):
        strength = STRONG[seed % len(STRONG)]
        values = spiked(
            shape, mixing=mixing, variances=variances, strength=strength, seed=400 + seed
        )
        right += separate(values, max(shape)).signal.sum() == len(strength)
    assert right >= 38


@pytest.mark.parametrize(("shape", "mixing"), [((80, 40), 0.4), ((64, 64), 0.25), ((64, 32), 0.4)])
def test_a_bulk_of_ten_eigenvalues_or_more_is_one(shape, mixing):
    right = 0
    for seed in range(20):
        values = spiked(shape, mixing=mixing, variances=(20.0, 1.0), strength=[], seed=seed)
        right += not separate(values, max(shape)).signal.any()
    assert right >= 18


def test_how_many_spikes_a_matrix_may_have():
    assert most_spikes(600) == 100
    assert most_spikes(32) == 8
    assert most_spikes(24) == 6


def test_an_empty_upper_interval_is_no_bulk():
    law = DoubleBulk(mixing=0.05, variances=(40.0, 1.0), aspect_ratio=0.5)
    values = np.concatenate([[41.0, 40.0], np.linspace(2.5, 0.2, 198)])
    np.testing.assert_array_equal(np.flatnonzero(_outside(values, law, 400)), [0, 1])


def test_a_crowded_gap_is_no_gap():
    law = DoubleBulk(mixing=0.5, variances=(40.0, 1.0), aspect_ratio=0.1)
    gap = np.linspace(*law.bulk_edges[[0, 1], [1, 0]] * [1.5, 0.7], 20)
    bulk = [law.quantile(np.linspace(0.01, 0.99, 100))[::-1]]
    few = np.sort(np.concatenate([*bulk, gap[:2]]))[::-1]
    many = np.sort(np.concatenate([*bulk, gap]))[::-1]
    assert _outside(few, law, 1000).sum() == 2
    assert _outside(many, law, 1000).sum() == 0


def test_edges_move_outwards_by_their_fluctuation():
    law = DoubleBulk(mixing=0.5, variances=(9.0, 1.0), aspect_ratio=0.1)
    moved = finite_size_edges(law, 500) - law.bulk_edges
    assert np.all(np.sign(moved) == [[-1, 1], [-1, 1]])
    scale = law.edge_fluctuation(law.critical_points[-1], 500)
    quantile = tracy_widom_quantile(separation.EDGE_CONFIDENCE)
    assert moved[-1, 1] == pytest.approx(quantile * scale)


def test_pure_noise_has_no_spikes():
    """200 draws at a rate of 0.1 %: three false ones have probability 0.001."""
    false = 0
    for seed in range(200):
        shape = [(100, 100), (200, 100), (60, 300), (150, 140)][seed % 4]
        values = eigenvalues_of(marchenko_pastur_matrix(shape, seed=seed))
        false += bool(separate(values, max(shape)).signal.any())
    assert false <= 2


def test_runaway_spikes_stop_at_the_first_round():
    values = 1.0 / np.arange(1, 301) ** 2
    result = separate(values, 400)
    assert "keeps growing" in result.reason
    assert not result.converged
    assert 0 < result.signal.sum() <= 300 / 6


def test_a_cycle_ends():
    """Laws that disagree by one eigenvalue forever: the doubtful one stays signal."""
    calls = []

    def wavering(values, law, rows):
        calls.append(rows)
        return np.arange(len(values)) < (2 if len(calls) % 2 else 3)

    values = eigenvalues_of(marchenko_pastur_matrix((100, 80), seed=0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(separation, "_outside", wavering)
        result = separate(values, 100)
    assert result.signal.sum() == 3
    assert len(calls) < 12


def test_a_reading_that_calls_everything_signal_is_none():
    """Spikes over an empty lower bulk once left no eigenvalue to fit."""
    for seed in range(20):
        law = DoubleBulk(0.0, (1.0, 1.0), 0.5)
        weight = marchenko_pastur_matrix(
            (48, 24), spikes=law.critical_points[-1] * np.full(6, 6.0), seed=7000 + seed
        )
        assert separate(eigenvalues_of(weight), 48).signal.sum() <= 12


def test_a_sixth_of_the_directions_may_be_spikes_and_no_second_bulk():
    """Twenty of 120 are the most; in the other draws a bulk of a fifth has the better start."""
    right = 0
    for seed in range(10):
        weight = double_bulk_matrix(
            (200, 120), mixing=0.4, variances=(3.0, 1.0), spikes=np.arange(40.0, 20, -1), seed=seed
        )
        right += separate(eigenvalues_of(weight), 200).signal.sum() == 20
    assert right >= 3
