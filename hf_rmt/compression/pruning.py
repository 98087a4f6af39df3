"""Sets entries of a weight, or of the two factors that approximate it, to zero.

Zeros are stored like any other number, so these functions save no memory by themselves.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SPARSITY_RATE = 0.5
"""`sparse_factors` counts this share of the rows and of the columns of a weight as unimportant."""
REDUCTION_RATE = 0.5
"""In the two factors that `sparse_factors` returns, unimportant rows and columns keep this share of
their entries. If this and `SPARSITY_RATE` are 1/2, a quarter of the entries of the factors is 0."""


def largest_entries(weight: Tensor, *, fraction: float) -> Tensor:
    """Magnitude pruning: the entries of largest absolute value stay, and others become zero.

    Args:
        weight: A tensor of any shape; it is not changed.
        fraction: Share of the entries that stays, in (0, 1]; at least one entry stays.

    Returns:
        The new weight.

    Source:
        Han, Pool, Tran & Dally, NeurIPS 2015.

    Examples:
        >>> weight = torch.tensor([[3.0, -4.0], [1.0, -2.0]])
        >>> largest_entries(weight, fraction=0.5)
        tensor([[ 3., -4.],
                [ 0.,  0.]])
    """
    sizes = weight.abs().flatten()
    return _keep(weight, torch.topk(sizes, _count(weight, fraction), sorted=False).indices)


def random_entries(weight: Tensor, *, fraction: float, generator: np.random.Generator) -> Tensor:
    """Uniform pruning: a random share of the entries stays, and all others become zero.

    Args:
        weight: A tensor of any shape; it is not changed.
        fraction: Share of the entries that stays, in (0, 1]; at least one entry stays.
        generator: The random generator that chooses the entries.

    Returns:
        The new weight.

    Examples:
        >>> generator = np.random.default_rng(0)
        >>> int(random_entries(torch.ones(10, 10), fraction=0.3, generator=generator).sum())
        30
    """
    chosen = generator.permutation(weight.numel())[: _count(weight, fraction)]
    return _keep(weight, torch.from_numpy(chosen).to(weight.device))


def sparse_factors(left: Tensor, right: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Sparse low rank (SLR): in two factors of a weight, set some entries to zero.

    The importance of a row (an output) or a column (an input) of the weight is the sum of its
    absolute values. The paper has other measures too, but only this one needs no data. Each row of
    the weight has a row in the left factor, and each column has a column in the right factor. In
    the factors, unimportant rows and columns keep only their first entries. Their other entries
    become zero. `SPARSITY_RATE` is the share of rows and columns that count as unimportant, and
    `REDUCTION_RATE` is the share of entries that these keep.

    Args:
        left: The left factor, shape (out, rank). The first column belongs to the largest singular
            value of the weight, and so on.
        right: The right factor, shape (rank, in), with rows in the same order.
        weight: The weight that the factors approximate, shape (out, in).

    Returns:
        New factors of the same shapes, with zeros.

    Source:
        Swaminathan, Garg, Kannan & Andres, Neurocomputing 398 (2020).
    """
    kept = round(REDUCTION_RATE * left.shape[1])
    left, right = left.clone(), right.clone()
    left[_least(weight.abs().sum(1)), kept:] = 0
    right[kept:, _least(weight.abs().sum(0))] = 0
    return left, right


def _least(importance: Tensor) -> Tensor:
    return importance.argsort(stable=True)[: round(SPARSITY_RATE * len(importance))]


def _count(weight: Tensor, fraction: float) -> int:
    return max(1, round(fraction * weight.numel()))


def _keep(weight: Tensor, positions: Tensor) -> Tensor:
    entries = weight.flatten()
    return torch.zeros_like(entries).index_copy(0, positions, entries[positions]).view_as(weight)
