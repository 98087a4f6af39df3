from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hf_rmt.report import LayerSpectrum, SpectralReport
from hf_rmt.spectra import DoubleBulk, fit_double_bulk
from tests.report.samples import (
    COLUMNS,
    ROWS,
    make_cut,
    make_degenerate,
    make_fit,
    make_unit,
    spectral_report,
)


def line_of(report, name):
    (line,) = [line for line in report.table().splitlines() if line.startswith(name)]
    return line


def test_table_shows_every_quantity(report):
    fit = report["encoder.layer.0.key"].fit
    line = line_of(report, "encoder.layer.0.key")
    law = fit.law
    shown = [fit.stable_rank, fit.upper_edge, fit.distance, law.mixing]
    share = [f"{100 * fit.signal_energy:.3g}", "%"]
    numbers = [f"{x:.3g}" for x in shown]
    expected = ["200", "x", "100", "bulk+spikes", "2", *share, *numbers, "4", "1"]
    assert line.split()[1:] == expected
    assert str(report) == report.table()


def test_table_says_why_a_model_does_not_hold(report):
    assert line_of(report, "encoder.layer.1.mlp").endswith("keeps growing: 30 of 100")
    assert line_of(report, "head").endswith("the matrix is zero")
    assert line_of(report, "head").count(" -  ") == 5


def test_notes_name_spikes_in_the_gap_and_a_count_that_did_not_settle():
    law = DoubleBulk(0.5, (40.0, 1.0), 0.4)
    middle = law.bulk_edges.ravel()[1:3].mean()
    spikes = [middle, 1.2 * law.upper_edge]
    eigenvalues = np.sort(np.r_[spikes, make_fit().eigenvalues[2:]])[::-1]
    gap = make_fit(
        law=law,
        eigenvalues=eigenvalues,
        is_signal=np.isin(eigenvalues, spikes),
        converged=False,
        published=True,
    )
    layer = LayerSpectrum("x", (ROWS, COLUMNS), gap)
    assert layer.notes.startswith("1 spike in the gap of the bulk; not converged")
    spiked = LayerSpectrum("x", (ROWS, COLUMNS), make_fit(spikes=(40.0,)))
    assert spiked.notes == ""


def test_summary_counts_phases_and_takes_medians_of_what_was_fitted(report):
    fits = [layer.fit for layer in report if layer.fit.law is not None]
    assert report.summary().startswith("5 layers: 2 bulk+spikes, 1 random, 1 heavy-tailed, 1 deg")
    assert "median 1.5 spikes" in report.summary()
    energy = 100 * np.median([fit.signal_energy for fit in fits])
    assert f"{energy:.3g} % of the energy" in report.summary()
    assert report.table().endswith(report.summary())


def test_empty_report_and_one_without_fits():
    assert SpectralReport(()).table() == "no layers"
    assert spectral_report({"a": make_degenerate()}).summary() == "1 layer: 1 degenerate"


def test_json_round_trip_gives_the_same_report(report, tmp_path):
    text = report.to_json(tmp_path / "report.json")
    for source in (text, tmp_path / "report.json", str(tmp_path / "report.json")):
        again = SpectralReport.from_json(source)
        assert again.to_json() == text
        assert [layer.shape for layer in again] == [layer.shape for layer in report]
    np.testing.assert_array_equal(
        again["encoder.layer.0.mlp"].fit.eigenvalues, report["encoder.layer.0.mlp"].fit.eigenvalues
    )
    assert json.loads(text)["layers"][4]["edge"] is None


def test_json_of_something_else_is_refused():
    with pytest.raises(ValueError, match="no spectral report"):
        SpectralReport.from_json('{"layers": {"a": {}}}')
    with pytest.raises(ValueError, match="no spectral report"):
        SpectralReport.from_json("{}")


def test_csv_has_a_line_per_layer(report, tmp_path):
    rows = list(csv.DictReader(io.StringIO(report.to_csv(tmp_path / "x.csv"))))
    assert [row["name"] for row in rows] == [layer.name for layer in report]
    fit = report["encoder.layer.0.mlp"].fit
    assert float(rows[1]["signal_energy"]) == fit.signal_energy
    assert float(rows[1]["edge"]) == fit.upper_edge
    assert rows[1]["shape"] == "100 x 200"
    assert rows[4]["edge"] == ""
    assert (tmp_path / "x.csv").read_text(encoding="utf-8") == report.to_csv()


@pytest.mark.parametrize(
    ("name", "close"),
    [("key", ["encoder.layer.0.key", "encoder.layer.1.key"]), ("haed", ["head"])],
)
def test_wrong_name_lists_close_ones(report, name, close):
    with pytest.raises(KeyError, match=re.escape(f"one of {close}?")):
        report[name]


def test_report_checks_shapes_and_names():
    with pytest.raises(ValueError, match=r"got \(200, 100\)"):
        LayerSpectrum("a", (100, 100), make_fit())
    layer = LayerSpectrum("a", (100, 200), make_fit())
    with pytest.raises(ValueError, match=r"\['a'\] twice"):
        SpectralReport((layer, layer))


def test_save_writes_every_file_and_equal_reports_make_equal_files(report, tmp_path):
    names = {
        "table.txt",
        "report.json",
        "report.html",
        "layers.csv",
        "overview.svg",
        "overview.png",
    }
    for folder in ("a/b", "c"):
        report.save(tmp_path / folder)
        assert {path.name for path in (tmp_path / folder).iterdir()} == names | {"spectra.svg"}
    for name in ("overview.svg", "spectra.svg", "report.json"):
        assert (tmp_path / "a/b" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()
    svg = (tmp_path / "c/spectra.svg").read_text(encoding="utf-8")
    assert re.search("<text[^>]*>fitted law of the noise</text>", svg)
    assert (tmp_path / "c/table.txt").read_text(encoding="utf-8") == report.table() + "\n"


def test_without_matplotlib_the_texts_are_saved_and_the_remedy_is_named(tmp_path):
    script = f"""
import sys
sys.modules["matplotlib"] = None
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.report.samples import make_fit, spectral_report
report = spectral_report({{"a": make_fit()}})
try:
    report.save({str(tmp_path)!r})
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert 'pip install "hf_rmt[plots]"' in done.stdout, done.stderr
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"table.txt", "report.json", "report.html", "layers.csv"}


def test_figures_leave_pyplot_alone(tmp_path):
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.report.samples import make_fit, spectral_report
spectral_report({{"a": make_fit(spikes=(900.0,))}}).save({str(tmp_path)!r})
print("matplotlib.pyplot" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_trained_bert(trained_bert):
    load_file = pytest.importorskip("safetensors.numpy").load_file
    weights = load_file(str(trained_bert / "model.safetensors"))
    names = [f"encoder.layer.{k}.attention.self.query" for k in range(6)]
    layers = []
    for name in names:
        weight = weights[f"{name}.weight"].astype(float)
        fit = fit_double_bulk(np.linalg.svd(weight, compute_uv=False) ** 2, weight.shape)
        layers.append(LayerSpectrum(name, weight.shape, fit))
    report = SpectralReport(tuple(layers))
    assert SpectralReport.from_json(report.to_json()).table() == report.table()
    axes = report.plot_overview().axes[0]
    assert list(axes.lines[0].get_ydata()) == [layer.fit.n_spikes for layer in report]


def test_a_unit_bulk_has_one_variance_in_the_table():
    report = spectral_report({"a": make_unit()})
    row = report["a"].to_row()
    assert (row["t"], row["sigma1^2"], row["sigma2^2"]) == (None, 2.0, None)
    assert report["a"].notes == ""
    assert "Kolmogorov distance 0.020" in report.summary()


def test_a_cut_is_shown_without_a_law():
    report = spectral_report({"a": make_cut(30), "b": make_cut(20), "c": make_degenerate()})
    row = report["a"].to_row()
    assert (row["phase"], row["spikes"], row["t"], row["sigma1^2"]) == ("no law", 30, None, None)
    assert report["a"].notes == ""
    energy = np.median([report[name].fit.signal_energy for name in "ab"])
    expected = f"in the median 25 directions with {100 * energy:.3g} % of the energy"
    assert report.summary().endswith(expected)


def test_overview_of_cuts_leaves_the_distance_out_and_no_marker_hollow():
    figure = spectral_report({"a.0.x": make_cut(30), "a.1.x": make_cut(20)}).plot_overview()
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels == ["directions\n(count)", "signal energy\n(fraction)"]
    (legend,) = figure.legends
    assert all("hollow" not in text.get_text() for text in legend.get_texts())
    mixed = spectral_report({"a.0.x": make_cut(), "a.1.x": make_unit()}).plot_overview()
    assert [axes.get_ylabel() for axes in mixed.axes][-1] == "Kolmogorov\ndistance"


def test_one_spike_in_the_median_is_not_spikes():
    report = spectral_report({"a": make_fit(spikes=(90.0,))})
    assert "in the median 1 spike with" in report.summary()
