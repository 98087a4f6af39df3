"""Computes means of f(xi) over a standard normal xi, where f may have unknown kinks and jumps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.polynomial import legendre

from hf_rmt.kernels.activations import Array, Function

REACH = 11.0
"""Integrals over a standard normal xi end at this |xi|. The normal density there is only 1e-27."""
NODES = 20
TOLERANCE = 1e-13
LEBESGUE = 20.0
"""Panels are the intervals of `piecewise_quadrature`. Extrapolation from the nodes of a panel to
its ends multiplies rounding errors by at most this number."""
MAX_HALVINGS = 48  # panels of 1/2 end at 2e-15, the rounding of xi
MAX_PANELS = 20_000

_POINTS, _WEIGHTS = legendre.leggauss(NODES)
_TO_COEFFICIENTS = np.linalg.inv(legendre.legvander(_POINTS, NODES - 1))
_TO_SLOPES = (
    legendre.legvander(_POINTS, NODES - 2) @ legendre.legder(np.eye(NODES)) @ _TO_COEFFICIENTS
)
_TO_ENDS = legendre.legvander(np.array([-1.0, 1.0]), NODES - 1) @ _TO_COEFFICIENTS


@dataclass(frozen=True)
class Rule:
    """A quadrature rule for means of a function f of a standard normal xi.

    `nodes` are values of xi, and `weights` include the normal density. `values` and `slopes` are f
    and f' at the nodes. `jumps` tells whether f jumps.
    """

    nodes: Array
    weights: Array
    values: Array
    slopes: Array
    jumps: bool


def piecewise_quadrature(function: Function) -> Rule:
    """Nodes and weights for means E g(xi, f(xi), f'(xi)) over a standard normal xi.

    E is the mean over xi, and f' is the slope of f. For any function g, the mean is the sum over
    the nodes xi of weight times g(xi, f(xi), f'(xi)). The nodes are Gauss-Legendre nodes
    on short intervals, called panels. A panel is halved until the last terms of the Legendre series
    of f on it are negligible. At a kink or jump the last panel is as narrow as the rounding of xi.

    Args:
        function: The function f, which must be piecewise smooth and take arrays.

    Returns:
        The rule.

    Raises:
        ValueError: If f is not finite, changes the shape of an array, or is not piecewise smooth.
    """
    starts = np.arange(-REACH, REACH, 0.5)
    widths = np.full(len(starts), 0.5)
    done: list[tuple[Array, Array, Array]] = []
    scale = 0.0
    for halving in range(MAX_HALVINGS + 1):
        values = _evaluate(function, starts[:, None] + widths[:, None] * (_POINTS + 1) / 2)
        scale = max(scale, float(np.abs(values[np.abs(starts) < 2]).max(initial=0.0)))
        tail = np.abs(values @ _TO_COEFFICIENTS[-3:].T).max(1)
        # A jump between the last node and the end of a panel is visible only at the end.
        ends = _evaluate(function, starts[:, None] + widths[:, None] * np.array([0.0, 1.0]))
        tail = np.maximum(tail, np.abs(values @ _TO_ENDS.T - ends).max(1) / LEBESGUE)
        smooth = tail <= TOLERANCE * np.maximum(scale, np.abs(values).max(1))
        smooth |= halving == MAX_HALVINGS
        done.append((starts[smooth], widths[smooth], values[smooth]))
        starts, widths = starts[~smooth], widths[~smooth] / 2
        starts, widths = np.concatenate([starts, starts + widths]), np.tile(widths, 2)
        if not len(starts):
            break
        if len(starts) > MAX_PANELS:
            raise ValueError(
                "the activation is not piecewise smooth, or it oscillates too fast at this tau; "
                "pass a smoother one, or a smaller tau"
            )
    starts, widths, values = (np.concatenate(parts) for parts in zip(*done, strict=True))
    return _rule(starts, widths, values, scale)


def _rule(starts: Array, widths: Array, values: Array, scale: float) -> Rule:
    order = np.argsort(starts)
    starts, widths, values = starts[order], widths[order], values[order]
    nodes = starts[:, None] + widths[:, None] * (_POINTS + 1) / 2
    weights = _WEIGHTS * widths[:, None] / 2 * np.exp(-(nodes**2) / 2) / np.sqrt(2 * np.pi)
    slopes = values @ _TO_SLOPES.T * (2 / widths[:, None])
    ends = values @ _TO_ENDS.T
    gaps = np.abs(ends[1:, 0] - ends[:-1, 1])
    gaps = np.concatenate([gaps, np.ptp(values[widths < 1e-14], axis=1)])
    jumps = bool((gaps > 1e-8 * scale).any())
    return Rule(nodes.ravel(), weights.ravel(), values.ravel(), slopes.ravel(), jumps)


def _evaluate(function: Function, nodes: Array) -> Array:
    values = np.asarray(function(nodes), float)
    if values.shape != nodes.shape or not np.isfinite(values).all():
        raise ValueError(
            "the activation must return finite numbers in an array of the same shape, got shape "
            f"{values.shape} for an input of shape {nodes.shape}, and "
            f"{np.sum(~np.isfinite(values))} values that are nan or inf; vectorise it, or pass one "
            "that is finite"
        )
    return values
