from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_rmt.compression.pruning import largest_entries, random_entries, sparse_factors


def drawn(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
def test_magnitude_keeps_the_largest_entries(dtype: torch.dtype, fraction: float) -> None:
    """In bfloat16 many entries are equally large; the count is exact all the same."""
    weight = torch.randn(30, 20, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = weight.clone()
    pruned = largest_entries(weight, fraction=fraction)
    kept = pruned != 0
    assert int(kept.sum()) == round(fraction * 600)
    assert torch.equal(pruned[kept], weight[kept])
    if fraction < 1:
        assert weight[kept].abs().min() >= weight[~kept].abs().max()
    assert torch.equal(weight, before)


def test_uniform_keeps_a_random_share() -> None:
    weight = torch.arange(1.0, 601.0).reshape(20, 30)
    first, again = (random_entries(weight, fraction=0.3, generator=drawn()) for _ in range(2))
    other = random_entries(weight, fraction=0.3, generator=drawn(1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    for pruned in (first, other):
        kept = pruned != 0
        assert int(kept.sum()) == 180
        assert torch.equal(pruned[kept], weight[kept])
    rows = (first != 0).float().mean(1)  # binomial: 0.3 +- 0.084 a row of 30
    assert rows.min() > 0.0
    assert rows.max() < 0.7


def test_one_entry_always_stays() -> None:
    weight = torch.tensor([[1.0, -3.0, 2.0]])
    assert largest_entries(weight, fraction=0.01).tolist() == [[0.0, -3.0, 0.0]]
    assert int(random_entries(weight, fraction=0.01, generator=drawn()).count_nonzero()) == 1


def test_sparse_low_rank_entry_by_entry() -> None:
    """Of 6 rows and 4 columns the 3 and 2 weakest by their absolute sums keep rank 2 of 4."""
    weight = torch.tensor(
        [
            [9.0, -9.0, 1.0, 1.0],
            [0.1, 0.1, 0.1, 0.1],
            [5.0, 5.0, -5.0, 5.0],
            [0.2, -0.2, 0.0, 0.2],
            [-3.0, 3.0, 3.0, 3.0],
            [0.0, 6.0, 0.0, 0.0],  # a larger norm than that of row 4, a smaller sum
        ]
    )
    left, right = torch.rand(6, 4) + 1, torch.rand(4, 4) + 1
    thin_left, thin_right = sparse_factors(left, right, weight)
    weak_rows, weak_columns = {1, 3, 5}, {2, 3}
    for k in range(4):
        for row in range(6):
            dropped = row in weak_rows and k >= 2
            assert thin_left[row, k] == (0 if dropped else left[row, k])
        for column in range(4):
            dropped = column in weak_columns and k >= 2
            assert thin_right[k, column] == (0 if dropped else right[k, column])
    turned_right, turned_left = sparse_factors(right.T, left.T, weight.T)
    assert torch.equal(turned_left.T, thin_left)
    assert torch.equal(turned_right.T, thin_right)
    assert (left > 0).all()
    assert (right > 0).all()
