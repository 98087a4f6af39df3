"""The figure of `bench_regime.py`: what removing all noise costs, for each kind of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_rmt.report.figures.style import MARKERS, finish, legend_below, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Point:
    """The result of one kind of training, after one law has found the noise and all is removed.

    Args:
        law: Name of the law that found the noise.
        decay: Weight decay of the training.
        epochs: Epochs of the training.
        start_left: Share of the random start that the decay leaves in the weights.
        base: Accuracy of the networks as they were trained.
        difference: Accuracy with all noise removed, minus `base`.
        interval: Lowest and highest difference that the data allow.
        kept: Share of the parameters that is left in the filtered layers.
    """

    law: str
    decay: float
    epochs: int
    start_left: float
    base: float
    difference: float
    interval: tuple[float, float]
    kept: float

    def to_row(self) -> dict[str, Any]:
        """The line of the table, with the text of each column."""
        low, high = (100 * end for end in self.interval)
        return {
            "weight decay": f"{self.decay:g}",
            "epochs": str(self.epochs),
            "start left": f"{self.start_left:.2g}",
            "law": self.law,
            "base": f"{self.base:.4f}",
            "difference, points": f"{100 * self.difference:+.1f} [{low:+.1f}, {high:+.1f}]",
            "parameters left": f"{self.kept:.1%}",
        }


def regime_figure(points: Sequence[Point], *, title: str = "", dark: bool = False) -> Figure:
    """Difference of accuracy against the share of the start that is left, a line for each law.

    Args:
        points: The results to draw.
        title: Text above the figure.
        dark: Draw on a dark background.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    with styled(dark=dark) as colours:
        figure = new_figure(5.5, 3.8, dark=dark)
        axes = figure.subplots()
        axes.axhline(0.0, color=colours.ink, lw=0.9, ls="--", label="nothing removed")
        for style, law in enumerate(dict.fromkeys(point.law for point in points)):
            ours = sorted((p for p in points if p.law == law), key=lambda p: p.start_left)
            colour = colours.of(style)
            x = [p.start_left for p in ours]
            y = [100 * p.difference for p in ours]
            axes.plot(x, y, color=colour, marker=MARKERS[style % len(MARKERS)], label=law)
            low, high = ([100 * p.interval[end] for p in ours] for end in (0, 1))
            axes.vlines(x, low, high, color=colour, lw=0.9)
        axes.set_xscale("log")
        axes.invert_xaxis()
        axes.set(
            xlabel="share of the random start that weight decay leaves",
            ylabel="difference of accuracy (points)",
            title=title,
        )
        axes.grid(axis="y", color=colours.faint, linewidth=0.6)
        finish(axes, colours)
        legend_below(figure, [axes])
    return figure
