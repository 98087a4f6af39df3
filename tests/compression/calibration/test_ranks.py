"""Ranks that layers get out of a budget, and out of what may be lost."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from hf_rmt.compression.calibration.ranks import choose_ranks, ranks_that_lose, shared_ranks

SHAPES = {"a": (48, 64), "b": (64, 256), "c": (40, 40)}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def falling(decay: float) -> dict[str, Tensor]:
    return {name: decay ** torch.arange(min(shape)).double() for name, shape in SHAPES.items()}


def lost_share(values: dict[str, Tensor], ranks: dict[str, int | None]) -> float:
    rest = sum(float(values[name][rank:].sum()) for name, rank in ranks.items() if rank is not None)
    return rest / sum(float(value.sum()) for value in values.values())


def test_ranks_are_the_best_choice_within_the_budget() -> None:
    """Against all choices, where every direction costs the same and greed is optimal."""
    worth = {
        name: (random(4, seed=i) ** 2).sort(descending=True).values for i, name in enumerate("abc")
    }
    ranks = choose_ranks(worth, dict.fromkeys(worth, 10), budget=59)
    choices = [c for c in itertools.product(range(5), repeat=3) if sum(c) <= 5]
    best = max(
        choices, key=lambda c: sum(float(worth[n][:r].sum()) for n, r in zip("abc", c, strict=True))
    )
    assert tuple(ranks.values()) == best


def test_a_direction_that_no_longer_fits_makes_room_for_a_cheaper_one() -> None:
    worth = {"dear": torch.tensor([100.0, 90.0]), "cheap": torch.tensor([1.0, 0.5])}
    assert choose_ranks(worth, {"dear": 10, "cheap": 2}, budget=14) == {"dear": 1, "cheap": 2}


def test_worth_is_counted_per_parameter() -> None:
    worth = {"dear": torch.tensor([3.0]), "cheap": torch.tensor([2.0])}
    assert choose_ranks(worth, {"dear": 10, "cheap": 2}, budget=10) == {"dear": 0, "cheap": 1}


def test_the_threshold_stops_as_soon_as_enough_is_kept() -> None:
    worth = {"a": torch.tensor([8.0, 1.0]), "b": torch.tensor([0.9, 0.1])}
    costs = {"a": 1, "b": 1}
    assert choose_ranks(worth, costs, threshold=0.8) == {"a": 1, "b": 0}
    assert choose_ranks(worth, costs, threshold=0.9) == {"a": 2, "b": 0}
    assert choose_ranks(worth, costs) == {"a": 2, "b": 2}


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.97])
@pytest.mark.parametrize("lost", [0.2, 1e-3])
def test_the_smallest_size_that_loses_no_more_is_taken(decay: float, lost: float) -> None:
    values = falling(decay)
    ranks = ranks_that_lose(lost, values, SHAPES)
    assert lost_share(values, ranks) <= lost
    smaller = [shared_ranks(values, SHAPES, size / 100) for size in range(6, 101)]
    first = smaller.index(ranks)
    assert first == 0 or lost_share(values, smaller[first - 1]) > lost


def test_directions_that_all_count_alike_leave_the_layers_dense() -> None:
    assert set(ranks_that_lose(1e-3, falling(1.0), SHAPES).values()) == {None}
    assert set(ranks_that_lose(0.0, falling(1.0), SHAPES).values()) == {None}


def test_without_anything_to_lose_the_smallest_size_with_room_is_taken() -> None:
    zeros = {name: torch.zeros(min(shape)) for name, shape in SHAPES.items()}
    ranks = ranks_that_lose(1e-3, zeros, SHAPES)
    least = 100 * sum(map(sum, SHAPES.values())) / sum(a * b for a, b in SHAPES.values())
    assert ranks == shared_ranks(zeros, SHAPES, math.ceil(least) / 100)


def test_layers_that_stay_low_rank_leave_no_room_unused() -> None:
    shapes = {"a": (11, 9), "b": (7, 12)}
    worth = {"a": torch.tensor([9.0, 1.0, 0.1]), "b": torch.tensor([8.0, 7.0, 6.0])}
    ranks = shared_ranks(worth, shapes, 0.425)
    assert ranks == {"a": 1, "b": 3}


def test_layers_without_room_for_a_direction_are_refused() -> None:
    with pytest.raises(ValueError, match="one direction per layer needs 9"):
        ranks_that_lose(1e-3, {"a": torch.ones(1)}, {"a": (1, 8)})
