"""The style of the figures: a light and a dark palette, both suitable for colour-blind readers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FONT, SMALL_FONT = 9, 8
"""Sizes of text in points; it is legible if a figure of 7 inches fills the width of a page."""
LEGEND_TEXT, LEGEND_KEY = 13, 7
"""Estimated sizes in a legend: characters per inch, and the width of one coloured sign with its
margins, in characters."""
DATES = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
"""For each ending of a figure's file, the metadata that leave out the date of the file. So equal
figures make equal files."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")


@dataclass(frozen=True)
class Palette:
    """Colours by role, from the set of Okabe & Ito (2008).

    `hf_rmt.spectra` explains what noise, its law, an edge, a spike and the signal are.
    """

    background: str
    ink: str
    faint: str
    noise: str
    law: str
    edge: str
    spike: str
    signal: str
    series: tuple[str, ...]

    def of(self, place: int) -> str:
        """The colour of the line with this number; after the last colour, the first comes again."""
        return self.series[place % len(self.series)]


LIGHT = Palette(
    background="#ffffff",
    ink="#1a1a1a",
    faint="#d9d9d9",
    noise="#b7d9ee",
    law="#0072B2",
    edge="#1a1a1a",
    spike="#D55E00",
    signal="#f2c3a0",
    series=("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#1a1a1a"),
)
DARK = Palette(
    background="#14171a",
    ink="#ececec",
    faint="#3a4046",
    noise="#2f5870",
    law="#56B4E9",
    edge="#ececec",
    spike="#E69F00",
    signal="#735313",
    series=("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#ececec"),
)


def palette(*, dark: bool) -> Palette:
    """The `Palette` for a dark or for a light background."""
    return DARK if dark else LIGHT


def new_figure(width: float, height: float, *, dark: bool) -> Figure:
    """An empty figure that belongs to no window and no global state.

    Args:
        width: Width in inches.
        height: Height in inches.
        dark: Whether its background is dark.

    Returns:
        The figure, laid out so that labels do not overlap.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    figure_module = matplotlib_part("figure")
    size, ground = (width, height), palette(dark=dark).background
    return figure_module.Figure(figsize=size, facecolor=ground, layout="constrained")


@contextmanager
def styled(*, dark: bool) -> Iterator[Palette]:
    """Use this package's style for figures inside a `with` block; later, the user's style is back.

    Yields:
        The dark or the light `Palette`.
    """
    colours = palette(dark=dark)
    rules = {
        "font.size": FONT,
        "axes.titlesize": FONT,
        "figure.titlesize": FONT,
        "axes.facecolor": colours.background,
        "axes.edgecolor": colours.ink,
        "axes.labelcolor": colours.ink,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.color": colours.ink,
        "legend.frameon": False,
        "legend.fontsize": SMALL_FONT,
        "lines.linewidth": 1.4,
    }
    with matplotlib_part().rc_context(rules):
        yield colours


def finish(axes: Axes, colours: Palette) -> None:
    """Set the style of the ticks. `styled` cannot, because they are drawn after it has ended."""
    axes.tick_params(which="both", colors=colours.ink, labelsize=SMALL_FONT, width=0.8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_offset_text().set_color(colours.ink)
        axis.get_offset_text().set_fontsize(SMALL_FONT)


def legend_below(figure: Figure, panels: Iterable[Axes]) -> None:
    """Put one legend below the panels, with each label once; in a single row if that fits."""
    known = {
        label: handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    one_row = sum(map(len, known)) + LEGEND_KEY * len(known) < figure.get_figwidth() * LEGEND_TEXT
    columns = len(known) if one_row else 3
    figure.legend(known.values(), known.keys(), loc="outside lower center", ncols=columns)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure; equal figures make equal files, and text in an SVG or PDF stays text."""
    # 42 is TrueType: journals refuse the Type 3 fonts that matplotlib embeds by default
    rules = {"svg.fonttype": "none", "svg.hashsalt": "hf_rmt", "pdf.fonttype": 42}
    metadata = DATES.get(path.suffix)
    with matplotlib_part().rc_context(rules):
        figure.savefig(path, dpi=200, metadata=metadata)


def matplotlib_part(submodule: str = "") -> Any:
    """Import matplotlib, or one of its modules, only when a figure is drawn.

    Args:
        submodule: `figure`, `ticker`, or empty for matplotlib itself.

    Returns:
        The module.

    Raises:
        ImportError: If matplotlib is not installed. The error names the remedy.
    """
    try:
        import matplotlib
        import matplotlib.figure
        import matplotlib.ticker
    except ImportError as error:
        raise ImportError(
            'figures need matplotlib, which is not installed; pip install "hf_rmt[plots]"'
        ) from error
    return getattr(matplotlib, submodule) if submodule else matplotlib
