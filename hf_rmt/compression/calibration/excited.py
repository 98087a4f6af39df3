"""Finds the directions of a weight in which its inputs cause large outputs, and shrinks the rest.

Let W be the weight. C is the second moment of the inputs x (the mean of x x'), and G that of the
gradients of the outputs; ' is the transpose. To replace W by a matrix N costs about
|G^{1/2} (W - N) C^{1/2}|^2, where |A|^2 is the sum of squared entries. So the best directions are
the leading singular vectors U and V of G^{1/2} W C^{1/2} = U s V'. Two matrices with k columns, the
probes K = C^{1/2} V and H = G^{1/2} U, store these directions. The two-sided cut is

    W -> W K (H' W K)^+ H' W

where ^+ is the pseudo-inverse. It gives the best weight of rank k if W is the weight from which the
probes were made. If W is trained after that, the columns W K and the rows H' W of the cut follow
the training. A weight of rank k is not changed, for any probes (generalized Nystroem; Nakatsukasa,
arXiv 2009.11392). If training has moved W so far that the probes no longer fit, the orthogonal cut
is used instead: the orthogonal projection of W on the range of W K.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hf_rmt.compression.calibration.low_rank import (
    GRADIENT_DAMPING,
    INPUT_DAMPING,
    SMALLEST,
    LayerMoments,
    damped,
)
from hf_rmt.compression.eigensystem import eigensystem

FITTING = 1.5
"""`cut` makes a two-sided cut of a weight, which the module's docstring explains. If it loses more
than this multiple of what the orthogonal cut would lose (as norms), the orthogonal cut is used."""
NULL = 1e-6
"""When `cut` inverts the matrix H' W K of the module's docstring, singular values below this part
of the largest one count as 0."""
CLEAR = 1e-4
"""The loss of a cut can be computed as the difference of two energies (squared norms). If it is
above this share of the weight's energy, this computation is right to about a percent or better."""


def excited_directions(weight: Tensor, excitation: LayerMoments) -> tuple[Tensor, Tensor, Tensor]:
    """The directions of a weight, ordered by the cost of losing them.

    Let G^{1/2} W C^{1/2} = U s V' be a singular value decomposition. A direction is a column of U
    with the same column of V. H = G^{1/2} U and K = C^{1/2} V are called probes: `cut` computes
    from them what is left of W if some directions are kept.

    Args:
        weight: W, shape (out, in).
        excitation: C, the mean of x x' over the inputs x (' is the transpose), and G, the mean of
            g g' over the gradients g of the outputs. Both may be vectors of their diagonals.
            Without gradients, all outputs count equally.

    Returns:
        The squared singular values, descending, shape (min(out, in),), and the probes H and K with
        columns of norm 1 in the same order, shapes (out, min(out, in)) and (in, min(out, in)); all
        float64.

    Examples:
        >>> weight, inputs = torch.eye(2), torch.diag(torch.tensor([1.0, 9.0]))
        >>> excited_directions(weight, LayerMoments(inputs))[0].round().tolist()
        [9.0, 1.0]
    """
    inputs = _damped(excitation.inputs, INPUT_DAMPING)
    slopes = excitation.gradients
    outputs = None if slopes is None else _damped(slopes, GRADIENT_DAMPING)
    if weight.shape[0] >= weight.shape[1]:
        return _directions(weight.double(), outputs, inputs)
    values, right, left = _directions(weight.double().T, inputs, outputs)
    return values, left, right


def _directions(
    matrix: Tensor, rows: Tensor | None, columns: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Squared singular values of R^{1/2} M C^{1/2}, and two matrices made of its singular vectors.

    `matrix` is M, a weight or its transpose, with at least as many rows as columns. `rows` is R and
    `columns` is C. One of them is the second moment of the layer's inputs, the other that of the
    gradients of its outputs: the mean of x x' over vectors x (' is the transpose). None stands for
    the identity. Let R^{1/2} M C^{1/2} = U s V' be the singular value decomposition. The two
    matrices are R^{1/2} U and C^{1/2} V, with columns scaled to norm 1. The first one is computed
    as R M C^{1/2} V, so no square root of R is needed.
    """
    weighted = matrix if rows is None else _times(rows, matrix)
    gram = matrix.T @ weighted
    root = None if columns is None else _root(columns)
    if root is not None:
        gram = root[:, None] * gram * root if root.ndim == 1 else root.T @ gram @ root
    values, basis = eigensystem(gram)
    vectors = basis.chosen(torch.arange(len(values), device="cpu"))
    probes = vectors if root is None else _times(root, vectors)
    return values.clamp_min(0), _unit(weighted @ probes), _unit(probes)


def _unit(vectors: Tensor) -> Tensor:
    """The columns of a matrix, each divided by its norm; a column of zeros stays zero."""
    norms = torch.linalg.vector_norm(vectors, dim=0)
    return vectors / norms.clamp_min(torch.finfo(norms.dtype).tiny)


def _damped(moment: Tensor, damping: float) -> Tensor:
    """Add `damping` times the mean diagonal entry of a second moment to its diagonal.

    The result has an inverse. The second moment of vectors x is the mean of x x' (' is the
    transpose). It may be given, and is then returned, as the vector of its diagonal.
    """
    if moment.ndim == 2:
        return damped(moment, damping)
    moment = moment.double()
    return moment + (damping * moment.mean()).clamp_min(SMALLEST)


def _root(moment: Tensor) -> Tensor:
    """A lower triangular matrix L with L L' = `moment`; L' is the transpose of L.

    `moment` is a second moment, the mean of x x' over vectors x. If it is a vector, it stands for a
    diagonal matrix, and the result is the vector of its square roots.
    """
    return moment.sqrt() if moment.ndim == 1 else torch.linalg.cholesky(moment)


def _times(moment: Tensor, matrix: Tensor) -> Tensor:
    return moment[:, None] * matrix if moment.ndim == 1 else moment @ matrix


@torch.no_grad()
def cut(weight: Tensor, left: Tensor, right: Tensor, left_over: float) -> Tensor:
    """Shrink the part of a weight outside of the directions that two probes store.

    `excited_directions` explains the directions, and the probes, matrices that store them.

    Args:
        weight: W, shape (out, in).
        left: The probe H, shape (out, rank).
        right: The probe K, shape (in, rank).
        left_over: The factor by which the rest is multiplied, in [0, 1].

    Returns:
        S + left_over (W - S). Here S is W after the cut that the module's docstring describes; its
        rank is at most `rank`. The result has the dtype of the weight and is computed in float32 or
        better.

    Examples:
        >>> probe = torch.tensor([[1.0], [0.0]])
        >>> cut(torch.diag(torch.tensor([2.0, 1.0])), probe, probe, 0.5).tolist()
        [[2.0, 0.0], [0.0, 0.5]]
    """
    matrix = weight.to(torch.promote_types(weight.dtype, torch.float32))
    images = _unit(matrix @ right.to(matrix))
    readings = left.to(matrix).T @ matrix
    middle = (left.to(matrix).T @ images).double()
    fitted = images @ (torch.linalg.inv_ex(middle).inverse.to(matrix) @ readings)
    basis = torch.linalg.qr(images).Q
    inside = basis.T @ matrix
    if not _fits_well(matrix, fitted, inside):
        fitted = images @ (torch.linalg.pinv(middle, rtol=NULL).to(matrix) @ readings)
        signal = basis @ inside
        lost, least = (torch.linalg.vector_norm(matrix - part) for part in (fitted, signal))
        fitted = torch.where(lost <= FITTING * least + NULL * matrix.norm(), fitted, signal)
    return torch.lerp(fitted, matrix, left_over).to(weight.dtype)


def _fits_well(matrix: Tensor, fitted: Tensor, inside: Tensor) -> bool:
    """Whether the two-sided cut of a weight W loses little more than the orthogonal cut would.

    The module's docstring explains both cuts and the matrices H and K. `fitted` is W after the
    two-sided cut, and `inside` is Q'W, where Q is a basis of the range of W K. The orthogonal cut
    loses |W|^2 - |Q'W|^2. If this difference is too small to be exact, the result is False. It is
    also False if `fitted` holds nan, because H' W K has no inverse.
    """
    lost, whole, kept = (
        torch.linalg.vector_norm(part, dtype=torch.float64).square()
        for part in (matrix - fitted, matrix, inside)
    )
    least = whole - kept
    return bool((least > CLEAR * whole) & (lost <= FITTING**2 * least))
