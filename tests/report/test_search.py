from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from matplotlib.colors import to_hex

from hf_rmt.plan import CompressionPlan, Outcome
from hf_rmt.report.figures.style import palette
from hf_rmt.report.search import Evaluation, SearchReport, within
from tests.report.samples import layer_plan

REMOVAL = {"blocks.0.key": 1.0, "blocks.0.mlp": 0.5}


@pytest.fixture
def found() -> SearchReport:
    """Three layers: one compressed to half its size, one filtered in place, one left alone."""
    compressed = layer_plan("blocks.0.key", rank=20, bits=320_000, dropped_energy=0.4)
    in_place = layer_plan("blocks.0.mlp", outcome=Outcome.KEPT, bits=640_000, dropped_energy=0.1)
    return SearchReport(
        baseline=0.9,
        tolerance=0.01,
        metric=0.895,
        removal=REMOVAL,
        curve=((0.5, 0.893), (0.75, 0.7), (1.0, math.inf - math.inf)),
        evaluations=(Evaluation({}, 0.9), Evaluation({"blocks.0.key": 1.0}, math.nan)),
        layers={"blocks.0.key": (100, 200), "blocks.0.mlp": (100, 200), "blocks.1.key": (200, 400)},
        plan=CompressionPlan((compressed, in_place)),
        settings={"method": "pdb"},
    )


@pytest.mark.parametrize(
    ("metric", "holds"),
    [(0.8, True), (0.9, True), (0.95, True), (0.7999, False), (math.nan, False), (math.inf, True)],
)
def test_within_is_one_sided(metric, holds):
    assert within(metric, 0.9, 0.1) == holds


def test_within_forgives_rounding():
    assert 0.51 - 0.1 > 0.41
    assert within(0.41, 0.51, 0.1)


def test_means_count_layers_and_sizes_count_entries(found):
    assert found.mean_removal == pytest.approx((1.0 + 0.5 + 0.0) / 3)
    assert found.size_ratio == pytest.approx((0.5 * 20_000 + 20_000 + 80_000) / 120_000)
    assert found.uniform_removal == 0.5
    assert replace(found, tolerance=0.001).uniform_removal == 0.0


def test_the_largest_fraction_that_holds_need_not_be_before_the_first_that_does_not(found):
    curve = ((0.4, 0.9), (0.5, 0.7), (0.75, 0.9), (1.0, 0.1))
    assert replace(found, curve=curve).uniform_removal == 0.75


def test_table_has_a_line_for_each_layer_the_curve_and_a_summary(found):
    lines = [line.split() for line in str(found).splitlines()]
    assert ["blocks.0.key", "100", "x", "200", "100", "%", "40", "%", "20", "0.5"] in lines
    assert ["blocks.0.mlp", "100", "x", "200", "50", "%", "10", "%", "-", "1"] in lines
    assert ["blocks.1.key", "200", "x", "400", "0", "%", "0", "%", "-", "1"] in lines
    assert ["75", "%", "0.7"] in lines
    assert str(found).splitlines()[-1] == (
        "metric 0.895, unfiltered 0.9, tolerance 0.01: 2 of 3 layers lose noise; over all 3 layers "
        "the mean loss is 50 % of the noise directions, and 50 % if all layers get the same "
        "fraction; 0.92 of the dense size; 2 evaluations"
    )


def test_a_metric_of_minus_zero_is_zero(found):
    text = str(replace(found, metric=-0.0, baseline=-0.0, curve=((0.5, -0.0),)))
    assert "-0" not in text
    assert "metric 0, unfiltered 0," in text


def test_json_is_strict_and_comes_back(found, tmp_path):
    text = found.to_json(tmp_path / "search.json")
    content = json.loads(text, parse_constant=pytest.fail)
    assert content["curve"][2] == [1.0, None]
    for source in (text, tmp_path / "search.json"):
        back = SearchReport.from_json(source)
        assert math.isnan(back.curve[2][1])
        assert math.isnan(back.evaluations[1].metric)
        assert back.to_json() == text
        assert back.layers == found.layers
        assert back.plan == found.plan
        assert back.curve[:2] == found.curve[:2]


@pytest.mark.parametrize("text", ['{"baseline": 1.0}', "[]"])
def test_other_json_is_refused(text):
    with pytest.raises(ValueError, match="a search has the fields"):
        SearchReport.from_json(text)


@pytest.mark.parametrize("dark", [False, True])
def test_curve_shows_baseline_tolerance_and_what_was_found(found, dark):
    figure = found.plot_curve(dark=dark)
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.lines}
    assert lines["unfiltered"].get_ydata()[0] == 0.9
    assert lines["tolerance"].get_ydata()[0] == pytest.approx(0.89)
    alike = lines["the same in every layer"]
    assert list(alike.get_xdata()) == [0.0, 50.0, 75.0, 100.0]
    assert list(alike.get_ydata())[:3] == [0.9, 0.893, 0.7]
    spot = lines["layer by layer (mean)"]
    assert list(spot.get_xdata()) == pytest.approx([50.0])
    assert list(spot.get_ydata()) == [0.895]
    assert to_hex(figure.get_facecolor()) == palette(dark=dark).background
    assert "%" in axes.get_xlabel()


def test_save_writes_texts_and_figures(found, tmp_path):
    folder = tmp_path / "new" / "search"
    found.save(folder)
    names = {"search.json", "table.txt", "curve.svg", "curve.png"}
    assert {path.name for path in folder.iterdir()} == names
    assert (folder / "table.txt").read_text() == f"{found}\n"
    assert "unfiltered" in (folder / "curve.svg").read_text()
