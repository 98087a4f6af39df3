"""Finds the function with a few values that is the best approximation of a given function.

The search for step activations, which are functions with a few values, starts from it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hf_rmt.kernels.activations import Array, Function
from hf_rmt.kernels.steps import normal_density

GRID = (np.arange(20_001) + 0.5) / 20_001 * 16 - 8
MASSES = normal_density(GRID) / normal_density(GRID).sum()
SWEEPS = 60


@dataclass(frozen=True)
class Quantizer:
    """A function of few values that approximates f(xi), where xi is standard normal.

    Args:
        points: Values of xi at which the quantised value changes, ascending.
        cells: For each interval (cell) between the points, the index of its value in `values`.
        values: The few values, ascending.
        share: Variance of the quantised value, divided by the variance of f(xi).
    """

    points: Array
    cells: Array
    values: Array
    share: float


def quantized(function: Function, levels: int) -> Quantizer:
    """The function of few values that is nearest to f(xi) in mean square; xi is standard normal.

    Lloyd's algorithm finds it in rounds. In each round, each value takes the f(xi) that are nearest
    to it, and becomes their mean. No step function with this number of values has a larger
    correlation with f. So none matches a larger fraction of the variance of f. The `share` of the
    result is this fraction.

    Args:
        function: The function f, which takes arrays.
        levels: Number of values minus one.

    Returns:
        The quantiser, a step function of xi.

    Source:
        Lloyd 1982; the first values are those of Panter & Dite 1951.

    Examples:
        >>> best = quantized(lambda xi: xi, 1)
        >>> round(best.share, 4), round(2 / np.pi, 4)
        (0.6366, 0.6366)
    """
    images = np.asarray(function(GRID), float)
    order = np.argsort(images, kind="stable")
    ordered = images[order]
    mass = np.concatenate([[0.0], np.cumsum(MASSES[order])])
    moment = np.concatenate([[0.0], np.cumsum(MASSES[order] * ordered)])
    # The density of the points is the cube root of the density of f(xi), best for many levels.
    gaps = np.maximum(np.gradient(ordered), 1e-12)
    spread = np.cumsum(np.cbrt(MASSES[order] * gaps**2))
    quotas = np.arange(1, levels + 1) / (levels + 1)
    bounds = np.interp(quotas, spread / spread[-1], ordered)
    for _ in range(SWEEPS):
        cuts = np.concatenate([[0], np.searchsorted(ordered, bounds), [len(ordered)]])
        masses = np.maximum(np.diff(mass[cuts]), 1e-300)
        values = np.diff(moment[cuts]) / masses
        bounds = (values[1:] + values[:-1]) / 2
    cells = np.searchsorted(bounds, images)
    changes = np.flatnonzero(np.diff(cells))
    variance = MASSES @ images**2 - (MASSES @ images) ** 2
    explained = masses @ values**2 - (masses @ values) ** 2
    return Quantizer(
        (GRID[changes] + GRID[changes + 1]) / 2,
        np.concatenate([cells[changes], cells[-1:]]),
        values,
        float(explained / variance),
    )
