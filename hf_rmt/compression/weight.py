"""Decides what happens to one weight.

The singular values of the weight are split into signal and noise (see `hf_rmt.spectra`). Then the
directions (singular values with their vectors) to keep are chosen, the plan of the layer is made,
and the factors of these directions are computed. The new layer is built from the factors later.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hf_rmt.compression.decision import Decision, SpikedBuild, dense_plan, keep
from hf_rmt.compression.directions import kept_directions, recovers_spikes, removal
from hf_rmt.compression.spectrum import Decomposition, decompose
from hf_rmt.nn import stored_bits
from hf_rmt.nn.stores.codebooks import CODEBOOKS
from hf_rmt.nn.stores.packing import rows_at_once
from hf_rmt.plan import Cause, LayerPlan, Outcome
from hf_rmt.settings import CompressionSettings, method_of
from hf_rmt.spectra import Phase, SpectrumFit

if TYPE_CHECKING:
    from numpy.typing import NDArray

FAINT = 1e-15
"""If all entries of a weight are smaller than this, its noise (the weight minus its signal) may be
too small to be rounded to few bits: the scales of such noise hold no entries below about 1e-36."""
NOTHING_LEFT = "no signal stands out from the noise, so nothing would be left"


def compress_weight(name: str, weight: Tensor, settings: CompressionSettings) -> Decision:
    """Decide what happens to one weight, without calibration data.

    Args:
        name: Name of the module in `model.named_modules()`.
        weight: Shape (out, in), on any device; it is not changed.
        settings: The method and its options.

    Returns:
        The decision: keep the layer, rewrite its weight, or replace the layer; see `Decision`.
    """
    decision: Decision = method_of(settings).decide(name, weight, settings)
    return decision


def split_weight(
    name: str, weight: Tensor, settings: CompressionSettings
) -> Decomposition | Decision:
    """The squared singular values of a weight, split into signal and noise, with their vectors.

    `Decomposition` explains the result. If the values cannot be split, or the options exclude the
    layer, the result is instead the decision to keep the weight.

    Args:
        name: Name of the module in `model.named_modules()`.
        weight: Shape (out, in); it is not changed.
        settings: The method and its options.
    """
    if min(weight.shape) < settings.min_size:
        reason = f"smaller side {min(weight.shape)} below min_size={settings.min_size}"
        return keep(name, weight, Cause.TOO_SMALL, reason)
    if removal(settings, name) is None:
        return keep(name, weight, Cause.NOT_NAMED, "noise_removal names other layers")
    try:
        found = decompose(weight, settings)
    except torch.linalg.LinAlgError as error:
        return keep(name, weight, Cause.NO_EIGENVALUES, f"no eigenvalues: {error}")
    if found.fit.phase == Phase.DEGENERATE:
        return keep(name, weight, Cause.DEGENERATE, found.fit.reason, fit=found.fit)
    return found


def choose_directions(
    name: str, weight: Tensor, found: Decomposition, settings: CompressionSettings
) -> Tensor | Decision:
    """Choose the directions of a weight that become low-rank factors; return their positions.

    A direction is a singular value with its two singular vectors. `found` says which directions
    are signal, because they stand out. The others are noise. If the options drop the noise, and no
    direction is chosen, nothing of the weight would remain. In this case the result is instead the
    decision to keep the weight.
    """
    kept = kept_directions(found.fit, settings, name)
    if settings.noise == "drop" and len(kept) == 0:
        return keep(name, weight, Cause.NO_SIGNAL, NOTHING_LEFT, fit=found.fit)
    return kept


def keep_directions(
    name: str, weight: Tensor, found: Decomposition, kept: Tensor, settings: CompressionSettings
) -> Decision:
    """Decide on a weight if some of its directions are to be stored as two low-rank factors.

    A direction is a singular value with its two singular vectors.

    Args:
        name: Name of the module in `model.named_modules()`.
        weight: Shape (out, in).
        found: The singular values of this weight, split into signal and noise, with the vectors;
            see `hf_rmt.spectra`.
        kept: Positions of these directions, ascending, shape (rank,).
        settings: The method and its options.

    Returns:
        Usually the decision to replace the layer. If the factors would be larger than the dense
        weight, the decision is to rewrite the weight (if noise is dropped) or to keep it (if noise
        is stored in few bits). It is also kept if the noise is too small or too large for that.
    """
    recovery = found.recovery(kept) if recovers_spikes(settings) else None
    plan = plan_layer(name, weight, found.fit, kept, settings, recovery=recovery)
    if plan.outcome is Outcome.KEPT:
        return Decision(plan, found.fit)
    left, right = found.factors(weight, kept)
    recovery = None if recovery is None else recovery.to(left)
    if _is_faint(weight) and (reason := why_not_storable(weight - left @ right, settings.noise)):
        return keep(name, weight, Cause.NOT_STORABLE, reason, fit=found.fit)
    return factored(plan, found.fit, SpikedBuild(left, right, settings.noise, recovery))


def factored(plan: LayerPlan, fit: SpectrumFit | None, build: SpikedBuild) -> Decision:
    """The decision on a layer that has a plan and two low-rank factors.

    Args:
        plan: The plan. If it does not replace the layer, the product of the factors becomes the new
            weight.
        fit: The squared singular values of the old weight, split into signal and noise; see
            `hf_rmt.spectra`.
        build: Holds the factors; see `SpikedBuild`.
    """
    if plan.outcome is Outcome.REPLACED:
        return Decision(plan, fit, build=build)
    return Decision(plan, fit, rewritten=build.product())


def plan_layer(
    name: str,
    weight: Tensor,
    fit: SpectrumFit,
    kept: Tensor,
    settings: CompressionSettings,
    *,
    recovery: Tensor | None = None,
) -> LayerPlan:
    """The plan of a layer if some directions of its weight are stored as two low-rank factors.

    A direction is a singular value with its two singular vectors.

    Args:
        name: Name of the module in `model.named_modules()`.
        weight: Shape (out, in).
        fit: The squared singular values of the weight, split into signal and noise; see
            `hf_rmt.spectra`.
        kept: Positions of these directions in the descending singular values, shape (rank,).
        settings: The method and its options.
        recovery: Numbers by which the singular values are multiplied, shape (rank,); None to leave
            them unchanged.

    Returns:
        The plan. With `noise="keep"`, which stores the noise exactly, the layer is always replaced.
        Otherwise it stays dense (not compressed) if the factors and the stored noise would not be
        smaller than the dense weight, or if the noise cannot be stored in few bits.
    """
    rank, factors = len(kept), 1.0 if recovery is None else recovery.numpy()
    energy, dropped = _energies(fit, kept, factors, settings.noise)
    rest = np.delete(fit.eigenvalues, kept.numpy())
    rewrites = settings.noise == "drop" and bool(rest.any())
    bits = stored_bits((weight.shape[0], weight.shape[1]), rank, settings.noise, dtype=weight.dtype)
    dense = dense_plan(
        name,
        weight,
        Cause.DENSE_IS_SMALLER,
        f"rank {rank} takes {bits / weight.numel():.1f} bits a weight; dense is smaller",
        phase=str(fit.phase),
        outcome=Outcome.REWRITTEN if rewrites else Outcome.KEPT,
    )
    plan = replace(
        dense,
        n_spikes=fit.n_spikes,
        upper_edge=fit.upper_edge if fit.law is not None else None,
        signal_energy=energy,
        dropped_energy=dropped if rewrites else 0.0,
    )
    if bits >= dense.dense_bits and settings.noise != "keep":
        return plan
    if reason := why_not_storable(weight, settings.noise):
        return replace(plan, cause=Cause.NOT_STORABLE, reason=reason)
    return replace(
        plan,
        outcome=Outcome.REPLACED,
        cause=Cause.NONE,
        reason=fit.reason,
        rank=rank,
        noise=settings.noise,
        bits=bits,
        dropped_energy=dropped,
    )


def _energies(
    fit: SpectrumFit, kept: Tensor, factors: NDArray[Any] | float, noise: str
) -> tuple[float, float]:
    """Energies of a layer's signal and of what it loses, divided by the energy of its weight.

    An energy is a squared Frobenius norm. The signal is made of the singular values at the
    positions `kept`, multiplied by `factors`. What this multiplication takes away is lost. If
    `noise` is "drop", all other singular values are lost, too.
    """
    stored, whole = fit.eigenvalues[kept.numpy()], fit.eigenvalues.sum()
    lost = float((stored * (1 - factors) ** 2).sum())
    if noise == "drop":
        lost += float(np.delete(fit.eigenvalues, kept.numpy()).sum())
    return float((stored * factors**2).sum() / whole), lost / whole


def why_not_storable(rest: Tensor, noise: str) -> str:
    """Why the entries of a matrix cannot be stored in few bits; empty if they can be stored.

    Args:
        rest: The matrix to be stored, or a matrix with entries of about the same size, shape (out,
            in).
        noise: How the noise is stored, as in `LayerPlan.noise`.

    Returns:
        The reason and the remedy, as one text.
    """
    if noise not in CODEBOOKS:
        return ""
    single, peak = torch.finfo(torch.float32), float(rest.detach().abs().amax())
    least = single.tiny / CODEBOOKS[noise].unit
    if peak == 0 or least <= peak <= single.max:
        return ""
    return (
        f"the largest entry to be stored is {peak:.3g}, and the scales of noise={noise!r} allow "
        f"only {least:.3g} to {single.max:.3g}; multiply the weight by a power of ten"
    )


def _is_faint(weight: Tensor) -> bool:
    """Whether all entries of a weight are smaller than `FAINT`, and not all are zero."""
    return 0 < float(weight.detach().abs().amax()) < FAINT


def relative_energies(weight: Tensor, new: Tensor) -> tuple[float, float]:
    """Energies of a new weight and of its difference from the old weight.

    An energy is a squared Frobenius norm, here divided by that of the old weight.

    Args:
        weight: The old weight, shape (out, in).
        new: The new weight, of the same shape.

    Returns:
        Both energies, divided by the energy of the old weight. They need not add up to 1.
    """
    whole, kept, lost = energies(weight, new)
    return kept / whole, lost / whole


def energies(weight: Tensor, new: Tensor) -> tuple[float, float, float]:
    """Energies (squared Frobenius norms) of a weight, of a new weight, and of their difference.

    The sums are in float64.
    """
    sums = torch.zeros(3, dtype=torch.float64, device=weight.device)
    step = rows_at_once(weight.shape)
    for start in range(0, len(weight), step):  # float64 copies of all rows would be large
        old, now = (part[start : start + step].double() for part in (weight, new))
        sums += torch.stack([part.square().sum() for part in (old, now, old - now)])
    whole, kept, lost = sums.tolist()
    return whole, kept, lost


def energy_of_product(left: Tensor, right: Tensor) -> float:
    """The energy (squared Frobenius norm) of `left @ right`, without computing this product.

    It is computed in float64.

    Args:
        left: Shape (out, r).
        right: Shape (r, in).
    """
    left, right = left.double(), right.double()
    return float(((left.T @ left) * (right @ right.T)).sum())
