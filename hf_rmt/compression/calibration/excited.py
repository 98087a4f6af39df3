"""Directions of a weight that its inputs excite, and the weight cut down to them, step by step.

With C the second moment of the inputs and G that of the gradients of the outputs, a step from W to
W' costs about |G^{1/2} (W - W') C^{1/2}|^2. Its best directions are the leading singular vectors of
G^{1/2} W C^{1/2} = U s V'. Two thin probes remember them, K = C^{1/2} V and H = G^{1/2} U:

    W -> W K (H' W K)^+ H' W

is the best weight of rank k for the W that they were made from. For a W that has trained since, it
follows the training on both sides, and a weight of rank k it leaves alone, whatever the probes
(generalized Nystroem; Nakatsukasa, arXiv 2009.11392). Where W has moved so far that the probes no
longer fit, the orthogonal projection on the range of W K takes its place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hf_rmt.compression.calibration.low_rank import (
    GRADIENT_DAMPING,
    INPUT_DAMPING,
    LayerMoments,
    damped,
)

FITTING = 1.5
"""A two-sided cut may lose so many times what the orthogonal one loses, in the plain norm."""
NULL = 1e-6
"""Relative singular value of H' W K below which a direction is none."""


def excited_directions(weight: Tensor, excitation: LayerMoments) -> tuple[Tensor, Tensor, Tensor]:
    """The directions of a weight by what losing them costs.

    Args:
        weight: W, shape (out, in).
        excitation: Second moments C of its inputs and G of its outputs' gradients, or vectors of
            their diagonals; without gradients the outputs all count alike.

    Returns:
        The squared singular values of G^{1/2} W C^{1/2}, descending, shape (min(out, in),), and
        the probes H and K with columns of norm 1 in the same order, shapes (out, min(out, in)) and
        (in, min(out, in)); all float64.

    Examples:
        >>> weight, inputs = torch.eye(2), torch.diag(torch.tensor([1.0, 9.0]))
        >>> excited_directions(weight, LayerMoments(inputs))[0].round().tolist()
        [9.0, 1.0]
    """
    columns = _root(excitation.inputs, INPUT_DAMPING)
    matrix = _times(weight.double(), columns)
    rows = None if excitation.gradients is None else _root(excitation.gradients, GRADIENT_DAMPING)
    matrix = matrix if rows is None else _times(matrix.T, rows).T
    tall = matrix.shape[0] >= matrix.shape[1]
    values, vectors = torch.linalg.eigh(matrix.T @ matrix if tall else matrix @ matrix.T)
    vectors = vectors.flip(1)
    images = _unit(matrix @ vectors if tall else matrix.T @ vectors)
    left, right = (images, vectors) if tall else (vectors, images)
    left = left if rows is None else _unit(_times(left.T, _turned(rows)).T)
    return values.flip(0).clamp_min(0), left, _unit(_times(right.T, _turned(columns)).T)


def _unit(vectors: Tensor) -> Tensor:
    """Columns of norm 1."""
    norms = torch.linalg.vector_norm(vectors, dim=0)
    return vectors / norms.clamp_min(torch.finfo(norms.dtype).tiny)


def _root(moment: Tensor, damping: float) -> Tensor:
    """Lower triangular root of a damped second moment; of a diagonal a vector."""
    if moment.ndim == 1:
        moment = moment.double()
        return (moment + (damping * moment.mean()).clamp_min(1e-150)).sqrt()
    return torch.linalg.cholesky(damped(moment, damping))


def _times(rows: Tensor, root: Tensor) -> Tensor:
    return rows * root if root.ndim == 1 else rows @ root


@torch.no_grad()
def cut(weight: Tensor, left: Tensor, right: Tensor, left_over: float) -> Tensor:
    """Shrink what a weight holds beside the directions that two probes pick out.

    Args:
        weight: W, shape (out, in).
        left: H, shape (out, rank).
        right: K, shape (in, rank).
        left_over: What the rest is multiplied with, in [0, 1].

    Returns:
        S + left_over (W - S), S the signal; in the dtype of the weight, computed in float32 or
        better.

    Examples:
        >>> probe = torch.tensor([[1.0], [0.0]])
        >>> cut(torch.diag(torch.tensor([2.0, 1.0])), probe, probe, 0.5).tolist()
        [[2.0, 0.0], [0.0, 0.5]]
    """
    matrix = weight.to(torch.promote_types(weight.dtype, torch.float32))
    images = _unit(matrix @ right.to(matrix))
    basis = torch.linalg.qr(images).Q
    signal = basis @ (basis.T @ matrix)
    readings = left.to(matrix).T @ matrix
    middle = torch.linalg.pinv((left.to(matrix).T @ images).double(), rtol=NULL)
    fitted = images @ (middle.to(matrix) @ readings)
    lost, least = (torch.linalg.vector_norm(matrix - part) for part in (fitted, signal))
    best = torch.where(lost <= FITTING * least + NULL * matrix.norm(), fitted, signal)
    return torch.lerp(best, matrix, left_over).to(weight.dtype)


def _turned(root: Tensor) -> Tensor:
    return root if root.ndim == 1 else root.T
