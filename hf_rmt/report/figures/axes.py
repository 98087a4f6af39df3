"""Draws the spectrum (squared singular values) of one weight into axes.

The law is the density that theory predicts for noise, and the edges are its ends. Spikes are values
that stand out of the noise.
"""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_rmt.report.figures.bins import BINS as BINS  # figures of the recipes import BINS from here
from hf_rmt.report.figures.bins import BinnedSpectrum, below_edge, binned
from hf_rmt.report.figures.bins import law_curve as law_curve
from hf_rmt.report.figures.bins import positions as positions
from hf_rmt.report.figures.style import SMALL_FONT, Palette, finish, matplotlib_part

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.ticker import Locator
    from numpy.typing import NDArray

    from hf_rmt.spectra import SpectrumFit

REASON_WIDTH = 26
"""Number of characters in a line of the text that says, in a small panel, why no law was fitted.
The law is the density that theory predicts for noise."""
DENSE_DECADES = 1.5
"""Logarithmic axes over more decades (factors of 10) than this have ticks at powers of ten
only."""
TICK_HEIGHT = 0.035
"""Height at which a mark shows a spike (a value that stands out of the noise), as a fraction of
the height of the axes."""


def abscissa(*, square_root: bool, short: bool = False) -> str:
    """Label of a horizontal axis over singular values, or over eigenvalues (their squares)."""
    if short:
        name = r"singular value $\nu$" if square_root else r"eigenvalue $\lambda$"
        return f"{name}\n(units of the weight{'' if square_root else ', squared'})"
    if square_root:
        return r"singular value $\nu = \sqrt{\lambda}$ of the weight (units of the weight)"
    return r"eigenvalue $\lambda$ = squared singular value (units of the weight, squared)"


def ordinate(*, square_root: bool) -> str:
    """Label of a vertical axis: a density over singular values, or over their squares."""
    return r"density (per $\nu$)" if square_root else r"density (per $\lambda$)"


def spectrum_panels(figure: Figure, count: int, columns: int, *, square_root: bool) -> list[Axes]:
    """Make empty panels for `count` spectra; only the left and the lowest ones have labels.

    Args:
        figure: The figure to draw into.
        count: Number of panels, at least one.
        columns: Number of panels in a row.
        square_root: Whether the horizontal axes show singular values. If not, they show
            eigenvalues, the squares of the singular values.

    Returns:
        The panels, row by row.
    """
    rows = -(-count // columns)
    panels = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axes in panels[count:]:
        axes.remove()
    for axes in panels[max(0, count - columns) : count]:
        axes.set_xlabel(abscissa(square_root=square_root, short=True))
    for axes in panels[:count:columns]:
        axes.set_ylabel(ordinate(square_root=square_root))
    return panels[:count]


def draw_spectrum(axes: Axes, fit: SpectrumFit, colours: Palette, *, square_root: bool) -> None:
    """Draw one spectrum: its histogram, the law of the noise, the edges of the law and the spikes.

    The law is the density that theory predicts for noise, and its edges are the ends of this
    density. Spikes are values that stand out of the noise. The area of the histogram is 1. The
    area under the law is that of the noise in the histogram.

    Args:
        axes: Where to draw.
        fit: The spectrum (squared singular values of a weight), split into noise and signal. If it
            has no law, the histogram and the reason for this are drawn, with the signal in another
            colour.
        colours: The palette.
        square_root: Whether the horizontal axis shows singular values, the square roots of the
            eigenvalues.
    """
    ticker = matplotlib_part("ticker")
    finish(axes, colours)
    _plain_ticks(axes.xaxis, ticker.MaxNLocator(5, steps=[1, 2, 5, 10]))
    values = positions(fit.eigenvalues, square_root=square_root)
    if fit.noise_law is None:
        signal = fit.is_signal[np.isfinite(fit.eigenvalues)]
        _draw_lawless(axes, [values[~signal], values[signal]], fit.reason, colours)
        return
    spectrum = binned(fit, square_root=square_root)
    top = _draw_histogram(axes, values, fit.is_signal, spectrum, colours)
    top = max(top, _draw_law(axes, fit, colours, square_root=square_root))
    axes.axvline(spectrum.edge, color=colours.edge, lw=0.9, ls="--", label="limit of the noise")
    low = below_edge(fit)
    draw_ticks(axes, values[fit.is_signal & ~low], colours)
    draw_ticks(axes, values[low], colours, below=True)
    axes.set_xlim(0.0, spectrum.limit)
    axes.set_ylim(0.0, 1.15 * top)
    _note_beyond(axes, values[fit.is_signal], spectrum.limit)


def _draw_law(axes: Axes, fit: SpectrumFit, colours: Palette, *, square_root: bool) -> float:
    """Draw the law, the density that theory predicts for noise, and the edges, where it ends.

    The area under the law is that of the noise in the histogram. Returns the height of the law. If
    the axis shows eigenvalues, returns 0, because the law of eigenvalues may be infinite.
    """
    if fit.noise_law is None:
        return 0.0
    x, density = law_curve(fit.noise_law, square_root=square_root)
    density = (1 - fit.n_spikes / len(fit.eigenvalues)) * density
    axes.plot(x, density, color=colours.law, label="fitted law of the noise")
    bulk_edges = positions(fit.noise_law.bulk_edges.ravel(), square_root=square_root)
    for k, bulk_edge in enumerate(bulk_edges):
        label = "" if k else "edges of the law"
        axes.axvline(bulk_edge, color=colours.law, lw=0.9, ls=":", label=label)
    return float(density.max()) if square_root else 0.0  # over eigenvalues it may be infinite


def draw_tail(axes: Axes, fit: SpectrumFit, colours: Palette, *, square_root: bool) -> None:
    """Draw how many values of a spectrum are at least as large as each value, on log-log axes.

    Args:
        axes: Where to draw.
        fit: A spectrum (squared singular values of a weight) to which a law, the density that
            theory predicts for noise, was fitted.
        colours: The palette.
        square_root: Whether the horizontal axis shows singular values, the square roots of the
            eigenvalues.
    """
    ticker = matplotlib_part("ticker")
    values = positions(fit.eigenvalues, square_root=square_root)
    counts = np.arange(len(values)) + 1
    for mask, colour in ((~fit.is_signal, colours.law), (fit.is_signal, colours.spike)):
        axes.plot(values[mask], counts[mask], ".", color=colour, markersize=4)
    edge = float(np.sqrt(fit.upper_edge) if square_root else fit.upper_edge)
    axes.axvline(edge, color=colours.edge, lw=0.9, ls="--")
    axes.set(xscale="log", yscale="log", xlim=(0.3 * edge, 1.3 * values[0]))
    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        subs = (1.0,) if high > low * 10**DENSE_DECADES else (1.0, 2.0, 5.0)
        _plain_ticks(axis, ticker.LogLocator(subs=subs, numticks=5))
    axes.set_ylabel("number at or above the value")
    axes.set_xlabel(abscissa(square_root=square_root, short=True))
    axes.set_title("the tail", fontsize=SMALL_FONT)
    finish(axes, colours)


def draw_ticks(
    axes: Axes, spikes: NDArray[np.float64], colours: Palette, *, below: bool = False
) -> None:
    """Mark every spike, a value that stands out of the noise, by a tick at the bottom of the axes.

    Args:
        axes: The axes to draw into.
        spikes: Positions of the spikes; if there are none, nothing is drawn.
        colours: The palette.
        below: Whether the spikes lie below the edge, the largest value that noise alone has. Then
            hollow triangles mark them, not ticks.
    """
    if len(spikes):
        look: dict[str, Any] = {"marker": "v", "markersize": 4, "markerfacecolor": "none"}
        if not below:
            look = {"marker": "|", "markersize": 9}
        axes.plot(
            spikes,
            np.full(len(spikes), TICK_HEIGHT),
            ls="",
            markeredgewidth=1.1,
            color=colours.spike,
            transform=axes.get_xaxis_transform(),
            label="signal below the edge" if below else "spikes",
            **look,
        )


def _draw_histogram(
    axes: Axes,
    values: NDArray[np.float64],
    is_signal: NDArray[np.bool_],
    spectrum: BinnedSpectrum,
    colours: Palette,
) -> float:
    """Draw noise and spikes (values that stand out of the noise) as a stacked histogram.

    One of the bins ends at the edge, the limit of the noise. Returns the height of the highest bin.
    """
    weight = 1 / (spectrum.total * (spectrum.bins[1] - spectrum.bins[0]))
    groups = [values[~is_signal], values[is_signal]]
    heights, _, _ = axes.hist(
        groups,
        bins=spectrum.bins.tolist(),
        weights=[np.full(len(group), weight) for group in groups],
        stacked=True,
        color=[colours.noise, colours.signal],
        label=["noise, measured", "signal, measured"],
    )
    return float(np.max(heights))


def _draw_lawless(
    axes: Axes, groups: list[NDArray[np.float64]], reason: str, colours: Palette
) -> None:
    """Draw a whole spectrum, to which no law was fitted, as a stacked histogram.

    A spectrum is the singular values of a weight, or their squares. A law is the density that
    theory predicts for noise. `groups` holds the values of noise and of signal. `reason` says why
    there is no law; it is written into a corner.
    """
    if any(group.any() for group in groups):
        looks = [(colours.faint, "measured, no law"), (colours.signal, "signal, measured")]
        shown = slice(2 if len(groups[1]) else 1)
        axes.hist(
            groups[shown],
            bins=BINS[0] * (2 if len(groups[1]) else 1),
            density=True,
            stacked=True,
            color=[colour for colour, _ in looks[shown]],
            label=[label for _, label in looks[shown]],
        )
        axes.set(xlim=(0.0, None), ylim=(0.0, 1.35 * axes.get_ylim()[1]))
    else:
        axes.set_xticks([])
        axes.set_yticks([])
    _note(axes, fill(reason, width=REASON_WIDTH))


def _note_beyond(axes: Axes, spikes: NDArray[np.float64], limit: float) -> None:
    """Write how many spikes (values above the noise) lie beyond `limit`, outside of the axes."""
    beyond = spikes[spikes > limit]
    if len(beyond):
        farthest = np.format_float_positional(beyond[0], 3, fractional=False, trim="-")
        _note(axes, f"{len(beyond)} beyond,\nup to {farthest}")


def _note(axes: Axes, text: str) -> None:
    """Write a text into the upper right corner, where the bars of a spectrum are low."""
    where = axes.transAxes
    axes.text(0.98, 0.96, text, ha="right", va="top", transform=where, fontsize=SMALL_FONT - 1)


def _plain_ticks(axis: Axis, locator: Locator) -> None:
    """Put few ticks on an axis, each with its full value, such as 1002, and no common offset."""
    ticker = matplotlib_part("ticker")
    axis.set_major_locator(locator)
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(ticker.NullLocator())
