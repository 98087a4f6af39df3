"""Chooses the codes of packed noise column by column; each column corrects earlier errors.

Packed noise stores weights as codes of few bits. Rounding each weight to its nearest code
makes the error E of the weight small. But what counts is the error of the layer's outputs,
|E C^{1/2}|^2, where C is the mean of x x' over the layer's inputs x, and |A|^2 the sum of the
squared entries of A. So the columns are rounded one after the other. After one column is rounded,
the later columns are changed to make up for its error, as far as their inputs are correlated with
the input of this column.

Source: the optimal brain surgeon with one order for all rows (Frantar et al., "GPTQ", ICLR 2023).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hf_rmt.nn.stores.codebooks import CODEBOOKS, Codebook
from hf_rmt.nn.stores.noise_store import NoiseStore

COLUMNS = 64
"""The columns of a weight are rounded in runs of this many. After a run, one matrix product
corrects all later columns for the errors of the run."""


@torch.no_grad()
def feed_back(store: NoiseStore, target: Tensor, moment: Tensor) -> None:
    """Choose new codes for noise in few bits, so that the layer's outputs change less.

    The error of the outputs is |(target - noise) C^{1/2}|. `NoiseStore` explains codes and scales.
    Only the codes change, not the scales.

    Args:
        store: The noise. It holds the rounded target already; its codes are replaced in place.
        target: The matrix that the noise should equal, shape (out, in).
        moment: C, the second moment of the layer's inputs x, which is the mean of x x', plus a
            multiple of the identity; positive definite, shape (in, in), float64.
    """
    book, size, columns = CODEBOOKS[store.kind], target.numel(), target.shape[1]
    joint = book.joint
    scales = store.group_scales().repeat_interleave(book.group)
    steps = scales[:size].view(target.shape)
    aims = torch.empty_like(target, dtype=torch.float32)
    begins = -columns * torch.arange(len(target), device=target.device) % joint
    for begin in begins.unique().tolist():  # the column at which the first whole code begins
        rows = (begins == begin).nonzero()
        order = _order(moment, joint, begin)
        aims[rows, order] = _aims(
            target[rows, order].float(),
            steps[rows, order],
            moment[order][:, order],
            lambda values: _nearest(book, values, joint),
            joint,
        )
    flat = nn.functional.pad(aims.flatten(), (0, len(scales) - size))
    store.codes.copy_(book.encode((flat / scales).view(-1, book.group)).flatten())


def _aims(
    rest: Tensor, scales: Tensor, moment: Tensor, nearest: Callable[[Tensor], Tensor], joint: int
) -> Tensor:
    """Change weights before they are rounded, so that rounding changes the outputs little.

    The columns are treated from left to right. For each column, the error that rounding will cause
    is computed, and all later columns are changed to make up for it. The caller rounds the result.

    Args:
        rest: The weights, shape (out, in); they are overwritten.
        scales: The number by which each weight is divided before rounding, shape (out, in).
        moment: The second moment of the layer's inputs x, which is the mean of x x' (' is the
            transpose).
        nearest: A function that rounds weights that were divided by their scales.
        joint: Number of neighbouring weights that one code stores together.

    Returns:
        The changed weights, shape (out, in), not yet rounded.
    """
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moment))
    upper = torch.linalg.cholesky(inverse, upper=True).to(rest)
    for start in range(0, rest.shape[1], COLUMNS):
        stop = min(start + COLUMNS, rest.shape[1])
        errors = torch.zeros_like(rest[:, start:stop])
        for first in range(start, stop - joint + 1, joint):
            here = slice(first, first + joint)
            lost = rest[:, here] - nearest(rest[:, here] / scales[:, here]) * scales[:, here]
            error = torch.linalg.solve_triangular(upper[here, here], lost, upper=True, left=False)
            rest[:, here.stop : stop] -= error @ upper[here, here.stop : stop]
            errors[:, first - start : here.stop - start] = error
        rest[:, stop:] -= errors @ upper[start:stop, stop:]
    return rest


def _order(moment: Tensor, joint: int, begin: int) -> Tensor:
    """The order in which the columns of a weight are rounded: those with large inputs first.

    Inputs are compared by their mean squares. Later columns can correct the errors of earlier
    ones. One code holds `joint` neighbouring weights; `begin` is the column where the first whole
    code of a row begins. Columns whose code also holds weights of another row come last, because
    the error of such a code is not known.
    """
    columns = torch.arange(len(moment), device=moment.device)
    end = len(moment) - (len(moment) - begin) % joint
    codes = columns[begin:end].view(-1, joint)
    energies = moment.diagonal()[codes].sum(1)
    whole = codes[torch.argsort(energies, descending=True, stable=True)].flatten()
    return torch.cat([whole, columns[:begin], columns[end:]])


def _nearest(book: Codebook, values: Tensor, joint: int) -> Tensor:
    """Round weights, shape (out, joint), to the nearest values that the `Codebook` can store.

    The weights are divided by their scales already. One code stores `joint` neighbouring weights
    of a row.
    """
    width = max(2, book.block)
    filled = nn.functional.pad(values, (0, width - joint))
    return book.decode(book.encode(filled).flatten()).view(-1, width)[:, :joint]
