"""What the recipes that hold a metric against memory share: finished runs, and the figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_rmt.report.style import MARKERS, finish, new_figure, save_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEGABIT = 1e6

Curves = Mapping[str, Sequence[tuple[float, float]]]
"""Points (x, y) by method."""


class Finished:
    """The runs of a folder, which need not be made again.

    Args:
        folder: Where they are kept; made if it does not exist.
        setting: What all of them share. A folder with another setting is refused.
    """

    def __init__(self, folder: str | Path, setting: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file, self._setting = self.folder / "runs.json", dict(setting)
        content = json.loads(self._file.read_text()) if self._file.exists() else {}
        if content and content["setting"] != self._setting:
            raise SystemExit(f"{folder} holds another setting; pass another --output_dir")
        self.rows: dict[str, dict[str, Any]] = content.get("rows", {})

    def add(self, key: str, row: Mapping[str, Any]) -> None:
        """Keep a run."""
        self.rows[key] = dict(row)
        content = {"setting": self._setting, "rows": self.rows}
        self._file.write_text(json.dumps(content, indent=1) + "\n")


def draw_curves(
    panels: Mapping[str, Curves], *, metric: str, title: str, dark: bool = False
) -> Figure:
    """A metric against a size on a logarithmic axis, one line for each method.

    Args:
        panels: By label of the horizontal axis, the curves; the same methods in each.
        metric: Label of the vertical axis.
        title: Text above the figure.
        dark: Draw on a dark ground.

    Returns:
        The figure.
    """
    figure = new_figure(max(4.6, 3.5 * len(panels)), 3.8, dark=dark)
    with styled(dark=dark) as colours:
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (label, curves) in zip(grid, panels.items(), strict=True):
            for place, (method, points) in enumerate(curves.items()):
                look = {
                    "color": colours.series[place % len(colours.series)],
                    "marker": MARKERS[place % len(MARKERS)],
                    "markersize": 4,
                    "ls": "-" if place < len(colours.series) else "--",
                }
                axes.plot(*zip(*sorted(points), strict=True), label=method, **look)
            axes.set(xscale="log", xlabel=label)
            finish(axes, colours)
        grid[0].set_ylabel(metric)
        handles = grid[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=2 + (len(panels) > 1))
        figure.suptitle(title)
    return figure


def save_curves(folder: Path, name: str, figure: Figure) -> None:
    """Write a figure as .svg and .png."""
    for kind in ("svg", "png"):
        save_figure(figure, folder / f"{name}.{kind}")
