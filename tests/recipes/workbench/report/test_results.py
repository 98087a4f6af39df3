from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from workbench.report.result_figures import curve_figure, difference_figure, save_table
from workbench.report.results import Result, ResultsTable

import pytest
from matplotlib.colors import to_rgba


@pytest.fixture
def table() -> ResultsTable:
    return ResultsTable(
        (
            Result("base", "one", (0.8, 0.9), published=0.70),
            Result("base", "two", (0.6, 0.7)),
            Result("PDB", "one", (0.9, 0.9), 0.05, (0.01, 0.09), 0.75, "half removed"),
            Result("SVD", "two", (0.6, 0.6), -0.05),
        ),
        title="A comparison",
        metric="accuracy (share)",
        level=0.9,
        differences=("model: smaller",),
        notes=("two seeds",),
    )


def test_markdown_puts_what_was_published_beside_ours(table: ResultsTable, tmp_path: Path) -> None:
    text = table.to_markdown(tmp_path / "results.md")
    lines = text.splitlines()
    assert lines[0] == "## A comparison"
    assert lines[2] == "| method | one | one, published | two |"
    assert lines[4] == "| base | 0.8500 | 0.7000 | 0.6500 |"
    assert lines[5] == "| PDB | 0.9000 (+0.0500 [+0.0100, +0.0900]) | 0.7500 | - |"
    assert lines[6] == "| SVD | - | - | 0.6000 (-0.0500) |"
    assert lines[8] == (
        "accuracy (share), mean over 2 seeds; in brackets the difference to base and its 90 % "
        "interval."
    )
    assert "another setting:\n\n- model: smaller" in text
    assert "Notes:\n\n- two seeds" in text
    assert (tmp_path / "results.md").read_text() == text + "\n"


def test_csv_has_a_row_for_each_result_in_full_precision(table: ResultsTable) -> None:
    rows = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert len(rows) == 4
    assert rows[2] == {
        "method": "PDB",
        "column": "one",
        "mean": "0.9",
        "seeds": "2",
        "values": "0.9 0.9",
        "difference": "0.05",
        "low": "0.01",
        "high": "0.09",
        "published": "0.75",
        "note": "half removed",
    }
    assert rows[3]["low"] == rows[3]["published"] == ""


def test_json_round_trips(table: ResultsTable) -> None:
    assert ResultsTable.from_dict(json.loads(table.to_json())) == table


def test_the_figure_shows_differences_intervals_and_published_ones(table: ResultsTable) -> None:
    figure = difference_figure(table, dark=True)
    one, two = figure.axes
    assert (one.get_title(), two.get_title()) == ("one", "two")
    assert [label.get_text() for label in one.get_yticklabels()] == ["base", "PDB", "SVD"]
    assert one.get_xlabel().endswith("of accuracy (share)")
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in one.lines]
    assert ([0.01, 0.09], [1, 1]) in drawn
    assert ([0.05], [1]) in drawn
    hollow = [line for line in one.lines if line.get_markerfacecolor() == "none"]
    assert sorted(float(x) for line in hollow for x in line.get_xdata()) == pytest.approx([0, 0.05])
    assert ([-0.05], [2]) in [(list(x.get_xdata()), list(x.get_ydata())) for x in two.lines]


def test_saving_writes_texts_and_a_figure(table: ResultsTable, tmp_path: Path) -> None:
    save_table(table, tmp_path / "new" / "folder")
    names = {file.name for file in (tmp_path / "new" / "folder").iterdir()}
    assert names == {f"results.{kind}" for kind in ("md", "csv", "json", "svg", "png")}
    svg = (tmp_path / "new" / "folder" / "results.svg").read_text()
    assert "A comparison" in svg  # text stays text
    assert "fill: #ffffff" in svg


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Result("a", "b", ()), "'a' has no values on 'b'"),
        (lambda: Result("a", "b", (1.0,), 0.0, (0.1, -0.1)), r"\(low, high\), got \(0.1, -0.1\)"),
        (lambda: ResultsTable(()), "at least one result, got 0"),
        (lambda: ResultsTable((Result("a", "b", (1.0,)),) * 2), "same method and column"),
        (lambda: curve_figure({}), "at least one curve, got 0"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_curves_are_drawn_in_percent_beside_the_level_of_the_base() -> None:
    points = [(0.4, 0.8), (1.0, 0.5)]
    figure = curve_figure({"PDB": points, "SVD": points[:1]}, base=0.9, metric="accuracy")
    (axes,) = figure.axes
    level, pdb, svd = axes.lines
    assert list(level.get_ydata()) == [0.9, 0.9]
    assert (list(pdb.get_xdata()), list(pdb.get_ydata())) == ([40.0, 100.0], [0.8, 0.5])
    assert pdb.get_color() != svd.get_color()
    assert pdb.get_marker() != svd.get_marker()
    assert axes.get_xlim() == (-2, 102)  # all shares, also where a single one was tried
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("noise directions removed (%)", "accuracy")


def test_points_where_layers_stay_whole_are_hollow_and_explained() -> None:
    curves = {"PDB": [(0.9, 0.85), (1.0, 0.975)], "SVD": [(1.0, 0.5)]}
    (axes,) = curve_figure(curves, marked={"PDB": {1.0}, "SVD": set()}).axes
    ground = axes.get_facecolor()
    hollow = [
        line.get_data()
        for line in axes.lines
        if to_rgba(line.get_markerfacecolor()) == ground and len(line.get_xdata())
    ]
    assert [(list(x), list(y)) for x, y in hollow] == [([100.0], [0.975])]
    labels = axes.get_legend_handles_labels()[1]
    assert labels == ["PDB", "SVD", "hollow: layers without signal stay whole"]
    assert len(curve_figure(curves).axes[0].get_legend_handles_labels()[1]) == 2


def test_the_legend_says_what_the_bars_are(table: ResultsTable) -> None:
    (legend,) = difference_figure(table).legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["measured; bars: 90 % interval of the difference", "published"]
    bare = ResultsTable((Result("base", "one", (0.8,)), Result("SVD", "one", (0.6,), -0.2)))
    (legend,) = difference_figure(bare).legends
    assert [text.get_text() for text in legend.get_texts()] == ["measured"]
