"""Turns a spectrum (singular values of a weight) into a few numbers that a script can draw."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_rmt.report.figures.bins import BINS, below_edge, binned, law_curve, positions
from hf_rmt.spectra import SpectrumFit

DIGITS = 4
"""Significant digits of the numbers in a page: a figure of 1000 pixels shows no more."""
CURVE_POINTS = 90
"""Number of points of the curve of the law, the density that theory predicts for noise, in each
interval where it is not 0."""
MOST_TICKS = 400
"""Largest number of marks for spikes (singular values that stand out of the noise). The same limit
holds for the marks of signal values below the edge (the upper end of the noise)."""
TAIL_POINTS = 60
"""Number of points of the curve of counts, which `spectrum_record` describes."""


def rounded(value: float) -> float | None:
    """A number with four significant digits; None for nan.

    Examples:
        >>> rounded(1234.567), rounded(0.00123456), rounded(float("nan"))
        (1235.0, 0.001235, None)
    """
    return None if np.isnan(value) else float(f"{value:.{DIGITS}g}")


def spectrum_record(fit: SpectrumFit) -> dict[str, Any] | None:
    """The numbers from which a page draws the spectrum (singular values) of a weight.

    They give the bins, the law (the density that theory predicts for noise), the edges (the ends of
    the law), the spikes (values that stand out of the noise) and the curve of counts. This curve
    says, for a singular value, how many singular values are at least as large.

    Args:
        fit: The spectrum of a weight. If no law was fitted to it, the result has only the bins and
            the curve of counts.

    Returns:
        A dict of plain values; None if all eigenvalues are 0 or one of them is not finite.
    """
    values = positions(fit.eigenvalues, square_root=True)
    if len(values) < len(fit.eigenvalues) or not values.any():
        return None
    record = _lawless(fit, values) if fit.noise_law is None else _with_law(fit, values)
    return {**record, "total": len(values), "tail": _tail(values, fit.is_signal)}


def _with_law(fit: SpectrumFit, values: NDArray[np.float64]) -> dict[str, Any]:
    law = fit.noise_law
    if law is None:
        return {}
    spectrum = binned(fit, square_root=True)
    x, density = law_curve(law, square_root=True, points=CURVE_POINTS)
    low = below_edge(fit)
    spikes, below = values[fit.is_signal & ~low], values[low]
    return {
        "width": rounded(spectrum.bins[1]),
        "limit": rounded(spectrum.limit),
        "noise": spectrum.noise.tolist(),
        "signal": spectrum.signal.tolist(),
        "edge": rounded(spectrum.edge),
        "edges": [_list(np.sqrt(pair)) for pair in law.bulk_edges],
        "law": [_list(x), _list((1 - fit.n_spikes / len(values)) * density)],
        "spikes": _list(spikes[spikes <= spectrum.limit][-MOST_TICKS:]),
        "below": _list(below[:MOST_TICKS]),
        "beyond": int(np.sum(spikes > spectrum.limit)),
        "largest": rounded(values[0]),
    }


def _lawless(fit: SpectrumFit, values: NDArray[np.float64]) -> dict[str, Any]:
    bins = np.linspace(0.0, 1.001 * values.max(), 2 * BINS[0] + 1)
    groups = (values[~fit.is_signal], values[fit.is_signal])
    noise, signal = (np.histogram(group, bins)[0].tolist() for group in groups)
    return {
        "width": rounded(bins[1]),
        "limit": rounded(bins[-1]),
        "noise": noise,
        "signal": signal,
        "largest": rounded(values.max()),
    }


def _tail(values: NDArray[np.float64], is_signal: NDArray[np.bool_]) -> list[Any]:
    """Three lists of equal length for the curve of counts (see `spectrum_record`).

    The first holds some of the singular values. The second says for each of them how many singular
    values are at least as large. The third is 1 for signal and 0 for noise.
    """
    live = int(np.sum(values > 0))
    ranks = np.unique(np.geomspace(1, live, TAIL_POINTS).round().astype(int))
    return [_list(values[ranks - 1]), ranks.tolist(), is_signal[ranks - 1].astype(int).tolist()]


def _list(values: Iterable[float]) -> list[float | None]:
    return [rounded(float(value)) for value in values]
