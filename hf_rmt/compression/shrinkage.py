"""Keeps the signal of a noisy update: a few spikes, each shrunk because its vectors are noisy.

An update is what fine-tuning added to a weight. A spike is a singular value that stands out from
the noise. If some labels were wrong, many large singular values of the update are noise. So a
method that finds few spikes is better here: `fit_double_bulk` with `published=True`. Noise changes
both the singular value and the vectors of a spike. The singular value is shrunk to correct for
both, so that the squared error of the estimated signal is least.

A training first learns from the right labels, and memorises the wrong labels later (Arpit et al.,
ICML 2017). So the leading singular vectors of an early update can show what is signal, even where
the singular values of the final update cannot. `along` keeps the part of an update in these
directions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hf_rmt.spectra import Phase
from hf_rmt.spectra.fits.double_bulk import fit_double_bulk
from hf_rmt.spectra.laws.marchenko_pastur import MarchenkoPastur

FLATTEST = 1e-12
"""A median singular value below this part of the largest one counts as a rounding error."""


def optimal_singular_values(values: Tensor, shape: tuple[int, int], noise: float) -> Tensor:
    """Shrink singular values, to estimate a low-rank signal in white noise with the least error.

    The given singular values are those of a sum of two matrices. One is the signal, a matrix of low
    rank. The other is white noise: its entries are independent and have equal variance. The error
    is the squared error of the estimated signal.

    Args:
        values: y, the singular values of signal plus noise.
        shape: Shape of the matrix or of its transpose; N is the longer side and p the shorter one.
        noise: Standard deviation of an entry of the noise.

    Returns:
        The shrunk values: n sqrt((t^2 - b - 1)^2 - 4 b) / t with n = noise sqrt(N), t = y / n and
        b = p / N. They are 0 for t <= 1 + sqrt(b), about the largest t of pure noise.

    Source:
        Gavish & Donoho, IEEE Trans. Inf. Theory 63 (2017), equation 7.

    Examples:
        >>> optimal_singular_values(torch.tensor([3.0, 1.5]), (1, 1), 1.0).numpy().round(3)
        array([2.236, 0.   ], dtype=float32)
    """
    rows, columns = max(shape), min(shape)
    scale, ratio = noise * rows**0.5, columns / rows
    scaled = values / max(scale, torch.finfo(values.dtype).tiny)
    inside = (scaled**2 - ratio - 1) ** 2 - 4 * ratio
    shrunk = scale * inside.clamp_min(0).sqrt() / scaled.clamp_min(1)
    return torch.where(scaled > 1 + ratio**0.5, shrunk, torch.zeros_like(shrunk))


def shrunk_update(update: Tensor) -> tuple[Tensor, int]:
    """The signal of an update: the directions that stand out, with shrunk singular values.

    A direction is a singular value with its two vectors. `fit_double_bulk` with `published=True`
    counts the directions that stand out from the noise. The count depends on the scale of the
    singular values. So they are first divided by the scale of the noise. Then the scale of the
    update has no effect on the directions that are kept.

    Args:
        update: What fine-tuning added to a weight, shape (out, in); it is not changed.

    Returns:
        The new update, in the dtype of the old one, and the number of its directions. An update
        is kept as it is, with all its directions, if it holds nan or inf, or if its singular values
        cannot be split into signal and noise (as for a matrix of low rank).
    """
    shape = (update.shape[0], update.shape[1])
    if not torch.isfinite(update).all():
        return update, min(shape)
    left, values, right = torch.linalg.svd(update.double(), full_matrices=False)
    scaled = (values / _bulk_unit(values, shape)).square()
    fit = fit_double_bulk(scaled.cpu().numpy(), shape, published=True)
    if fit.phase == Phase.DEGENERATE:
        return update, len(values)
    count = fit.n_spikes
    rest = float((values[count:] ** 2).sum())
    entries = max(shape) * max(1, len(values) - count)
    kept = optimal_singular_values(values[:count], shape, (rest / entries) ** 0.5)
    return (left[:, :count] * kept @ right[:count]).to(update), int((kept > 0).sum())


def _bulk_unit(values: Tensor, shape: tuple[int, int]) -> float:
    """The scale of the noise in a matrix, estimated from its singular values.

    The scale is the standard deviation of an entry of the noise, times the root of the longer side.
    It is chosen so that white noise (independent entries of equal variance) of this scale has the
    same median singular value as the matrix. If the median is 0 or a rounding error, the largest
    singular value is returned. For a matrix of zeros, 1 is returned.
    """
    if not values.any():
        return 1.0
    law = MarchenkoPastur(1.0, min(shape) / max(shape))
    median = float(values.median()) / float(law.quantile(0.5)) ** 0.5
    return median if median > FLATTEST * float(values.max()) else float(values.max())


def participation_ratio(values: Tensor) -> float:
    """The number of singular values over which the energy of a matrix spreads.

    The energy is the sum of the squared singular values s. The number is (sum s^2)^2 / sum s^4.

    Args:
        values: The singular values s of the matrix, shape (n,).

    Returns:
        1 if only one singular value is not 0. The number of singular values if all are equal. 0 for
        a matrix of zeros. In all other cases, a number from 1 to the number of singular values.

    Examples:
        >>> participation_ratio(torch.tensor([3.0, 3.0, 0.0]))
        2.0
    """
    if not values.any():
        return 0.0
    energies = (values.double() / values.abs().max()) ** 2  # squares of tiny values would vanish
    return float(energies.sum() ** 2 / (energies**2).sum())


def leading_directions(update: Tensor) -> tuple[Tensor, Tensor]:
    """The leading singular vectors of an update; `participation_ratio` gives their number.

    Args:
        update: What fine-tuning added to a weight, shape (out, in).

    Returns:
        The left and the right vectors, as orthonormal columns in float32, of shapes (out, count)
        and (in, count). The count is 0 if the update is zero, or holds nan or inf.
    """
    if not torch.isfinite(update).all():
        none = update.new_zeros(max(update.shape), 0, dtype=torch.float32)
        return none[: update.shape[0]], none[: update.shape[1]]
    left, values, right = torch.linalg.svd(update.double(), full_matrices=False)
    count = round(participation_ratio(values))
    return left[:, :count].float().contiguous(), right[:count].T.float().contiguous()


def along(update: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The part of an update D along given left and right singular vectors: U U' D V V'.

    An update is what fine-tuning added to a weight; U' is the transpose of U.

    Args:
        update: D, shape (out, in).
        left: U, the left vectors in orthonormal columns, shape (out, count).
        right: V, the right vectors in orthonormal columns, shape (in, count).

    Returns:
        The part, in the dtype of the update.
    """
    matrix = update.to(torch.promote_types(update.dtype, torch.float32))
    left, right = left.to(matrix), right.to(matrix)
    return (left @ (left.T @ matrix @ right) @ right.T).to(update.dtype)
