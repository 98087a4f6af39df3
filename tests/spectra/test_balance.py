from __future__ import annotations

import numpy as np
import pytest

from hf_rmt.spectra.balance import balance


def uneven(shape=(60, 40), seed=0):
    generator = np.random.default_rng(seed)
    rows, columns = (np.exp(generator.standard_normal(side)) for side in shape)
    return rows[:, None] * generator.standard_normal(shape) * columns


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (50, 50), (1, 7), (7, 1)])
@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_rows_and_columns_are_even_and_the_weight_comes_back(shape, scale):
    weight = scale * uneven(shape)
    scaled, rows, columns = balance(weight)
    relative = scaled / scale
    mean_square = np.mean((weight / scale) ** 2)
    for axis in (0, 1):
        assert np.mean(relative**2, axis) == pytest.approx(mean_square, rel=1e-4)
    assert np.mean(columns**2) == pytest.approx(1)
    np.testing.assert_allclose(rows[:, None] * scaled * columns, weight, rtol=1e-12)


def test_scales_are_found_up_to_chance():
    """A row's mean square over 400 Gaussian entries has relative deviation sqrt(2 / 400) = 7 %."""
    generator = np.random.default_rng(1)
    known = np.exp(generator.standard_normal(500))
    _, rows, _ = balance(known[:, None] * generator.standard_normal((500, 400)))
    ratio = rows / known
    assert np.std(ratio / ratio.mean()) < 0.06


def test_dead_rows_and_columns_keep_the_scale_one_or_that_of_all():
    weight = uneven()
    weight[3], weight[:, 5] = 0, 0
    scaled, rows, columns = balance(weight)
    assert np.isfinite(rows).all()
    assert np.isfinite(columns).all()
    np.testing.assert_allclose(rows[:, None] * scaled * columns, weight)
    zero, rows, columns = balance(np.zeros((3, 2)))
    assert not zero.any()
    assert (rows == 1).all()
    assert (columns == 1).all()


def test_a_weight_that_cannot_be_balanced_is_given_back_whole():
    weight = np.array([[1.0, 1.0], [0.0, 1.0]])
    scaled, rows, columns = balance(weight)
    np.testing.assert_allclose(rows[:, None] * scaled * columns, weight)


def test_the_input_is_left_alone():
    weight = uneven()
    weight.setflags(write=False)
    assert balance(weight)[0] is not weight


@pytest.mark.parametrize("weight", [np.ones(3), np.array([[np.nan, 1.0]]), np.array([[np.inf]])])
def test_what_is_no_finite_matrix_is_refused(weight):
    with pytest.raises(ValueError, match="balance takes a finite matrix"):
        balance(weight)
