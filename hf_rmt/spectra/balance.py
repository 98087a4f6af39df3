"""Scales the rows and columns of a weight to equal mean square, so that a noise law can hold.

A noise law is the distribution of eigenvalues that theory predicts for noise, if all rows have the
same variance. A weight W is written as W = diag(r) B diag(c) with row scales r, column scales c and
a balanced matrix B. The law is fitted to B. The signal of B, multiplied by the scales again, is the
signal of W.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from hf_rmt.spectra.entries import as_array
from hf_rmt.spectra.laws.spike_map import Array

SWEEPS = 100
EVEN = 1e-6
"""In `balance`, a sweep scales all rows, then all columns. At most SWEEPS sweeps are made. They end
earlier if the mean square of every row differs from the mean over all rows by at most EVEN."""


def balance(weight: ArrayLike) -> tuple[Array, Array, Array]:
    """Scale rows and columns until all of them that are not zero have the same mean square.

    This is Sinkhorn's iteration on the squared entries, which scales rows and columns in turn. A
    row or column of zeros gets some positive scale. If no scales can balance a sparse weight, the
    result of the last sweep is returned.

    Args:
        weight: A finite matrix, shape (out, in).

    Returns:
        The balanced weight B, the row scales r of shape (out,), and the column scales c of shape
        (in,). Up to rounding, the weight is W = r[:, None] * B * c. The mean square of c is 1. As
        long as no column is zero, B has the mean square of W.

    Raises:
        ValueError: If the weight is no matrix, or holds nan or inf.

    Source:
        Sinkhorn & Knopp, Pacific J. Math. 21 (1967).

    Examples:
        >>> weight = np.random.default_rng(0).standard_normal((6, 4)) * [1.0, 9.0, 2.0, 5.0]
        >>> scaled, rows, columns = balance(weight)
        >>> np.allclose(np.ptp((scaled**2).mean(0)), 0, atol=1e-4)
        True
        >>> np.allclose(rows[:, None] * scaled * columns, weight)
        True
    """
    matrix = np.asarray(as_array(weight), dtype=float)
    if matrix.ndim != 2 or not np.isfinite(matrix).all():
        raise ValueError(
            f"balance takes a finite matrix, got an array of shape {matrix.shape}; reshape it, or "
            "leave out a weight with nan or inf"
        )
    peak = float(np.abs(matrix).max(initial=0.0))
    if peak == 0:
        return matrix.copy(), np.ones(matrix.shape[0]), np.ones(matrix.shape[1])
    squares = np.square(matrix / peak)
    rows, columns = np.ones(matrix.shape[0]), np.ones(matrix.shape[1])  # squared scales
    for _ in range(SWEEPS):
        rows = _live((squares / columns).mean(1))
        columns = _live((squares / rows[:, None]).mean(0))
        uneven = (squares / columns / rows[:, None]).mean(1)
        if np.all(np.abs(uneven[uneven > 0] - uneven[uneven > 0].mean()) <= EVEN):
            break
    return _split(matrix, rows, columns, float(squares.mean()))


def _live(energies: Array) -> Array:
    """Replace 0 by 1 in the mean squares of rows or columns, so that one can divide by them."""
    return np.where(energies > 0, energies, 1.0)


def _split(
    matrix: Array, rows: Array, columns: Array, mean_square: float
) -> tuple[Array, Array, Array]:
    """Divide a matrix by its row scales and column scales, and return it with both scales.

    `rows` and `columns` hold the squares of the scales, up to a common factor. The factor is chosen
    so that the mean square of the column scales is 1. `mean_square` is the mean of the squared
    entries of `matrix`, divided by the largest of them.
    """
    common = columns.mean()
    row_scale, column_scale = np.sqrt(rows * common / mean_square), np.sqrt(columns / common)
    return matrix / row_scale[:, None] / column_scale, row_scale, column_scale
