"""Gram matrices of weights, and low-rank factors of a weight from their eigenvectors.

X is a matrix or its transpose, whichever has at least as many rows as columns: N x p with N >= p.
X' is the transpose of X, and X'X is the Gram matrix. A symmetric eigendecomposition of X'X takes a
quarter to a half of the time of a singular value decomposition.
"""

from __future__ import annotations

import torch
from torch import Tensor

PARTS, SPLIT_FROM = 4, 256
"""A CPU computes a Gram matrix in `PARTS` blocks of columns if its side reaches `SPLIT_FROM`."""


def tall(matrix: Tensor) -> Tensor:
    """The matrix, or its transpose if that has more rows: X of shape (N, p), N >= p."""
    return matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T


def gram(matrix: Tensor) -> Tensor:
    """The Gram matrix X'X, where X is the given matrix or its transpose, whichever is taller.

    X' is the transpose of X. The Gram matrix has shape (p, p), where p is the shorter side. A CPU
    computes the blocks on and below the diagonal only. The others are their transposes. With four
    columns of blocks this takes five eighths of the multiplications.
    """
    oriented = tall(matrix)
    side = oriented.shape[1]
    if oriented.device.type != "cpu" or side < SPLIT_FROM:
        return oriented.T @ oriented
    squares, width = oriented.new_empty(side, side), -(-side // PARTS)
    for start in range(0, side, width):
        stop = start + width
        squares[start:, start:stop] = oriented[:, start:].T @ oriented[:, start:stop]
        squares[start:stop, stop:] = squares[stop:, start:stop].T
    return squares


def factors_of(matrix: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Two factors, `left @ right`, of the part of a matrix in some singular directions.

    This part is the sum of s u v' over the directions. Here s is the singular value of a direction,
    u and v are its singular vectors, and v' is a row.

    Args:
        matrix: Shape (out, in).
        vectors: Eigenvectors of the Gram matrix X'X in columns, shape (p, r). X is the matrix or
            its transpose, whichever has at least as many rows as columns, and p is the width of X.

    Returns:
        `left` of shape (out, r) and `right` of shape (r, in), both in the dtype of the vectors. In
        each direction, `left` holds s^{1/2} u and `right` holds s^{1/2} v'.
    """
    images = tall(matrix).to(vectors.dtype) @ vectors
    singular = torch.linalg.vector_norm(images, dim=0)
    root = torch.sqrt(singular)
    long_side = images / singular.clamp_min(torch.finfo(vectors.dtype).tiny) * root
    short_side = vectors * root
    if matrix.shape[0] >= matrix.shape[1]:
        return long_side, short_side.T
    return short_side, long_side.T


def balanced(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Scale the columns of `left` and the rows of `right` to equal norms, with the same product.

    A direction is column j of `left` with row j of `right`. Both get the same norm. One learning
    rate cannot train two factors whose norms differ by a factor of hundreds.

    Args:
        left: The left factor, shape (out, r).
        right: The right factor, shape (r, in).

    Returns:
        New factors of the same shapes. If the column or the row of a direction is zero, both become
        zero.

    Examples:
        >>> left, right = balanced(torch.tensor([[8.0]]), torch.tensor([[2.0]]))
        >>> left.item(), right.item()
        (4.0, 4.0)
    """
    first, second = _lengths(left.T), _lengths(right)
    live = (first > 0) & (second > 0)
    ratio = second.sqrt() / torch.where(live, first, 1).sqrt()
    inverse = first.sqrt() / torch.where(live, second, 1).sqrt()
    return left * torch.where(live, ratio, 0), right * torch.where(live, inverse, 0)[:, None]


def _lengths(rows: Tensor) -> Tensor:
    """The norm of each row, computed so that no square of an entry overflows."""
    peaks = rows.abs().amax(1, keepdim=True) if rows.shape[1] else rows.new_zeros(len(rows), 1)
    units = torch.where(peaks > 0, peaks, 1)
    return torch.linalg.vector_norm(rows / units, dim=1) * units[:, 0]


def fewest_directions(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of the same product with the fewest directions, at most min(out, in).

    A direction is column j of `left` with row j of `right`. In the new factors both have equal
    norms. The computation is in float64. A direction that is zero up to rounding errors is left
    out.

    Args:
        left: The left factor, shape (out, r), finite; r may be larger than out and in.
        right: The right factor, shape (r, in), finite.

    Returns:
        Factors of shapes (out, k) and (k, in) in float64, k being the rank of the product.

    Examples:
        >>> left, right = fewest_directions(torch.ones(1, 2), torch.tensor([[1.0], [3.0]]))
        >>> round((left @ right).item(), 9), tuple(left.shape)
        (4.0, (1, 1))
    """
    outer, upper = torch.linalg.qr(left.double())
    inner, lower = torch.linalg.qr(right.double().T)
    u, singular, vh = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    sizes = torch.linalg.matrix_norm(upper), torch.linalg.matrix_norm(lower)
    least = torch.finfo(singular.dtype).eps * max(left.shape[0], right.shape[1])
    rank = int((singular > least * sizes[0] * sizes[1]).sum())
    root = singular[:rank].sqrt()
    return outer @ u[:, :rank] * root, root[:, None] * (vh[:rank] @ inner.T)
