"""Finished runs and the figure, for recipes that plot a metric against memory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.writing import write_json

import numpy as np

from hf_rmt.report.figures.style import MARKERS, SMALL_FONT, finish, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEGABIT = 1e6

FENCE = 3.0
"""Values more than this many interquartile ranges from the quartiles are not on the axis."""
MARGIN = 0.05

Curves = Mapping[str, Sequence[tuple[float, float]]]
"""For each method the points (x, y) of its curve."""


class Finished:
    """The finished runs in a folder; a recipe reads them instead of making them again.

    Args:
        folder: The folder of the runs; it is made if it does not exist.
        setting: The setting that all runs share. A folder with another setting is refused.
    """

    def __init__(self, folder: str | Path, setting: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file, self._setting = self.folder / "runs.json", dict(setting)
        content = json.loads(self._file.read_text()) if self._file.exists() else {}
        if content and content["setting"] != self._setting:
            raise SystemExit(f"{folder} holds runs with another setting; pass another --output_dir")
        self.rows: dict[str, dict[str, Any]] = content.get("rows", {})

    def add(self, key: str, row: Mapping[str, Any]) -> None:
        """Add a run, and write all runs to the file."""
        self.rows[key] = dict(row)
        content = {"setting": self._setting, "rows": self.rows}
        write_json(self._file, content, indent=1)


def draw_curves(
    panels: Mapping[str, Curves], *, metric: str, title: str, dark: bool = False
) -> Figure:
    """A metric against a size on a logarithmic axis, one line for each method.

    One value far from the others would make their curves flat. So the axis does not reach such a
    value, and an arrow with the value is drawn at the edge of the axis.

    Args:
        panels: The curves, by label of the horizontal axis; each panel has the same methods.
        metric: Label of the vertical axis.
        title: Text above the figure.
        dark: Draw on a dark background.

    Returns:
        The figure.
    """
    figure = new_figure(max(4.6, 3.5 * len(panels)), 3.8, dark=dark)
    with styled(dark=dark) as colours:
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (label, curves) in zip(grid, panels.items(), strict=True):
            for place, (method, points) in enumerate(curves.items()):
                look = {
                    "color": colours.of(place),
                    "marker": MARKERS[place % len(MARKERS)],
                    "markersize": 4,
                    "ls": "-" if place < len(colours.series) else "--",
                }
                axes.plot(*zip(*sorted(points), strict=True), label=method, **look)
            axes.set(xscale="log", xlabel=label)
            finish(axes, colours)
        low, high = visible(
            [y for curves in panels.values() for c in curves.values() for _, y in c]
        )
        for axes, curves in zip(grid, panels.values(), strict=True):
            axes.set_ylim(low, high)
            for place, points in enumerate(curves.values()):
                colour = colours.of(place)
                _draw_beyond(axes, points, (low, high), colour)
        grid[0].set_ylabel(metric)
        handles = grid[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=2 + (len(panels) > 1))
        figure.suptitle(title)
    return figure


def visible(values: Sequence[float]) -> tuple[float, float]:
    """The range of an axis that holds all values except those far from the others.

    Args:
        values: The values that are drawn.

    Returns:
        Lower and upper end, a little beyond the values.

    Examples:
        >>> low, high = visible([0.90, 0.92, 0.94, 0.96, 0.98, 0.10])
        >>> round(low, 3), round(high, 3)
        (0.896, 0.984)
    """
    first, third = np.quantile(values, [0.25, 0.75])
    reach = FENCE * (third - first)
    near = [value for value in values if first - reach <= value <= third + reach]
    margin = MARGIN * (max(near) - min(near)) or MARGIN * abs(near[0]) or MARGIN
    return min(near) - margin, max(near) + margin


def _draw_beyond(
    axes: Axes, points: Sequence[tuple[float, float]], limits: tuple[float, float], colour: str
) -> None:
    """For each point beyond the axis, draw an arrow at the edge of the axis, with its value."""
    low, high = limits
    for x, y in points:
        if low <= y <= high:
            continue
        edge, marker, shift = (low, "v", 6) if y < low else (high, "^", -12)
        axes.plot(x, edge, marker=marker, color=colour, markersize=6, clip_on=False)
        axes.annotate(
            f"{y:.3g}",
            (x, edge),
            xytext=(0, shift),
            textcoords="offset points",
            ha="center",
            fontsize=SMALL_FONT - 1,
            color=colour,
        )
