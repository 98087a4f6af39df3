from __future__ import annotations

from pathlib import Path
from typing import Any

from workbench.report.method_table import TRAINED, Column, results_table, save_results

import pytest


def seed(**further: Any) -> dict[str, Any]:
    row = {"removed": 0.5, "kept": 0.5, "splits": {"test": [1, 0]}}
    curve = {"curve": [[0.5, 0.8], [1.0, 0.9]], **further}
    return {"base": {**row, "curve": [[0.0, 0.7]]}, "pdb": row | curve, "ranks": row | curve}


@pytest.mark.parametrize(("methods", "unit"), [(["pdb"], False), (["pdb", "ranks"], True)])
def test_figures_say_what_is_in_them(
    methods: list[str], unit: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {name: row for name, row in seed(whole=[[1.0, 3]]).items() if name in ("base", *methods)}
    column = Column("digits test", "test", [rows])
    table = results_table([column], methods, base_title=TRAINED)
    save_results(tmp_path, table, [column])
    svg = (tmp_path / "curve-digits.svg").read_text()
    assert ("shared ranks: share of the parameters" in svg) is unit
    assert "hollow: layers without signal stay whole" in svg
    assert "| base (trained from nothing) |" in capsys.readouterr().out
