"""Gram matrices, and factors with no more directions than their product has."""

from __future__ import annotations

import pytest
import torch

from hf_rmt.compression.gram import balanced, fewest_directions, gram

SHAPES = [(5, 9, 3, 3), (5, 9, 12, 5), (9, 5, 5, 5), (4, 4, 8, 4), (1, 6, 4, 1)]


@pytest.mark.parametrize(("rows", "columns", "given", "rank"), SHAPES)
def test_the_product_stays_and_its_directions_are_as_few_as_its_rank(
    rows: int, columns: int, given: int, rank: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(rows, given, generator=generator)
    right = torch.randn(given, columns, generator=generator)
    fewer = fewest_directions(left, right)
    assert (fewer[0].shape, fewer[1].shape) == ((rows, rank), (rank, columns))
    torch.testing.assert_close(fewer[0] @ fewer[1], left.double() @ right.double())
    torch.testing.assert_close(fewer[0].norm(dim=0), fewer[1].norm(dim=1))


def test_directions_that_repeat_others_or_are_zero_are_left_out() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(7, 2, generator=generator), torch.randn(2, 6, generator=generator)
    doubled = torch.cat([left, 3 * left, 0 * left], 1), torch.cat([right, right, right])
    fewer = fewest_directions(*doubled)
    assert fewer[0].shape == (7, 2)
    torch.testing.assert_close(fewer[0] @ fewer[1], 4 * left.double() @ right.double())
    assert fewest_directions(0 * left, right)[0].shape == (7, 0)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1.0, 1e20, 1e30])
def test_factors_of_any_size_are_balanced(scale: float) -> None:
    """The squares of these entries are no float32 numbers."""
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(5, 2, generator=generator), torch.randn(2, 6, generator=generator)
    found = balanced(left * scale, right / scale)
    torch.testing.assert_close(found[0] @ found[1], left @ right)
    torch.testing.assert_close(found[0].norm(dim=0), found[1].norm(dim=1))


def test_a_direction_with_a_factor_of_zero_becomes_zero() -> None:
    left, right = torch.ones(3, 3), torch.ones(3, 4) * 1e30
    left[:, 0], right[1] = 0, 0
    found = balanced(left, right)
    assert not found[0][:, :2].any()
    assert not found[1][:2].any()
    torch.testing.assert_close(found[0] @ found[1], left @ right)
    assert balanced(torch.ones(3, 0), torch.ones(0, 2))[0].shape == (3, 0)


@pytest.mark.parametrize("shape", [(300, 257), (257, 300), (1030, 1030), (256, 256), (40, 7)])
def test_a_gram_matrix_has_all_of_its_blocks(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    squares = gram(matrix)
    expected = matrix.T @ matrix if shape[0] >= shape[1] else matrix @ matrix.T
    torch.testing.assert_close(squares, expected)
