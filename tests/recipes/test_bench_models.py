"""Which models `bench_models.py` compares."""

from __future__ import annotations

import importlib

import pytest

from tests.processes import RECIPES


def test_only_the_named_rows_are_compared_with_the_dense_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(RECIPES)
    chosen = importlib.import_module("bench_models").chosen
    rows = {"dense fp32": 1, "packed": 2, "dense": 3}
    assert chosen(rows, None) == rows
    assert chosen(rows, ["dense"]) == {"dense fp32": 1, "dense": 3}
    with pytest.raises(SystemExit, match=r"'bare' is no row; choose among 'dense fp32', 'packed'"):
        chosen(rows, ["dense", "bare"])
