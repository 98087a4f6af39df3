from __future__ import annotations

from pathlib import Path

from workbench.report.memory_study import Finished, draw_curves

import pytest

CURVES = {
    "dense": [(1.0, 0.94), (10.0, 0.98)],
    "ours": [(0.5, 0.93), (5.0, 0.97)],
    "naive": [(0.6, 0.10), (6.0, 0.95)],
}


def test_one_failure_does_not_squash_the_others() -> None:
    (axes,) = draw_curves({"memory": CURVES}, metric="accuracy", title="").axes
    low, high = axes.get_ylim()
    assert low < 0.93 < 0.98 < high
    assert high - low < 0.1
    (note,) = axes.texts
    assert (note.get_text(), note.xy) == ("0.1", (0.6, low))
    arrows = [
        line for line in axes.lines if line.get_marker() == "v" and len(line.get_xdata()) == 1
    ]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in arrows] == [(0.6, low)]


def test_without_a_failure_every_value_is_seen() -> None:
    few = {name: CURVES[name] for name in ("dense", "ours")}
    (axes,) = draw_curves({"memory": few}, metric="accuracy", title="").axes
    assert not axes.texts
    low, high = axes.get_ylim()
    assert low < 0.93
    assert high > 0.98


def test_finished_runs_are_kept_for_one_setting(tmp_path: Path) -> None:
    Finished(tmp_path, {"a": 1}).add("run", {"error": 0.5})
    assert Finished(tmp_path, {"a": 1}).rows == {"run": {"error": 0.5}}
    with pytest.raises(SystemExit, match="another setting; pass another --output_dir"):
        Finished(tmp_path, {"a": 2})
