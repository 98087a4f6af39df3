from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from itertools import count, cycle, repeat
from typing import Any

import pytest
import torch

from hf_rmt.compression.latency import BUDGET, MIN_PAIRS, SETTLED_PAIRS, latency_ratio
from hf_rmt.nn import NOISE_KINDS, SpikedLinear

Delays = Iterator[float]
TIMES = {SpikedLinear: 0.003, torch.nn.Linear: 0.002}


@pytest.mark.parametrize("noise", NOISE_KINDS)
def test_ratio_is_measured_quickly(noise: str) -> None:
    start = time.perf_counter()
    ratio = latency_ratio((256, 128), 4, noise, tokens=32)
    assert ratio is None or 0 < ratio < 1000
    assert time.perf_counter() - start < 5


@pytest.fixture(autouse=True)
def nothing_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_rmt.compression.latency._MEASURED", {})


def test_what_was_measured_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ratios = iter([None, 1.5, 2.5])
    monkeypatch.setattr("hf_rmt.compression.latency._measure", lambda *_: next(ratios))
    found = [latency_ratio((8, 8), 1, "int8") for _ in range(3)]
    assert found == [None, 1.5, 1.5]
    assert latency_ratio((8, 8), 2, "int8") == 2.5


@pytest.fixture
def stopwatch(monkeypatch: pytest.MonkeyPatch) -> Callable[[Delays], Delays]:
    """A clock that calls alone advance: by 3 ms for the compressed layer, by 2 ms for the dense."""

    def start(delays: Delays) -> Delays:
        clock, call = {"now": 0.0}, torch.nn.Module.__call__

        def timed(self: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
            clock["now"] += TIMES.get(type(self), 0.0)
            if type(self) in TIMES:
                clock["now"] += next(delays)
            return call(self, *args, **kwargs)

        monkeypatch.setattr("hf_rmt.compression.latency.time.perf_counter", lambda: clock["now"])
        monkeypatch.setattr(torch.nn.Module, "__call__", timed)
        return delays

    return start


def test_time_is_that_of_the_layers(stopwatch: Callable[[Delays], Delays]) -> None:
    stopwatch(repeat(0.0))
    assert latency_ratio((8, 8), 1, "int8", tokens=2) == pytest.approx(1.5)


@pytest.mark.parametrize("seed", range(5))
def test_what_else_runs_does_not_count(stopwatch: Callable[[Delays], Delays], seed: int) -> None:
    """Two calls of three are put off by up to three time slices, as on a machine that is full."""
    draw = random.Random(seed)
    stopwatch(draw.choice([0.0, draw.uniform(0, 0.012), draw.uniform(0, 0.012)]) for _ in count())
    assert latency_ratio((8, 8), 1, "int8", tokens=2) == pytest.approx(1.5, rel=0.1)


def test_a_quiet_machine_is_not_asked_for_long(stopwatch: Callable[[Delays], Delays]) -> None:
    left = stopwatch(iter([0.0] * 200))
    latency_ratio((8, 8), 1, "int8", tokens=2)
    assert len(list(left)) == 200 - 2 * (1 + SETTLED_PAIRS)


def test_a_measurement_that_does_not_agree_with_itself_is_none(
    stopwatch: Callable[[Delays], Delays],
) -> None:
    stopwatch(cycle([0.0, 0.0, 0.2, 0.0]))  # the compressed layer, every second time
    assert latency_ratio((8, 8), 1, "int8", tokens=2) is None


def test_the_budget_ends_it(stopwatch: Callable[[Delays], Delays]) -> None:
    left = stopwatch(iter([BUDGET] * 200))
    latency_ratio((8, 8), 1, "int8", tokens=2)
    assert len(list(left)) == 200 - 2 * (1 + MIN_PAIRS)


def test_bad_rank_is_refused() -> None:
    with pytest.raises(ValueError, match="rank must lie"):
        latency_ratio((8, 8), 9, "int8")
