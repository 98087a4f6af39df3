from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from hf_rmt.nn import SpikedConv2d, SpikedLinear, TernaryLinear
from hf_rmt.nn.layouts import LAYOUTS, choosing, set_layout
from hf_rmt.nn.layouts.choosing import MARGIN, fastest, possible, remember, remembered


def test_dense_stays_unless_another_is_clearly_faster() -> None:
    assert fastest({"packed": 2.0, "dense": 1.0, "int8": 0.5}) == "int8"
    assert fastest({"packed": 2.0, "dense": 1.0, "int8": MARGIN + 0.01}) == "dense"
    assert fastest({"packed": 1.0, "int8": 2.0}) == "packed"


def test_the_measured_layout_is_taken_and_remembered(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def measured(layer: object, names: tuple[str, ...], *_: object) -> dict[str, float]:
        calls.append(names)
        return {"packed": 3.0, "dense": 2.0, "int8": 1.0}

    monkeypatch.setattr(choosing, "measure", measured)
    for _ in range(2):
        layer = SpikedLinear(64, 64, 2)
        set_layout(layer, "fastest")
        assert layer.layout == "int8"
    assert len(calls) == 1
    (key,) = json.loads((own_cache / "layouts.json").read_text())
    assert "64x64" in key
    assert f"torch {torch.__version__}" in key
    set_layout(SpikedLinear(64, 32, 2), "fastest")
    assert len(calls) == 2


def test_times_are_measured_for_every_layout() -> None:
    layer = SpikedLinear(64, 64, 2)
    names = possible(layer, "int8")
    times = choosing.measure(layer, names, "int8", (1, 4))
    assert (
        set(names)
        == set(times)
        == {name for name, kind in LAYOUTS.items() if not kind.by_name_only}
    )
    assert all(0 < seconds < 1 for seconds in times.values())
    assert layer.layout == "packed"


def test_smallest_needs_the_least_memory() -> None:
    layer = SpikedLinear(512, 512, 2, noise="int4")
    set_layout(layer, "smallest")
    assert layer.layout == "packed"
    estimates = {
        name: kind.estimate(layer) for name, kind in LAYOUTS.items() if not kind.by_name_only
    }
    assert min(estimates, key=lambda name: estimates[name]) == "packed"


def test_what_has_one_layout_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "measure", None)
    for layer, name in (
        (SpikedLinear(64, 64, 2, noise="drop"), "packed"),
        (SpikedConv2d(4, 4, 1, kernel_size=3), "dense"),
    ):
        set_layout(layer, "fastest")
        assert layer.layout == name
    ternary = TernaryLinear(64, 64)
    set_layout(ternary, "smallest")
    assert ternary.layout == "packed"


def test_a_layout_of_another_version_is_measured_again(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "remembered", lambda: defaultdict(lambda: "of the future"))
    monkeypatch.setattr(choosing, "measure", lambda *_: {"packed": 2.0, "int8": 1.0})
    monkeypatch.setattr(choosing, "remember", lambda *_: None)
    layer = SpikedLinear(64, 64, 2)
    set_layout(layer, "fastest")
    assert layer.layout == "int8"


def test_a_measurement_runs_no_hooks_and_draws_no_numbers(own_cache: Path) -> None:
    layer, heard = SpikedLinear(64, 64, 2), []
    layer.register_forward_hook(lambda *given: heard.append(given))
    layer.register_forward_pre_hook(lambda *given: heard.append(given))
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    set_layout(layer, "fastest")
    assert torch.equal(torch.rand(3), expected)
    assert not heard
    layer(torch.ones(1, 64))
    assert len(heard) == 2


def test_a_spoilt_file_is_no_error(own_cache: Path) -> None:
    for content in ("{", "[1]"):
        (own_cache / "layouts.json").write_text(content)
        assert remembered() == {}
    remember("key", "dense")
    assert remembered() == {"key": "dense"}


def test_a_folder_that_cannot_be_written_to_is_no_error(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own_cache / "file").write_text("")
    monkeypatch.setenv("HF_RMT_CACHE", str(own_cache / "file" / "below"))
    remember("key", "dense")
    assert remembered() == {}
    calls: list[object] = []
    times = {"packed": 3.0, "dense": 2.0, "int8": 1.0}
    monkeypatch.setattr(choosing, "measure", lambda *given: calls.append(given) or times)
    for _ in range(2):
        set_layout(SpikedLinear(64, 64, 2), "fastest")
    assert len(calls) == 1
