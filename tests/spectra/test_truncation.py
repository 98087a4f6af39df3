from __future__ import annotations

import numpy as np
import pytest

from hf_rmt.spectra import Phase, truncate
from hf_rmt.spectra.truncation import unsplit

VALUES = np.array([8.0, 4.0, 2.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"rank": 2}, 2),
        ({"rank": 9}, 5),
        ({"energy": 0.75}, 2),
        ({"energy": 0.76}, 3),
        ({"energy": 1.0}, 5),
        ({"fraction": 0.5}, 2),
        ({"fraction": 0.01}, 1),
        ({"fraction": 1.0}, 5),
    ],
)
def test_the_largest_directions_are_kept(options: dict[str, float], count: int) -> None:
    fit = truncate(VALUES[::-1], (5, 7), **options)
    np.testing.assert_array_equal(fit.eigenvalues, VALUES)
    np.testing.assert_array_equal(fit.is_signal, np.arange(5) < count)
    assert fit.shape == (7, 5)
    assert fit.signal_energy == pytest.approx(VALUES[:count].sum() / 16)


def test_there_is_no_law_and_nothing_to_recover() -> None:
    fit = truncate(VALUES, (7, 5), rank=3)
    assert (fit.law, fit.noise_law, str(fit.phase), fit.reason) == (None, None, "no law", "")
    np.testing.assert_array_equal(fit.spikes, VALUES[:3])
    assert np.isnan([fit.upper_edge, fit.distance, fit.moment(1)]).all()


def test_a_spectrum_without_a_split_has_no_signal() -> None:
    fit = unsplit(VALUES, (7, 5))
    assert (fit.n_spikes, fit.phase) == (0, Phase.LAWLESS)


@pytest.mark.parametrize(
    ("values", "words"), [(np.zeros(5), "zero"), (np.full(5, np.nan), "nan or inf")]
)
def test_hopeless_spectra_are_degenerate(values: np.ndarray, words: str) -> None:
    for fit in (truncate(values, (7, 5), rank=1), unsplit(values, (7, 5))):
        assert fit.phase == Phase.DEGENERATE
        assert words in fit.reason


@pytest.mark.parametrize("options", [{}, {"rank": 2, "energy": 0.5}])
def test_what_is_kept_is_said_once(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="exactly one of rank, energy and fraction"):
        truncate(VALUES, (7, 5), **options)


def test_eigenvalues_must_fit_the_shape() -> None:
    with pytest.raises(ValueError, match="has 6 eigenvalues"):
        truncate(VALUES, (7, 6), rank=1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": -1}, "rank must be at least 1, got -1"),
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"energy": 2.0}, r"energy must lie in \(0, 1\], got 2.0"),
        ({"energy": 0.0}, r"energy must lie in \(0, 1\], got 0.0"),
        ({"energy": np.nan}, r"energy must lie in \(0, 1\], got nan"),
        ({"fraction": 2.0}, r"fraction must lie in \(0, 1\], got 2.0"),
    ],
)
def test_a_share_or_rank_out_of_range_is_named(options: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        truncate(VALUES, (7, 5), **options)


def test_a_rank_is_a_whole_number() -> None:
    with pytest.raises(TypeError, match=r"rank must be an integer of at least 1, got 1.5"):
        truncate(VALUES, (7, 5), rank=1.5)
    assert truncate(VALUES, (7, 5), rank=np.int64(2)).n_spikes == 2
