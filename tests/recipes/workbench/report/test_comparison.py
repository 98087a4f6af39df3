from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from workbench.report.comparison import distribution_figure, laws_figure, ranges_figure

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from hf_rmt.report.figures.style import DARK, LIGHT, save_figure
from tests.report.samples import make_degenerate, make_fit, make_unit

FITS = {"PDB": make_fit(spikes=(40.0,), distance=0.012), "PUB": make_unit()}
VALUES = np.array([[1.0, 2.0, 4.0], [2.0, 8.0, 4.0], [3.0, 80.0, 4.0]])
FIGURES: list[Callable[..., Any]] = [
    partial(laws_figure, [("one", FITS), ("two", FITS)]),
    partial(laws_figure, [("one", FITS)], square_root=False),
    partial(distribution_figure, {"PDB": [0.1, 0.2], "PUB": [0.3]}, label="distance"),
    partial(ranges_figure, {"a": {"PDB": VALUES, "PUB": VALUES}}, "xyz", label="error (%)"),
]


def drawn(axes: Any, label: str) -> Any:
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return line


@pytest.mark.parametrize("square_root", [True, False])
def test_every_law_is_drawn_with_the_share_of_its_noise(square_root: bool) -> None:
    (axes,) = laws_figure([("one", FITS)], square_root=square_root).axes
    for method, fit in FITS.items():
        x, y = (values[1:-1] for values in drawn(axes, method).get_data())
        density = 2 * x * fit.noise_law.pdf(x**2) if square_root else fit.noise_law.pdf(x)
        np.testing.assert_allclose(y, 0.99 * density, rtol=1e-12)
    areas = [bar.get_width() * bar.get_height() for bar in axes.patches]
    assert sum(areas) == pytest.approx(0.99)  # the spike lies beyond
    assert axes.get_yscale() == ("linear" if square_root else "log")


def test_edges_distances_and_what_is_not_seen_are_told() -> None:
    (axes,) = laws_figure([("one", FITS)]).axes
    marks = {
        line.get_color(): line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 1
    }
    edges = [np.sqrt(fit.upper_edge) for fit in FITS.values()]
    assert marks == dict(zip(LIGHT.series, edges, strict=False))
    assert axes.texts[0].get_text().splitlines() == ["PDB 0.012", "PUB 0.020", "1 further out"]
    assert axes.get_xlim()[1] == pytest.approx(1.2 * max(edges))


def test_a_method_without_a_law_has_no_curve_and_none_has_the_reason() -> None:
    none = make_degenerate(reason="the matrix is zero")
    figure = laws_figure([("a", {"PDB": none, "PUB": FITS["PUB"]}), ("b", {"PDB": none})])
    some, empty = figure.axes
    assert [line.get_label() for line in some.lines if len(line.get_xdata()) > 1] == ["PUB"]
    assert drawn(some, "PUB").get_color() == LIGHT.series[1]
    assert empty.texts[0].get_text() == "the matrix is zero"


def test_the_distribution_is_the_share_of_layers_up_to_a_value() -> None:
    (axes,) = distribution_figure({"PDB": [0.3, 0.1, 0.2, 0.2]}, label="distance").axes
    x, y = drawn(axes, "PDB").get_data()
    for value, share in ((0.05, 0), (0.1, 25), (0.2, 75), (0.25, 75), (0.3, 100)):
        assert y[x <= value].max() == share
    assert drawn(axes, "PDB").get_drawstyle() == "steps-post"


def test_ranges_reach_from_ten_to_ninety_percent_around_the_median() -> None:
    (axes,) = ranges_figure({"a": {"PDB": VALUES}}, "xyz", label="error").axes
    (bars,) = axes.containers
    assert list(bars[0].get_ydata()) == [2.0, 8.0, 4.0]
    ends = [segment[:, 1] for segment in bars[2][0].get_segments()]
    np.testing.assert_allclose(ends, np.quantile(VALUES, [0.1, 0.9], axis=0).T)
    assert axes.get_ylabel() == "error\nmedian; bars: 10 to 90 % of the layers"


@pytest.mark.parametrize("make", FIGURES)
def test_axes_are_named_and_no_text_overlaps(make: Callable[..., Any]) -> None:
    figure = make(title="a title")
    assert figure.axes[0].get_ylabel()
    assert any(axes.get_xlabel() or len(axes.get_xticklabels()) == 3 for axes in figure.axes)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    boxes = [axes.get_tightbbox(renderer) for axes in figure.axes]
    boxes += [legend.get_window_extent(renderer) for legend in figure.legends]
    for k, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
        for other in boxes[:k]:
            shared = box.intersection(box, other)
            assert shared is None or min(shared.width, shared.height) < 2  # pixels


@pytest.mark.parametrize("make", FIGURES)
def test_lines_are_told_apart_without_colour_on_light_and_dark(make: Callable[..., Any]) -> None:
    for dark, colours in ((False, LIGHT), (True, DARK)):
        axes = make(dark=dark).axes[0]
        handles = [
            handle[0] if isinstance(handle, tuple) else handle
            for handle in axes.get_legend_handles_labels()[0]
        ]
        looks = {
            (handle.get_linestyle(), handle.get_marker())
            for handle in handles
            if hasattr(handle, "get_marker")
        }
        methods = {
            label for label in axes.get_legend_handles_labels()[1] if label in ("PDB", "PUB")
        }
        assert len(looks) >= len(methods) == 2
        assert axes.yaxis.get_ticklabels()[0].get_color() == colours.ink


def test_text_of_a_pdf_is_truetype_and_equal_figures_make_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for ending in ("pdf", "svg"):
            save_figure(FIGURES[0](), tmp_path / f"{name}.{ending}")
    for ending in ("pdf", "svg"):
        assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()
    pdf = (tmp_path / "a.pdf").read_bytes()
    assert set(re.findall(rb"/Subtype /(Type3|Type0|TrueType)", pdf)) == {b"Type0"}


def test_empty_figures_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one layer"):
        laws_figure([])
    with pytest.raises(ValueError, match="at least one value"):
        distribution_figure({"PDB": []}, label="")
    with pytest.raises(ValueError, match="at least one panel"):
        ranges_figure({}, [], label="")
