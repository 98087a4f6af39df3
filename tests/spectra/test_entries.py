from __future__ import annotations

import numpy as np
import pytest

from hf_rmt.spectra.entries import entry_diagnostics, row_groups, tall_matrix


def noise(shape=(300, 200), seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def test_gaussian_entries_are_plain():
    """The kurtosis of 60,000 entries has standard deviation sqrt(24 / 60000) = 0.02."""
    found = entry_diagnostics(noise())
    assert found.kurtosis == pytest.approx(3 * 200 / 202, abs=0.08)
    assert (found.zeros, found.repeated_rows, found.repeats, found.heavy) == (0, 0, False, False)
    assert found.row_spread < 0.05


@pytest.mark.parametrize("scale", [1e-150, 1e-20, 1.0, 1e150])
def test_scale_orientation_and_precision_change_nothing(scale):
    weight = np.random.default_rng(1).standard_t(4, (300, 200))
    weight[:10] = 0
    plain = entry_diagnostics(weight)
    for other in (entry_diagnostics(scale * weight), entry_diagnostics(weight.T)):
        assert other.kurtosis == pytest.approx(plain.kurtosis)
        assert other.row_spread == pytest.approx(plain.row_spread)
        assert (other.zeros, other.repeated_rows) == (plain.zeros, plain.repeated_rows)
    single = entry_diagnostics(weight.astype(np.float32))
    assert single.kurtosis == pytest.approx(plain.kurtosis, rel=1e-4)
    assert single.repeated_rows == 10


def test_the_kurtosis_is_that_of_the_formula():
    weight = noise((7, 5)) * np.array([1, 5, 1, 1, 9, 2, 3.0])[:, None]
    rows = [np.mean(row**4) / np.mean(row**2) ** 2 for row in weight]
    assert entry_diagnostics(weight).kurtosis == pytest.approx(np.mean(rows))


def test_unequal_rows_are_measured_without_what_chance_gives():
    """Row variances 9 and 1 have the relative spread 4 / 5."""
    weight = noise((1000, 500)) * np.where(np.arange(1000) < 500, 3.0, 1.0)[:, None]
    assert entry_diagnostics(weight).row_spread == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_repeated_rows_are_counted(kind):
    """Copies, multiples, mirrored and empty rows; the first of its kind is no repetition."""
    weight = noise().astype(kind)
    weight[10] = weight[3]
    weight[20] = -2.5 * weight[3]
    weight[30] = weight[7]
    weight[40:43] = 0
    found = entry_diagnostics(weight)
    assert found.repeated_rows == 6
    assert not found.repeats
    weight[50:60] = weight[60:70]
    assert entry_diagnostics(weight).repeats


def test_rows_are_grouped_by_their_direction():
    weight = noise((6, 4))
    weight[3], weight[5], weight[1] = -2 * weight[0], 3 * weight[2], 0
    groups = row_groups(weight)
    assert groups[1] == -1
    assert groups[3] == groups[0] != groups[2] == groups[5]
    assert sorted(set(groups)) == [-1, 0, 1, 2]
    assert row_groups(np.zeros((3, 2))).tolist() == [-1, -1, -1]


@pytest.mark.parametrize(
    ("weight", "cause", "heavy"),
    [
        (np.random.default_rng(0).standard_t(3, (300, 200)), "heavy-tailed entries", True),
        (noise() * (noise(seed=1) > 1.5), "sparse entries", False),
        (noise() * np.where(np.arange(300) < 30, 3.0, 1)[:, None], "rows of unequal size", False),
        (np.tile(noise((150, 200)), (2, 1)), "150 of 300 rows repeat", False),
    ],
)
def test_the_cause_is_named(weight, cause, heavy):
    found = entry_diagnostics(weight)
    assert cause in found.cause
    assert found.heavy is heavy


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.zeros((3, 2)), "largest entry of 0.0"),
        (np.array([[np.nan, 1.0]]), "largest entry of nan"),
        (np.array([[np.inf, 1.0]]), "largest entry of inf"),
        (np.zeros(3), r"shape \(3,\)"),
        (np.zeros((0, 3)), r"shape \(0, 3\)"),
    ],
)
def test_what_has_no_statistics_is_refused(weight, message):
    with pytest.raises(ValueError, match=message):
        entry_diagnostics(weight)


def test_a_tall_matrix_is_a_view():
    weight = noise((2, 3))
    assert tall_matrix(weight).base is weight
    assert tall_matrix(weight.T.copy()).shape == (3, 2)
