from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest

from hf_rmt.plan import CompressionPlan, Outcome
from hf_rmt.report import CompressionReport, Sizes
from tests.report.samples import dense_plan, layer_plan


def test_summary_of_totals(plan):
    head = CompressionReport(plan).summary().splitlines()[0]
    assert head == (
        "2 of 3 layers compressed: 10 bits a weight, 0.31 of the dense size, "
        "energy dropped 0 %, energy changed by rounding not measured, 1.5 times the dense time"
    )


def test_summary_warns_of_slower_layers_and_names_the_worst(plan):
    warning = CompressionReport(plan).summary().splitlines()[1]
    assert warning.startswith("Slower than dense: 1 of 1 measured layers, up to 1.50 times")
    assert "(blocks.0.mlp)" in warning


@pytest.mark.parametrize("latency", [None, 0.6, 1.0])
def test_summary_does_not_warn_where_nothing_is_slower(latency):
    summary = CompressionReport(CompressionPlan((layer_plan(latency=latency),))).summary()
    assert "Slower" not in summary
    assert ("dense time" in summary) == (latency is not None)


def test_time_is_weighted_by_the_size_of_layers():
    small = layer_plan("a", shape=(100, 100), latency=2.0)
    large = layer_plan("b", shape=(100, 300), latency=0.4)
    unmeasured = layer_plan("c", shape=(900, 900))
    report = CompressionReport(CompressionPlan((small, large, unmeasured)))
    assert report.latency == pytest.approx((2.0 + 3 * 0.4) / 4)


def test_dense_layers_appear_with_their_reason(plan):
    report = CompressionReport(plan)
    assert "Left dense: 1 (nothing gained)" in report.summary()
    (line,) = [line for line in report.table().splitlines() if line.startswith("blocks.1.key")]
    cells = line.split()
    assert cells[4] == "dense"
    assert cells[6:9] == ["-", "-", "32"]
    assert line.endswith("nothing gained")
    assert str(report) == report.table()


def test_same_reasons_are_counted():
    layers = (dense_plan("a"), dense_plan("b"), dense_plan("c", "the matrix is zero"))
    summary = CompressionReport(CompressionPlan(layers)).summary()
    assert summary == (
        "0 of 3 layers compressed\nLeft dense: 2 (nothing gained); 1 (the matrix is zero)"
    )


def test_table_of_a_compressed_layer(plan):
    (line,) = [
        x for x in CompressionReport(plan).table().splitlines() if x.startswith("blocks.0.mlp")
    ]
    assert line.split() == [
        *("blocks.0.mlp", "100", "x", "200", "compressed", "bulk+spikes"),
        *("7", "int8", "10", "0.312", "25", "%", "0", "%", "1.5"),
    ]


def test_json_holds_the_plan_and_its_totals(plan, tmp_path):
    report = CompressionReport(plan)
    content = json.loads(report.to_json(tmp_path / "x.json"))
    assert CompressionPlan.from_dict(content["layers"]) == plan
    assert content["totals"]["size_ratio"] == plan.size_ratio
    assert content["totals"]["compressed"] == 2
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == content


def test_worst_of_several_slower_layers_is_named():
    layers = [layer_plan(f"blocks.{k}", latency=1.0 + t) for k, t in enumerate((0.2, 0.9, 0.0))]
    summary = CompressionReport(CompressionPlan(tuple(layers))).summary()
    assert "2 of 3 measured layers, up to 1.90 times (blocks.1)" in summary


def test_json_is_strict_where_a_plan_holds_nan():
    plan = CompressionPlan((layer_plan(upper_edge=float("nan")),))
    report = CompressionReport(plan)
    assert json.loads(report.to_json()) == report.to_dict()
    assert report.to_dict()["layers"]["blocks.0.key"]["upper_edge"] is None


def test_csv(plan):
    rows = list(csv.DictReader(io.StringIO(CompressionReport(plan).to_csv())))
    assert [row["state"] for row in rows] == ["compressed", "compressed", "dense"]
    assert float(rows[0]["of_dense_size"]) == 200_000 / 640_000
    assert [row["of_dense_time"] for row in rows] == ["", "1.5", ""]


def test_overview_has_a_panel_of_times_only_where_they_were_measured(plan):
    labels = [axes.get_ylabel() for axes in CompressionReport(plan).plot_overview().axes]
    assert labels[-1].replace("\n", " ") == "time / dense time"
    unmeasured = CompressionReport(CompressionPlan((layer_plan(),)))
    assert len(unmeasured.plot_overview().axes) == len(labels) - 1


def test_overview_draws_dense_bits_with_a_hollow_marker(plan):
    figure = CompressionReport(plan).plot_overview()
    bits = next(axes for axes in figure.axes if axes.get_ylabel().startswith("bits"))
    key, hollow = bits.lines[0], bits.lines[1]
    assert list(key.get_ydata()) == [10.0, 32.0]
    assert list(hollow.get_xdata()) == [1]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["key", "mlp", "hollow: left dense"]


def test_save_puts_the_spectra_into_a_folder_of_their_own(plan, report, tmp_path):
    CompressionReport(plan, report).save(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    texts = {"table.txt", "report.json", "report.html", "layers.csv"}
    assert names == texts | {"overview.svg", "overview.png", "spectra"}
    assert (tmp_path / "spectra" / "spectra.svg").is_file()
    CompressionReport(CompressionPlan(())).save(tmp_path / "empty")
    assert {path.name for path in (tmp_path / "empty").iterdir()} == texts


def test_weights_that_lost_entries_are_told_of():
    pruned = dense_plan(
        "blocks.0.key",
        "zeros",
        outcome=Outcome.REWRITTEN,
        dropped_energy=0.2,
        signal_energy=0.8,
        nonzero=5_000,
    )
    report = CompressionReport(CompressionPlan((pruned, dense_plan("blocks.1.key"))))
    assert report.summary().splitlines()[0] == (
        "0 of 2 layers compressed, 1 filtered in place, energy dropped 20 %, "
        "62.5 % of the layers' parameters left"
    )
    first, second = report.rows()
    assert (first["state"], second["state"]) == ("filtered in place", "dense")
    assert report.summary().splitlines()[1:] == [
        "Left dense: 1 (nothing gained)",
        "Filtered in place: 1 (zeros)",
    ]
    assert (first["dropped_energy"], first["of_dense_parameters"]) == (0.2, 0.25)
    assert second["of_dense_parameters"] is None
    assert np.isnan(second["dropped_energy"])
    assert report.to_dict()["totals"]["parameter_share"] == 0.625
    labels = [axes.get_ylabel() for axes in report.plot_overview().axes]
    assert labels == ["bits per\nweight", "energy dropped\n(fraction)"]


@pytest.mark.parametrize(
    ("noise", "error", "expected"),
    [
        ("int4", 0.0043, "rounding 0.43 %"),
        ("int8", 2e-5, "rounding < 0.1 %"),
        ("int8", None, "rounding not measured"),
        ("drop", None, None),
        ("keep", None, None),
    ],
)
def test_what_rounding_changes_is_said(noise, error, expected):
    report = CompressionReport(CompressionPlan((layer_plan(noise=noise, rounding_error=error),)))
    assert ("rounding" in report.summary()) == (expected is not None)
    assert expected is None or expected in report.summary()
    assert report.to_dict()["totals"]["rounding_error"] == error


def test_sizes_stand_in_their_order_file_layers_share():
    plan = CompressionPlan((layer_plan(), dense_plan()))
    sizes = Sizes(file=(90_000_000, 55_000_000), model_parameters=80_000)
    report = CompressionReport(plan, sizes=sizes)
    file, layers, covered, *_ = report.summary().splitlines()
    assert file == "Weights in the file: 90.0 MB → 55.0 MB (61.1 % of the size before)"
    assert layers.startswith("1 of 2 layers compressed")
    assert covered == "Share of the model covered: 25 % (the other 75 % stays as it was)"
    totals = json.loads(report.to_json())["totals"]
    assert (totals["file"], totals["covered"]) == ([90_000_000, 55_000_000], 0.25)
    assert CompressionReport(plan).covered is None


@pytest.mark.parametrize("sizes", [{"file": (-1, 2)}, {"model_parameters": 0}])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match=next(iter(sizes))):
        Sizes(**sizes)


def test_a_loss_of_rounding_size_is_never_a_negative_number():
    layers = (layer_plan(dropped_energy=-1.54e-15), layer_plan("b", dropped_energy=1e-16))
    report = CompressionReport(CompressionPlan(layers))
    assert "e-1" not in report.table()
    assert "energy dropped < 0.1 %" in report.summary()
