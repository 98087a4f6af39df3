"""Makes figures of spectra (eigenvalues of weights) and of quantities over the depth of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_rmt.report.depth import places, short_names
from hf_rmt.report.figures.axes import (
    abscissa,
    draw_spectrum,
    draw_tail,
    ordinate,
    spectrum_panels,
)
from hf_rmt.report.figures.bins import has_long_tail, misfit_note
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
from hf_rmt.report.tables import counted_signal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hf_rmt.spectra import SpectrumFit

OUTSIDE = "outside\nblocks"


def spectrum_figure(
    fit: SpectrumFit, *, title: str = "", square_root: bool = True, dark: bool = False
) -> Figure:
    """A figure of the spectrum of one weight: histogram, law of the noise, edges and spikes.

    The spectrum is the eigenvalues, the squared singular values. The law is the density that theory
    predicts for noise, and its edges are the ends of this density. Spikes are eigenvalues that
    stand out of the noise. The histogram of the whole spectrum has the area 1. If K of p
    eigenvalues are spikes, the law has the area 1 - K / p. If spikes lie far out, a second panel
    counts them on logarithmic axes.

    Args:
        fit: The spectrum, split into noise and spikes.
        title: Text above the figure.
        square_root: Whether the horizontal axis shows singular values, the square roots of the
            eigenvalues. They show the noise better.
        dark: Draw on a dark background.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    tail = has_long_tail(fit, square_root=square_root)
    with styled(dark=dark) as colours:
        figure = new_figure(7.0 if tail else 5.5, 3.6, dark=dark)
        ratios = [2.4, 1.0] if tail else [1.0]
        panels = figure.subplots(1, len(ratios), width_ratios=ratios, squeeze=False)[0]
        draw_spectrum(panels[0], fit, colours, square_root=square_root)
        panels[0].set_xlabel(abscissa(square_root=square_root))
        panels[0].set_ylabel(ordinate(square_root=square_root))
        panels[0].set_title(misfit_note(fit), fontsize=SMALL_FONT)
        if tail:
            draw_tail(panels[1], fit, colours, square_root=square_root)
        legend_below(figure, panels[:1])
        figure.suptitle(title)
    return figure


def grid_figure(
    fits: Sequence[tuple[str, SpectrumFit]],
    *,
    title: str = "",
    square_root: bool = True,
    dark: bool = False,
    columns: int = 4,
) -> Figure:
    """A figure of the spectra (eigenvalues) of several weights side by side, a panel for each.

    Args:
        fits: For each panel, its title and the fitted spectrum.
        title: Text above the figure.
        square_root: Whether the horizontal axis shows singular values, the square roots of the
            eigenvalues.
        dark: Draw on a dark background.
        columns: Largest number of panels in a row.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is no spectrum.
    """
    if not fits:
        raise ValueError("a grid needs at least one spectrum, got 0; name some layers")
    columns = min(columns, len(fits))
    rows = -(-len(fits) // columns)
    with styled(dark=dark) as colours:
        figure = new_figure(max(5.5, 0.6 + 2.1 * columns), 1.2 + 1.65 * rows, dark=dark)
        panels = spectrum_panels(figure, len(fits), columns, square_root=square_root)
        for axes, (heading, fit) in zip(panels, fits, strict=True):
            draw_spectrum(axes, fit, colours, square_root=square_root)
            lines = [heading, f"{counted_signal(fit)}, {fit.phase}", misfit_note(fit)]
            axes.set_title("\n".join(filter(None, lines)), fontsize=SMALL_FONT)
        legend_below(figure, panels)
        figure.suptitle(title)
    return figure


def depth_figure(
    names: Sequence[str],
    panels: Mapping[str, Sequence[float]],
    *,
    hollow: Sequence[bool],
    hollow_label: str,
    title: str = "",
    dark: bool = False,
) -> Figure:
    """A figure of quantities over the depth of a model, with a line for each kind of layer.

    Args:
        names: Names of the layers.
        panels: One entry for each panel. The key is the label of the vertical axis. The entry holds
            one value for each layer, in the order of `names`. A value of nan is not drawn.
        hollow: For each layer, whether its marker is hollow.
        hollow_label: What a hollow marker means.
        title: Text above the figure.
        dark: Draw on a dark background.

    Returns:
        A `matplotlib.figure.Figure` with one panel below the other.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is no layer.
    """
    if not names:
        raise ValueError(
            "an overview needs at least one layer, got 0; analyze or compress at least one layer"
        )
    lines = _lines(names)
    kinds = short_names(list(lines))
    with styled(dark=dark) as colours:
        figure = new_figure(7.0, 1.2 + 1.7 * len(panels), dark=dark)
        stack = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (label, values) in zip(stack, panels.items(), strict=True):
            for style, (kind, members) in enumerate(zip(kinds, lines.values(), strict=True)):
                points = [(x, float(values[j]), hollow[j]) for x, j in members]
                _draw_line(axes, points, style, kind, colours)
            _tidy(axes, label, values, colours)
        _label_depth(stack[-1], names)
        if any(hollow):
            stack[0].plot([], [], ls="", color=colours.ink, label=hollow_label, **HOLLOW)
        legend_below(figure, stack[:1])
        figure.suptitle(title)
    return figure


def _lines(names: Sequence[str]) -> dict[str, list[tuple[int, int]]]:
    """Group the layers of a model by kind, such as `mlp.up`, to draw a line for each kind.

    The result maps each kind to its line: a list of pairs (x, index of the layer in `names`),
    sorted by x. Here x is the number of the block that holds the layer. Layers outside of the
    blocks come after the last block.
    """
    spots = places(names)
    outside = 1 + max((spot.block for spot in spots if spot.block is not None), default=-1)
    lines: dict[str, list[tuple[int, int]]] = {}
    for position, spot in enumerate(spots):
        x = outside if spot.block is None else spot.block
        lines.setdefault(spot.kind, []).append((x, position))
    return {kind: sorted(members) for kind, members in lines.items()}


HOLLOW = {"marker": "o", "markerfacecolor": "none", "markersize": 5}


def _draw_line(
    axes: Axes,
    points: Sequence[tuple[int, float, bool]],
    style: int,
    kind: str,
    colours: Palette,
) -> None:
    """Draw the line of one kind of layer; the number `style` selects its colour and its marker.

    `points` are triples (x, y, hollow). If `hollow` is true, the marker of the point is not filled.
    """
    look: dict[str, Any] = {
        "color": colours.of(style),
        "marker": MARKERS[style % len(MARKERS)],
        "markersize": 5,
        "clip_on": False,
        "in_layout": False,
    }
    x, y, hollow = (np.array(column) for column in zip(*points, strict=True))
    axes.plot(x, y, label=kind, **look)
    look["markerfacecolor"] = colours.background
    axes.plot(x[hollow], y[hollow], ls="", **look)


def _tidy(axes: Axes, label: str, values: Sequence[float], colours: Palette) -> None:
    """Label the vertical axis and start it at 0; use whole ticks if all `values` are whole."""
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0.0)
    if all(float(value).is_integer() for value in values):
        locator = matplotlib_part("ticker").MaxNLocator(5, integer=True)
        axes.yaxis.set_major_locator(locator)
    axes.grid(axis="y", color=colours.faint, linewidth=0.6)
    finish(axes, colours)


def _label_depth(axes: Axes, names: Sequence[str]) -> None:
    """Put ticks for blocks on the horizontal axis, and one tick for layers outside of blocks."""
    ticker = matplotlib_part("ticker")
    spots = places(names)
    blocks = [spot.block for spot in spots if spot.block is not None]
    axes.set_xlabel("depth (index of the block)")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, min_n_ticks=1))
    if len(blocks) < len(spots):
        last = max(blocks, default=-1)
        ticks = list(range(0, last + 1, 1 + max(last, 0) // 12))
        axes.set_xticks([*ticks, last + 1], [*map(str, ticks), OUTSIDE])
