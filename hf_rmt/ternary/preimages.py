"""Finds inputs at which a function has wanted outputs.

A step activation has a few values only. If these values are the inputs that were found, the step
activation can stand in front of the function: together they return the wanted outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from hf_rmt.kernels.activations import Array
from hf_rmt.ternary.functions import Function

POINTS = 4097
"""Number of inputs at which a function is computed, to find where it rises and where it falls. The
inputs are closer together near 0."""
REACH = 30.0
"""Inputs that give the wanted outputs are searched between minus and plus this number. It is
multiplied by the largest absolute wanted output if that is above 1."""
FLAT = 0.01
"""A function counts as flat where the slope is below this part of the function's largest slope."""
HALVINGS = 60
MARGIN = 0.1
"""If the wanted outputs of a function must be moved into its range, they keep a distance from the
ends of the range if there is room: this number times (largest - smallest output)."""


@dataclass(frozen=True)
class Levels:
    """Inputs at which a function f returns wanted outputs, which may be scaled and shifted.

    For a wanted output h, f returns gain * h + shift, with one gain and one shift for all of them.
    A step activation (see `StepActivation`) with these inputs as its values can stand before f.

    Attributes:
        heights: The inputs of f, which are the values of the step activation.
        values: The outputs of f at these inputs.
        slopes: The derivatives of f at these inputs.
        gain: 1, or less if the wanted outputs are further apart than the outputs of f can be.
        moved: Whether f returns other outputs than the wanted ones: the shift may differ from 0.
    """

    heights: list[float]
    values: list[float]
    slopes: list[float]
    gain: float = 1.0
    moved: bool = False


def levels_before(function: Function, wanted: Sequence[float], *, free: bool) -> Levels | None:
    """Find inputs at which a function has wanted values, in one interval where it is monotone.

    Args:
        function: The function.
        wanted: The wanted values, at least one.
        free: Whether gain * h + shift may replace each wanted value h, with one gain and one shift
            for all. This is harmless if the next layer has a bias and is fitted again later. The
            gain is below 1 only if the values lie too far apart.

    Returns:
        The inputs and the values there, as `Levels`. None if there is no interval in which the
        function only rises or only falls and takes all these values.

    Examples:
        >>> from torch.nn import functional
        >>> tanh, relu = (Function(name, name) for name in ("tanh", "relu"))
        >>> round(levels_before(tanh, [-0.5, 0.5], free=False).heights[1], 4)
        0.5493
        >>> levels_before(relu, [-1.0, 2.0], free=False) is None
        True
        >>> [round(value, 2) for value in levels_before(relu, [-1.0, 2.0], free=True).values]
        [0.3, 3.3]
    """
    heights = np.asarray(wanted, dtype=np.float64)
    pieces = list(_pieces(function, REACH * max(1.0, float(abs(heights).max()))))
    for x, y in pieces:
        if y.min() <= heights.min() and heights.max() <= y.max():
            return _levels(function, x, y, heights)
    if not free or not pieces:
        return None
    x, y = pieces[0]
    room, span = float(np.ptp(y)), float(np.ptp(heights))
    gain = 1.0 if span <= room else room / span
    spare = min(MARGIN * span * gain, (room - span * gain) / 2)
    low = float(heights.min()) * gain
    lowest = min(max(low, float(y.min()) + spare), float(y.max()) - spare - span * gain)
    values = np.clip(heights * gain - low + lowest, y.min(), y.max())
    return _levels(function, x, y, values, gain=gain, moved=True)


def _pieces(function: Function, reach: float) -> Iterator[tuple[Array, Array]]:
    """The intervals in which a function only rises or only falls, each as (inputs, values there).

    Flat parts are left out. Inputs lie between -`reach` and `reach`. The interval with the widest
    range of values comes first.
    """
    bound = np.arcsinh(100 * reach)
    x = np.sinh(np.linspace(-bound, bound, POINTS)) / 100
    y, slopes = function.values(x), function.slopes(x)
    signs = np.where(abs(slopes) >= FLAT * abs(slopes).max(), np.sign(slopes), 0)
    ends = [0, *(np.flatnonzero(np.diff(signs)) + 1), POINTS]
    parts = [slice(low, high) for low, high in pairwise(ends) if signs[low] and high - low > 1]
    for part in sorted(parts, key=lambda part: -np.ptp(y[part])):
        yield x[part], y[part]


def _levels(function: Function, x: Array, y: Array, values: Array, **told: Any) -> Levels:
    """The inputs at which a function has the given `values`, found by bisection.

    `x` holds inputs in an interval where the function only rises or only falls. `y` holds its
    values there. `told` holds the attributes `gain` and `moved` of the result, if they are needed.
    """
    if y[0] > y[-1]:
        x, y = x[::-1], y[::-1]
    after = np.clip(np.searchsorted(y, values), 1, len(y) - 1)
    low, high = x[after - 1], x[after]
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        below = function.values(middle) < values
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    heights = (low + high) / 2
    values, slopes = function.values(heights), function.slopes(heights)
    return Levels(heights.tolist(), values.tolist(), slopes.tolist(), **told)
