"""Figures that compare several laws of one spectrum, or several methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_rmt.report.figures.axes import TICK_HEIGHT, spectrum_panels
from hf_rmt.report.figures.bins import BINS, law_curve, positions
from hf_rmt.report.figures.style import (
    MARKERS,
    SMALL_FONT,
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
    from numpy.typing import ArrayLike, NDArray

    from hf_rmt.spectra import SpectrumFit

VIEW = 1.2
"""A spectrum is drawn up to this many times the largest edge."""
TALLEST = 2.0
"""The vertical axis ends at this many times the highest bar, which leaves room for a note."""
FLOOR = 0.5
"""A logarithmic vertical axis begins at this part of the height of a bin with one eigenvalue."""
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1.2, 1.5)))
"""Dashes of the lines, which differ in their dashes as well as in their colours."""
EDGE: dict[str, Any] = {"ls": "", "marker": "|", "markersize": 9, "markeredgewidth": 1.6}
RANGE = (0.1, 0.9)
"""A range is drawn from the first to the second of these quantiles over the layers."""
SPREAD = 0.6
"""The marks of all methods in one group take this part of the distance between two groups."""
REASON_WIDTH = 24
"""Most characters in a line of the reason that stands in a panel if no law could be fitted."""
Laws = Mapping[str, "SpectrumFit"]
"""The fits of one spectrum by method."""


def laws_figure(
    layers: Sequence[tuple[str, Laws]],
    *,
    title: str = "",
    square_root: bool = True,
    dark: bool = False,
    columns: int = 3,
) -> Figure:
    """The laws of several methods over the histogram of the same eigenvalues, layer by layer.

    The histogram has area 1 over the whole spectrum. The area of each law is the share of values
    that its method calls noise. Marks at the bottom are the edges above which each method finds
    signal. Over eigenvalues the vertical axis is logarithmic, because the density of a square
    weight grows without bound near 0.

    Args:
        layers: Titles of the panels, and for each the fits by method, the most important first.
        title: Text above the figure.
        square_root: Draw over singular values instead of eigenvalues.
        dark: Draw on a dark background.
        columns: Panels in a row.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is no layer.
    """
    if not layers:
        raise ValueError("a figure needs at least one layer, got 0; name some layers")
    columns = min(columns, len(layers))
    rows = -(-len(layers) // columns)
    with styled(dark=dark) as colours:
        figure = new_figure(max(4.5, 0.4 + 2.3 * columns), 1.1 + 2.0 * rows, dark=dark)
        panels = spectrum_panels(figure, len(layers), columns, square_root=square_root)
        for axes, (heading, fits) in zip(panels, layers, strict=True):
            _draw_laws(axes, fits, colours, square_root=square_root)
            axes.set_title(heading, fontsize=SMALL_FONT)
        panels[0].plot([], [], color=colours.ink, label="edges", **EDGE)
        legend_below(figure, panels)
        figure.suptitle(title)
    return figure


def distribution_figure(
    values: Mapping[str, ArrayLike],
    *,
    label: str,
    title: str = "",
    dark: bool = False,
) -> Figure:
    """The distribution of a quantity over the layers, as one cumulative curve for each method.

    Args:
        values: By method, one value for each layer.
        label: Name of the quantity, with its unit.
        title: Text above the figure.
        dark: Draw on a dark background.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is no value.
    """
    if not values or not all(np.size(each) for each in values.values()):
        raise ValueError(
            "every method needs at least one value; leave out the methods without values"
        )
    with styled(dark=dark) as colours:
        figure = new_figure(4.8, 3.4, dark=dark)
        axes = figure.subplots()
        for place, (method, each) in enumerate(values.items()):
            ordered = np.sort(np.asarray(each, dtype=float))
            share = 100 * np.arange(len(ordered) + 1) / len(ordered)
            look = _look(place, colours)
            axes.step(np.r_[0.0, ordered], share, where="post", label=method, **look)
        axes.set(xlabel=label, ylabel="layers at or below (%)", xlim=(0, None), ylim=(0, 102))
        axes.grid(axis="y", color=colours.faint, linewidth=0.6)
        finish(axes, colours)
        figure.suptitle(title)
        legend_below(figure, [axes])
    return figure


def ranges_figure(
    panels: Mapping[str, Mapping[str, ArrayLike]],
    groups: Sequence[str],
    *,
    label: str,
    title: str = "",
    dark: bool = False,
) -> Figure:
    """The median over the layers and the range from 10 to 90 % of them, by group and method.

    Args:
        panels: By title of a panel and then by method, positive values, shape (layers, groups).
        groups: Names of the groups.
        label: Name of the quantity, with its unit.
        title: Text above the figure.
        dark: Draw on a dark background.

    Returns:
        A `matplotlib.figure.Figure` with a logarithmic vertical axis.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is no panel.
    """
    if not panels:
        raise ValueError("a figure needs at least one panel, got 0; pass the values of one panel")
    with styled(dark=dark) as colours:
        figure = new_figure(1.2 + 2.6 * len(panels), 3.4, dark=dark)
        stack = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (heading, methods) in zip(stack, panels.items(), strict=True):
            _draw_ranges(axes, methods, colours)
            axes.set_title(heading, fontsize=SMALL_FONT)
            axes.set_xticks(range(len(groups)), groups)
            axes.grid(axis="y", color=colours.faint, linewidth=0.6)
            finish(axes, colours)
        low, high = (100 * share for share in RANGE)
        stack[0].set_ylabel(f"{label}\nmedian; bars: {low:g} to {high:g} % of the layers")
        figure.suptitle(title)
        legend_below(figure, stack)
    return figure


def _draw_laws(axes: Axes, fits: Laws, colours: Palette, *, square_root: bool) -> None:
    finish(axes, colours)
    laws = {name: law for name, fit in fits.items() if (law := fit.noise_law) is not None}
    if not laws:
        reason = fill(next(iter(fits.values())).reason, REASON_WIDTH)
        axes.text(0.5, 0.5, reason, ha="center", va="center", transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
        return
    values = positions(fits[next(iter(laws))].eigenvalues, square_root=square_root)
    power = 0.5 if square_root else 1.0
    limit = VIEW * max(fits[name].upper_edge ** power for name in laws)
    low, high = _draw_histogram(axes, values, limit, colours)
    for name, law in laws.items():
        look = _look(list(fits).index(name), colours)
        x, density = law_curve(law, square_root=square_root)
        axes.plot(x, (1 - fits[name].n_spikes / len(values)) * density, label=name, **look)
        _draw_edge(axes, fits[name].upper_edge ** power, look["color"])
    if square_root:
        axes.set(xlim=(0.0, limit), ylim=(0.0, TALLEST * high))
    else:
        axes.set(xlim=(0.0, limit), yscale="log", ylim=(FLOOR * low, TALLEST**2 * high))
    distances = [f"{name} {fits[name].distance:.3f}" for name in laws]
    _note(axes, distances, int(np.sum(values > limit)))


def _draw_histogram(
    axes: Axes, values: NDArray[np.float64], limit: float, colours: Palette
) -> tuple[float, float]:
    """Draw bars up to a limit, with area 1 over all values.

    It returns the height that one value adds to a bar, and the height of the highest bar.
    """
    shown = values[values <= limit]
    wanted = len(np.histogram_bin_edges(shown, "fd")) - 1
    bins = np.linspace(0.0, limit, int(np.clip(wanted, *BINS)) + 1).tolist()
    one = 1 / (len(values) * bins[1])
    look: dict[str, Any] = {
        "color": colours.faint,
        "edgecolor": colours.background,
        "linewidth": 0.3,
    }
    heights, _, _ = axes.hist(
        shown, bins, weights=np.full(len(shown), one), label="measured", **look
    )
    return one, float(np.max(heights))


def _draw_edge(axes: Axes, edge: float, colour: str) -> None:
    axes.plot(
        *([edge], [TICK_HEIGHT]),
        color=colour,
        transform=axes.get_xaxis_transform(),
        zorder=4,
        **EDGE,
    )


def _note(axes: Axes, distances: list[str], beyond: int) -> None:
    """Write the Kolmogorov distances by method, and the number of values beyond the axis."""
    text = "\n".join(distances + ([f"{beyond} further out"] if beyond else []))
    place: dict[str, Any] = {"ha": "right", "va": "top", "transform": axes.transAxes}
    axes.text(0.99, 1.0, text, fontsize=SMALL_FONT - 1, linespacing=1.1, **place)


def _draw_ranges(axes: Axes, methods: Mapping[str, ArrayLike], colours: Palette) -> None:
    shifts = SPREAD * (np.arange(len(methods)) - (len(methods) - 1) / 2) / len(methods)
    for place, (method, values) in enumerate(methods.items()):
        each = np.asarray(values, dtype=float)
        low, middle, high = np.quantile(each, [RANGE[0], 0.5, RANGE[1]], axis=0)
        axes.errorbar(
            np.arange(each.shape[1]) + shifts[place],
            middle,
            yerr=[middle - low, high - middle],
            ls="",
            marker=MARKERS[place % len(MARKERS)],
            markersize=5,
            color=colours.of(place),
            label=method,
        )
    ticker = matplotlib_part("ticker")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_locator(ticker.NullLocator())


def _look(place: int, colours: Palette) -> dict[str, Any]:
    colour = colours.of(place)
    return {"color": colour, "ls": DASHES[place % len(DASHES)]}
