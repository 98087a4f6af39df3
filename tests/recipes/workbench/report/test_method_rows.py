from __future__ import annotations

from pathlib import Path
from typing import Any

from workbench.models.filters import Filtered, filtered
from workbench.report import method_rows
from workbench.report.method_rows import sweep

import pytest
import torch


def test_layers_that_come_back_whole_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {0.4: {"a"}, 0.9: {"a"}, 1.0: {"a", "b", "c"}}

    def fake(tuned: Any, base: Any, method: str, removed: float, _: Any) -> Filtered:
        return Filtered(removed, 0.5, frozenset(whole[removed]))

    monkeypatch.setattr(method_rows, "filtered", fake)
    curve, again = sweep(None, None, "pdb", lambda model, split: [model], [0.9, 0.4, 1.0])
    assert curve == [[0.9, 0.9], [0.4, 0.4], [1.0, 1.0]]
    assert again == [[1.0, 2]]  # `a` is never filtered
    assert sweep(None, None, "pdb", lambda model, split: [model], [1.0])[1] == []


@pytest.mark.parametrize("method", ["pdb", "svd"])
def test_untouched_layers_are_told(method: str) -> None:
    from torch import nn

    generator = torch.Generator().manual_seed(0)
    parts = [nn.Linear(200, 200, bias=False) for _ in range(2)]
    for part in parts:
        part.weight.data = torch.randn(200, 200, generator=generator)
    left, right = (torch.randn(200, generator=generator) for _ in range(2))
    parts[1].weight.data += 3 * torch.outer(left, right)
    net = nn.Sequential(parts[0], parts[1], nn.Linear(200, 2))
    some, every = (filtered(net, net, method, share).whole for share in (0.5, 1.0))
    # the first layer is noise alone: a law finds nothing in it, a truncation keeps one direction
    assert every - some == ({"0"} if method == "pdb" else set())


def test_a_row_layer_by_layer_is_searched_and_can_be_saved_again(tmp_path: Path) -> None:
    from torch import nn

    torch.manual_seed(0)
    parts = [nn.Linear(96, 96, bias=False) for _ in range(2)]
    for part in parts:
        part.weight.data = torch.randn(96, 96) + 40 * torch.outer(*torch.randn(2, 96)) / 96
    net = nn.Sequential(*parts, nn.Linear(96, 2))
    asked: list[str] = []

    def evaluate(model: Any, split: str) -> list[bool]:
        asked.append(split)
        dense = getattr(model[1], "dense", lambda: model[1].weight)()
        return [True, bool(torch.equal(dense, net[1].weight))]  # the second layer must stay

    rows = method_rows.method_rows(
        tmp_path / "rows.json",
        net,
        net,
        evaluate,
        splits=["test"],
        methods=["pdb-layers"],
        fractions=[0.5, 1.0],
    )
    row = rows["pdb-layers"]
    assert row["layers"] == {"0": 1.0}
    assert row["curve"] == [[0.5, 1.0]]
    assert row["splits"]["test"] == [1, 1]
    assert row["kept"] == pytest.approx((192 + 96**2) / (2 * 96**2))
    assert set(asked) == {"selection", "test"}
    assert (tmp_path / "search-pdb-layers.json").exists()
    again = filtered(net, net, "pdb-layers", row["layers"]).model
    assert [type(part).__name__ for part in again] == ["SpikedLinear", "Linear", "Linear"]
    assert filtered(net, net, "pdb-layers", {}).kept == 1.0
