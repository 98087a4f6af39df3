from __future__ import annotations

import numpy as np
import pytest

from hf_rmt.report.figures.bins import below_edge, binned, law_misfit, misfit_note
from hf_rmt.spectra import DoubleBulk
from tests.report.samples import make_cut, make_degenerate, make_fit


def inside_gap():
    """Data of one bulk under a law whose two bulks leave a gap in the middle of them."""
    law = DoubleBulk(0.5, (40.0, 1.0), 0.4)
    low, high = law.bulk_edges.ravel()[[0, -1]]
    values = np.sort(np.linspace(np.sqrt(low), np.sqrt(high), 100) ** 2)[::-1]
    edge = 1.05 * law.upper_edge
    return make_fit(law=law, eigenvalues=values, upper_edge=edge, published=True)


@pytest.mark.parametrize("square_root", [True, False])
@pytest.mark.parametrize("spikes", [(40.0, 30.0), (9000.0, 16.0)])
def test_bins_meet_at_the_edge_and_part_noise_from_signal(square_root, spikes):
    fit = make_fit(spikes=spikes)
    spectrum = binned(fit, square_root=square_root)
    edge = np.sqrt(fit.upper_edge) if square_root else fit.upper_edge
    assert np.min(np.abs(spectrum.bins - edge)) < 1e-9 * edge
    below = spectrum.bins[1:] <= edge * (1 + 1e-9)
    assert spectrum.signal[below].sum() == 0
    assert spectrum.noise[below].sum() == 98
    shown = [x for x in spikes if (np.sqrt(x) if square_root else x) <= spectrum.bins[-1]]
    assert spectrum.signal.sum() == len(shown)


def test_misfit_is_what_would_have_to_move():
    fit = make_fit(spikes=(40.0,))  # its noise lies at the quantiles of a law close to noise_law
    assert law_misfit(fit) < 0.1
    assert misfit_note(fit) == ""
    gap = inside_gap()
    spectrum = binned(gap, square_root=True)
    naive = 0.0
    for low, high, count in zip(spectrum.bins, spectrum.bins[1:], spectrum.noise, strict=False):
        expected = float(gap.law.cdf(high**2) - gap.law.cdf(low**2))
        naive += max(0.0, count / 100 - expected)
    assert law_misfit(gap) == pytest.approx(naive)


def test_a_law_with_a_gap_where_the_data_have_none_is_told_of():
    note = misfit_note(inside_gap())
    assert note == f"the law misses {100 * law_misfit(inside_gap()):.0f} % of the noise"
    assert law_misfit(inside_gap()) > 0.2


@pytest.mark.parametrize("fit", [make_cut(), make_degenerate()])
def test_without_a_law_nothing_is_missed(fit):
    assert np.isnan(law_misfit(fit))
    assert misfit_note(fit) == ""
    assert not below_edge(fit).any()


def test_signal_below_the_edge_is_told_from_spikes():
    law = DoubleBulk(0.5, (40.0, 1.0), 0.4)
    middle = law.bulk_edges.ravel()[1:3].mean()
    values = np.sort(np.r_[[middle, 2 * law.upper_edge], make_fit().eigenvalues[2:]])[::-1]
    signal = np.isin(values, [middle, 2 * law.upper_edge])
    fit = make_fit(law=law, eigenvalues=values, is_signal=signal, published=True)
    assert values[below_edge(fit)].tolist() == [middle]
