from __future__ import annotations

import time

import pytest
import torch

from hf_rmt.nn import NOISE_KINDS, latency_ratio


@pytest.mark.parametrize("noise", NOISE_KINDS)
def test_ratio_is_measured_quickly(noise: str) -> None:
    start = time.perf_counter()
    ratio = latency_ratio((256, 128), 4, noise, tokens=32)
    assert 0 < ratio < 1000
    assert time.perf_counter() - start < 5


def test_a_thin_signal_alone_is_faster_than_the_dense_layer() -> None:
    assert latency_ratio((1024, 1024), 8, "drop", tokens=256) < 1


def test_time_is_that_of_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock advances 3 for the compressed layer and 2 for the dense one."""
    clock = {"now": 0.0}
    monkeypatch.setattr("hf_rmt.nn.latency.time.perf_counter", lambda: clock["now"])
    advance = {"SpikedLinear": 3.0, "Linear": 2.0}
    call = torch.nn.Module.__call__

    def slow(self: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        clock["now"] += advance.get(type(self).__name__, 0.0)
        return call(self, x)

    monkeypatch.setattr(torch.nn.Module, "__call__", slow)
    assert latency_ratio((8, 8), 1, "int8", tokens=2) == 1.5


def test_bad_rank_is_refused() -> None:
    with pytest.raises(ValueError, match="rank must lie"):
        latency_ratio((8, 8), 9, "int8")
