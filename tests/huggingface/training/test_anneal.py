"""When the noise leaves, and how."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from hf_rmt.huggingface.training.anneal import Anneal, amount


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ((0.2, 0.8), (20, 80)),
        ([0.25, 0.25], (25, 25)),
        ((10, 30), (10, 30)),
        ((1, 3, "epochs"), (25, 75)),
        ((0.5, 1.5, "epochs"), (12, 38)),
        ((0, 1), (1, 100)),
        ((200, 300), (100, 100)),
    ],
)
def test_ends_are_parts_of_the_run_steps_or_epochs(given: Any, steps: tuple[int, int]) -> None:
    assert Anneal.of(given).steps(max_steps=100, epochs=4) == steps


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (0.5, TypeError, "anneal must be .start, stop."),
        ((0.2, "0.8"), TypeError, "two numbers, got '0.8'"),
        ((True, 0.8), TypeError, "two numbers, got True"),
        ((0.8, 0.2), ValueError, "0 <= start <= stop"),
        ((-0.1, 0.2), ValueError, "0 <= start <= stop"),
        ((0.2, 1.5), ValueError, "stop <= 1 for parts of a run"),
        ((1, 2, "days"), ValueError, "unit of anneal must be one of run, steps, epochs"),
    ],
)
def test_what_is_no_schedule_is_refused(given: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        Anneal.of(given)


def test_the_amount_falls_from_one_to_nothing_symmetrically() -> None:
    amounts = [amount(step, 4, 12) for step in range(16)]
    assert amounts[:5] == [1.0] * 5
    assert amounts[12:] == [0.0] * 4
    assert all(before > after for before, after in pairwise(amounts[4:13]))
    assert all(amounts[4 + k] + amounts[12 - k] == pytest.approx(1) for k in range(9))


def test_equal_ends_remove_it_at_once() -> None:
    assert [amount(step, 5, 5) for step in (4, 5, 6)] == [1.0, 0.0, 0.0]
