"""Figures of results: differences to a base with intervals, and curves over the removed share."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.report.results import ResultsTable
from workbench.writing import write_figure

from hf_rmt.report.figures.style import (
    MARKERS,
    Palette,
    finish,
    legend_below,
    matplotlib_part,
    new_figure,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PERCENT = (-2.0, 102.0)
"""The axis of a share in percent, with room for the markers at 0 and 100."""
HOLLOW: dict[str, Any] = {"markerfacecolor": "none", "markersize": 5, "ls": ""}


def difference_figure(table: ResultsTable, *, dark: bool = False) -> Figure:
    """The difference of each method from the first row, with its interval; a panel for each column.

    Args:
        table: The results.
        dark: Draw on a dark background.

    Returns:
        A `matplotlib.figure.Figure`; hollow markers are the published differences.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    methods, columns = table.methods, table.columns
    with styled(dark=dark) as colours:
        width = max(4.5, 1.6 + 2.0 * len(columns))
        figure = new_figure(width, 1.6 + 0.3 * len(methods), dark=dark)
        panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
        for axes, column in zip(panels, columns, strict=True):
            _draw_column(axes, table, column, colours)
        panels[0].set_yticks(range(len(methods)), methods)
        panels[0].set_ylim(len(methods) - 0.5, -0.5)
        label = "measured"
        if any(result.interval is not None for result in table.results):
            label += f"; bars: {100 * table.level:g} % interval of the difference"
        panels[0].plot([], [], marker=MARKERS[0], color=colours.law, label=label)
        if any(result.published is not None for result in table.results):
            hollow = {"marker": MARKERS[1], "color": colours.spike, **HOLLOW}
            panels[0].plot([], [], label="published", **hollow)
        figure.legend(loc="outside lower center", ncols=1 if len(columns) == 1 else 2)
        figure.suptitle(table.title)
    return figure


def curve_figure(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    *,
    base: float | None = None,
    marked: Mapping[str, Collection[float]] | None = None,
    metric: str = "accuracy",
    title: str = "",
    dark: bool = False,
) -> Figure:
    """A metric against the fraction that is removed, one line for each method.

    Args:
        curves: By method, points (fraction removed in [0, 1], metric).
        base: The metric with nothing removed, drawn as a horizontal line; None for no line.
        marked: By method, the fractions at which some layers without signal stay whole. Their
            markers are hollow, and the legend says so.
        metric: Label of the axis of the metric, with its unit if it has one.
        title: Text above the figure.
        dark: Draw on a dark background.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is no curve.
    """
    if not curves:
        raise ValueError("a figure needs at least one curve, got 0; name some methods")
    with styled(dark=dark) as colours:
        figure = new_figure(5.5, 3.8, dark=dark)
        axes = figure.subplots()
        if base is not None:
            axes.axhline(base, color=colours.ink, lw=0.9, ls="--", label="nothing removed")
        for style, (method, points) in enumerate(curves.items()):
            x = [100 * fraction for fraction, _ in points]
            colour = colours.of(style)
            marker = MARKERS[style % len(MARKERS)]
            y = [value for _, value in points]
            axes.plot(x, y, color=colour, marker=marker, markersize=5, label=method)
            told = (marked or {}).get(method, ())
            hollow = [(x, y) for x, y in points if x in told]
            for fraction, value in hollow:
                look = {"marker": marker, "color": colour, "markersize": 6, "ls": ""}
                axes.plot(100 * fraction, value, markerfacecolor=colours.background, **look)
        if any((marked or {}).values()):
            look = {**HOLLOW, "marker": MARKERS[0], "color": colours.ink}
            axes.plot([], [], label="hollow: layers without signal stay whole", **look)
        axes.set(xlabel="noise directions removed (%)", ylabel=metric, title=title, xlim=PERCENT)
        axes.grid(axis="y", color=colours.faint, linewidth=0.6)
        finish(axes, colours)
        legend_below(figure, [axes])
    return figure


def save_table(table: ResultsTable, folder: str | Path) -> Path:
    """Write results.md, .csv, .json, and the figure of the differences as .svg and .png.

    The texts are written first, so they exist even if matplotlib is missing.

    Args:
        table: The results.
        folder: The folder to write to; it is made if it does not exist.

    Returns:
        The folder.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    target = Path(folder)
    table.to_markdown(target / "results.md")
    table.to_csv(target / "results.csv")
    table.to_json(target / "results.json")
    write_figure(difference_figure(table), target, "results")
    return target


def _draw_column(axes: Axes, table: ResultsTable, column: str, colours: Palette) -> None:
    base = table.cell(table.methods[0], column)
    for place, method in enumerate(table.methods):
        cell = table.cell(method, column)
        if cell is None:
            continue
        ours = cell.difference or 0.0
        axes.plot(cell.interval or (ours, ours), [place, place], color=colours.law)
        axes.plot(ours, place, MARKERS[0], color=colours.law, markersize=5)
        if base and base.published is not None and cell.published is not None:
            theirs = cell.published - base.published
            axes.plot(theirs, place, marker=MARKERS[1], color=colours.spike, **HOLLOW)
    axes.axvline(0.0, color=colours.ink, lw=0.8, ls=":")
    axes.xaxis.set_major_locator(matplotlib_part("ticker").MaxNLocator(4))
    axes.set_title(column)
    axes.set_xlabel(f"difference\nof {table.metric}")
    finish(axes, colours)
