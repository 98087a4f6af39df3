from __future__ import annotations

import numpy as np
import pytest

from hf_rmt.spectra import DoubleBulk, MarchenkoPastur
from hf_rmt.spectra.fits.recovery import found_spikes

LAW = MarchenkoPastur(1.0, 0.5)
EDGE = LAW.upper_edge * 1.05


def test_a_strong_spike_is_the_plain_inverse():
    values = np.array([400.0, 40.0, 12.0])
    np.testing.assert_allclose(
        found_spikes(LAW, values, EDGE, 400), LAW.spike_inverse(values), rtol=1e-6
    )


def test_a_spike_at_the_edge_is_drawn_down_and_order_is_kept():
    values = np.linspace(1.2 * EDGE, 1.001 * EDGE, 30)
    corrected, plain = found_spikes(LAW, values, EDGE, 400), LAW.spike_inverse(values)
    critical = LAW.critical_points[-1]
    assert np.all(corrected <= plain)
    assert np.all(corrected >= critical)
    assert np.all(np.diff(corrected) <= 1e-9)
    assert corrected[-1] == pytest.approx(critical)


@pytest.mark.parametrize("strength", [1.3, 1.5, 2.0])
def test_the_median_is_right_given_that_the_spike_was_found(strength):
    """Normal eigenvalues as theory has them; the median of 4,000 draws is known to 2 %."""
    alpha, rows = strength * LAW.critical_points[-1], 400
    deviation = alpha * np.sqrt(2 * LAW.spike_slope(alpha) / rows)
    floor = 1.27 * LAW.edge_fluctuation(LAW.critical_points[-1], rows)
    noise = np.random.default_rng(0).standard_normal(4000)
    values = LAW.spike_forward(alpha) + np.hypot(deviation, floor) * noise
    values = values[values > EDGE]
    corrected = found_spikes(LAW, values, EDGE, rows)
    assert np.median(corrected) == pytest.approx(alpha, rel=0.02)
    assert np.median(LAW.spike_inverse(values)) >= 0.999 * np.median(corrected)


def test_simulated_weak_spikes_are_less_biased():
    """At 1.2 times critical about a third of the draws is found; the plain mean is 10 % high."""
    from hf_rmt.spectra import fit_double_bulk

    shape, alpha = (400, 200), 1.2 * LAW.critical_points[-1]
    plain, corrected = [], []
    for seed in range(60):
        weight = np.random.default_rng(seed).standard_normal(shape) / np.sqrt(shape[0])
        weight[:, 0] *= np.sqrt(alpha)
        fit = fit_double_bulk(np.linalg.eigvalsh(weight.T @ weight), shape)
        if fit.n_spikes == 1:
            plain.append(float(fit.noise_law.spike_inverse(fit.eigenvalues[0])) / alpha)
            corrected.append(float(fit.spikes[0]) / alpha)
    assert len(plain) > 5
    assert np.mean(plain) > 1.06
    assert 0.9 < np.mean(corrected) < np.mean(plain) - 0.03


def test_scale_changes_nothing():
    values = np.array([1.4, 1.1]) * EDGE
    scaled = found_spikes(LAW.rescaled(1e-200), 1e-200 * values, 1e-200 * EDGE, 400)
    np.testing.assert_allclose(scaled, 1e-200 * found_spikes(LAW, values, EDGE, 400))


def test_a_spike_in_a_gap_and_a_value_inside_the_bulk_are_as_the_law_says():
    law = DoubleBulk(0.5, (20.0, 1.0), 0.1)
    gap = float(np.mean(law.bulk_edges.ravel()[1:3]))
    values = np.array([law.upper_edge * 0.9, gap])
    np.testing.assert_array_equal(
        found_spikes(law, values, law.upper_edge * 1.02, 400), law.spike_inverse(values)
    )
