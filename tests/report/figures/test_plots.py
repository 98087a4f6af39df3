from __future__ import annotations

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from scipy.integrate import trapezoid

from hf_rmt.report.figures.bins import law_curve, misfit_note
from hf_rmt.report.figures.plots import depth_figure, grid_figure, spectrum_figure
from hf_rmt.report.figures.style import DARK, save_figure
from hf_rmt.spectra import DoubleBulk
from tests.report.samples import make_cut, make_degenerate, make_fit, make_unit, spectral_report


def line(axes, label):
    (found,) = [drawn for drawn in axes.lines if drawn.get_label() == label]
    return found


def verticals(axes):
    """Abscissae of vertical lines."""
    return [x[0] for x in (drawn.get_xdata() for drawn in axes.lines) if len(x) == 2]


def bars(axes):
    """Left end, width and height of all bars, those of noise and signal summed."""
    patches = [patch for group in axes.containers for patch in group]
    return np.array([(p.get_x(), p.get_width(), p.get_height()) for p in patches])


@pytest.mark.parametrize("square_root", [True, False])
def test_law_is_drawn_with_the_share_of_the_noise(square_root):
    fit = make_fit(spikes=(40.0, 30.0, 25.0))
    drawn = line(spectrum_figure(fit, square_root=square_root).axes[0], "fitted law of the noise")
    x, y = drawn.get_xdata()[1:-1], drawn.get_ydata()[1:-1]
    expected = 2 * x * fit.noise_law.pdf(x**2) if square_root else fit.noise_law.pdf(x)
    np.testing.assert_allclose(y, 0.97 * expected, rtol=1e-12)
    assert trapezoid(y, x) == pytest.approx(0.97, abs=1e-3)


@pytest.mark.parametrize("square_root", [True, False])
@pytest.mark.parametrize(
    "law",
    [
        DoubleBulk(0.5, (40.0, 1.0), 0.2),
        DoubleBulk(0.47, (46.0, 1.0), 0.84),
        DoubleBulk(0.3, (2.0, 1.0), 1.0),
        DoubleBulk(1.0, (2.0, 2.0), 0.5),
    ],
    ids=["two intervals", "near square", "square", "unit bulk"],
)
def test_law_curve_has_mass_one_and_no_bridge_over_a_gap(law, square_root):
    x, density = law_curve(law, square_root=square_root)
    assert np.all(np.diff(x) > 0)
    tolerance = 0.03 if law.aspect_ratio == 1 and not square_root else 1e-3  # the pole at 0
    assert trapezoid(density, x) == pytest.approx(1.0, abs=tolerance)
    ends = density.reshape(len(law.bulk_edges), -1)[:, [0, -1]]
    assert np.all(ends[law.bulk_edges > 0] == 0)


@pytest.mark.parametrize("square_root", [True, False])
def test_every_spike_has_a_tick_at_its_place(square_root):
    fit = make_fit(spikes=(40.0, 30.0, 25.0))
    ticks = line(spectrum_figure(fit, square_root=square_root).axes[0], "spikes").get_xdata()
    values = fit.eigenvalues[fit.is_signal]
    np.testing.assert_allclose(ticks, np.sqrt(values) if square_root else values)


@pytest.mark.parametrize("square_root", [True, False])
def test_edges_are_marked(square_root):
    fit = make_fit(spikes=(40.0,))
    edges = [*fit.noise_law.bulk_edges.ravel(), fit.upper_edge]
    axes = spectrum_figure(fit, square_root=square_root).axes[0]
    np.testing.assert_allclose(verticals(axes), np.sqrt(edges) if square_root else edges)


def test_histogram_has_area_one_and_a_bar_ends_at_the_edge():
    fit = make_fit(spikes=(40.0, 30.0))
    left, width, height = bars(spectrum_figure(fit).axes[0]).T
    noise, signal = np.split(height * width, 2)
    assert noise.sum() == pytest.approx(0.98)
    assert signal.sum() == pytest.approx(0.02)
    edge = np.sqrt(fit.upper_edge)
    assert np.min(np.abs(left - edge)) < 1e-9
    assert signal[left[: len(signal)] < edge - 1e-9].sum() == 0


def test_axes_say_which_quantity_they_show():
    fit = make_fit(spikes=(40.0,))
    roots, values = (spectrum_figure(fit, square_root=flag).axes[0] for flag in (True, False))
    assert roots.get_xlabel().startswith("singular value")
    assert values.get_xlabel().startswith("eigenvalue")
    assert (r"\nu" in roots.get_ylabel(), r"\lambda" in values.get_ylabel()) == (True, True)


def test_long_tail_gets_a_panel_of_counts_and_the_bulk_stays_wide():
    fit = make_fit(spikes=(9000.0, 16.0, 15.0))
    main, tail = spectrum_figure(fit).axes
    assert main.get_xlim()[1] == pytest.approx(1.5 * np.sqrt(fit.upper_edge))
    assert main.texts[0].get_text().startswith("1 beyond")
    x, counts = tail.lines[1].get_data()
    np.testing.assert_allclose(x, np.sqrt([9000.0, 16.0, 15.0]))
    assert list(counts) == [1, 2, 3]
    assert (tail.get_xscale(), tail.get_yscale()) == ("log", "log")
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in (main, tail))


def test_without_a_law_the_reason_is_drawn():
    low_rank = np.r_[30.0, 20.0, np.full(98, -1e-9)]
    for eigenvalues in (np.zeros(100), np.full(100, np.nan), low_rank):
        axes = spectrum_figure(make_degenerate(eigenvalues, "no law fits")).axes[0]
        assert axes.texts[0].get_text() == "no law fits"
        assert bool(axes.patches) == (eigenvalues is low_rank)
        assert not axes.lines


def test_grid_has_a_titled_panel_per_layer(report):
    figure = report.plot_grid()
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0] == "encoder.layer.0.key\n2 spikes, bulk+spikes"
    assert titles[-1] == "head\n0 spikes, degenerate"
    assert len(titles) == 5
    assert [bool(axes.get_xlabel()) for axes in figure.axes] == [False, True, True, True, True]
    assert [bool(axes.get_ylabel()) for axes in figure.axes] == [True, False, False, False, True]
    (one,) = report.plot_grid(["head"]).axes
    assert one.get_title().startswith("head")


def test_grid_of_many_layers_spans_the_model():
    report = spectral_report({f"layer.{k}.key": make_fit() for k in range(30)})
    figure = report.plot_grid(max_layers=4)
    assert [axes.get_title().split(".")[0] for axes in figure.axes] == ["0", "10", "19", "29"]
    assert figure.get_suptitle() == "4 of 30 layers"


def test_overview_has_a_line_per_kind_over_the_blocks(report):
    figure = report.plot_overview()
    spikes, energy, distance = figure.axes
    key = line(spikes, "key")
    assert list(key.get_xdata()) == [0, 1]
    assert list(key.get_ydata()) == [2, 0]
    mlp = [report[f"encoder.layer.{k}.mlp"].fit.signal_energy for k in (0, 1)]
    assert list(line(energy, "mlp").get_ydata()) == mlp
    assert list(line(distance, "head").get_xdata()) == [2]
    assert np.isnan(line(distance, "head").get_ydata()[0])
    assert [axes.get_ylabel().split()[0] for axes in figure.axes] == [
        *("spikes", "signal", "Kolmogorov")
    ]
    assert distance.get_xlabel().startswith("depth")
    assert [tick.get_text() for tick in distance.get_xticklabels()] == ["0", "1", "outside\nblocks"]


def test_overview_marks_layers_without_a_model(report):
    figure = report.plot_overview()
    hollow = [drawn for drawn in figure.axes[0].lines if drawn.get_label().startswith("_")]
    marked = [x for drawn in hollow for x in drawn.get_xdata()]
    assert marked == [1, 2]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["key", "mlp", "head", "hollow: the law of the noise does not hold"]


def test_lines_follow_the_block_whatever_the_order_of_names():
    names = ["layer.0.key", "layer.10.key", "layer.2.key"]
    figure = depth_figure(names, {"y": [5.0, 7.0, 6.0]}, hollow=[False] * 3, hollow_label="")
    drawn = line(figure.axes[0], "key")
    assert (list(drawn.get_xdata()), list(drawn.get_ydata())) == ([0, 2, 10], [5.0, 6.0, 7.0])


def test_empty_figures_are_refused():
    with pytest.raises(ValueError, match="at least one spectrum"):
        grid_figure([])
    with pytest.raises(ValueError, match="at least one layer"):
        depth_figure([], {}, hollow=[], hollow_label="")


def test_a_very_long_name_leaves_room_for_the_overview():
    figure = depth_figure(["x" * 200], {"y": [1.0]}, hollow=[True], hollow_label="hollow")
    figure.canvas.draw()
    assert figure.axes[0].get_window_extent().width > figure.bbox.width / 2
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert max(map(len, labels)) <= 30


def test_dark_figures_have_a_dark_ground_and_light_text():
    figure = spectrum_figure(make_fit(spikes=(40.0,)), dark=True)
    axes = figure.axes[0]
    assert figure.get_facecolor() != (1.0, 1.0, 1.0, 1.0)
    assert axes.xaxis.label.get_color() == DARK.ink
    assert axes.xaxis.get_ticklabels()[0].get_color() == DARK.ink


def test_settings_of_matplotlib_are_left_alone(report, tmp_path):
    before = dict(matplotlib.rcParams)
    save_figure(report.plot_layer("encoder.layer.0.mlp", dark=True), tmp_path / "x.pdf")
    save_figure(report.plot_overview(), tmp_path / "x.svg")
    assert dict(matplotlib.rcParams) == before
    assert (tmp_path / "x.pdf").read_bytes().startswith(b"%PDF")


def test_no_text_overlaps_another(report):
    names = ["encoder.layer.0.mlp", "encoder.layer.0.key", "head"]
    figures = [report.plot_layer(name) for name in names]
    for figure in [*figures, report.plot_overview(), report.plot_grid()]:
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw(renderer)
        bounds = [axis.get_tightbbox(renderer) for axis in figure.axes]
        bounds += [legend.get_window_extent(renderer) for legend in figure.legends]
        for k, box in enumerate(bounds):
            for other in bounds[:k]:
                shared = box.intersection(box, other)
                assert shared is None or min(shared.width, shared.height) < 2  # pixels


def test_a_cut_spectrum_sets_off_what_is_kept():
    figure = spectrum_figure(make_cut(30))
    (axes,) = figure.axes
    assert axes.get_legend_handles_labels()[1] == ["measured, no law", "signal, measured"]
    areas = [sum(bar.get_height() * bar.get_width() for bar in bars) for bars in axes.containers]
    assert areas == pytest.approx([0.7, 0.3])


def test_a_unit_bulk_is_drawn_like_any_law():
    figure = spectrum_figure(make_unit())
    axes = figure.axes[0]
    (curve,) = [line for line in axes.lines if line.get_label() == "fitted law of the noise"]
    x, y = curve.get_data()
    assert trapezoid(y, x) == pytest.approx(0.99, abs=0.01)


def test_a_spike_inside_the_bulk_has_a_mark_of_its_own():
    law = DoubleBulk(0.5, (40.0, 1.0), 0.4)
    middle = law.bulk_edges.ravel()[1:3].mean()
    values = np.sort(np.r_[[middle, 2 * law.upper_edge], make_fit().eigenvalues[2:]])[::-1]
    signal = np.isin(values, [middle, 2 * law.upper_edge])
    fit = make_fit(law=law, eigenvalues=values, is_signal=signal, published=True)
    axes = spectrum_figure(fit).axes[0]
    assert line(axes, "spikes").get_xdata() == pytest.approx([np.sqrt(2 * law.upper_edge)])
    low = line(axes, "signal below the edge")
    assert low.get_xdata() == pytest.approx([np.sqrt(middle)])
    assert (low.get_marker(), low.get_markerfacecolor()) == ("v", "none")


def test_a_panel_says_how_much_of_the_noise_its_law_misses():
    law = DoubleBulk(0.5, (40.0, 1.0), 0.4)
    low, high = law.bulk_edges.ravel()[[0, -1]]
    values = np.sort(np.linspace(low, high, 100))[::-1]
    fit = make_fit(law=law, eigenvalues=values, published=True)
    note = misfit_note(fit)
    assert note
    assert spectrum_figure(fit).axes[0].get_title() == note
    assert grid_figure([("a", fit)]).axes[0].get_title().endswith(f"\n{note}")
    assert spectrum_figure(make_fit(spikes=(40.0,))).axes[0].get_title() == ""


def test_titles_have_the_shape_of_the_module_not_of_the_fit():
    fit = make_fit(spikes=(40.0,))
    report = spectral_report({"a": fit, "b": fit})
    assert "200 x 100" in report.plot_layer("a").get_suptitle()
    assert "100 x 200" in report.plot_layer("b").get_suptitle()
