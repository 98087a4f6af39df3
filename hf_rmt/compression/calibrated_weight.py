"""Compressing a weight by what its inputs excite: signal where it matters, less error there.

With C the second moment of a layer's inputs, its outputs lose |(W - W') C^{1/2}|^2 when W' stands
for W: the best factors of a rank are those of W C^{1/2}, times C^{-1/2}. With G that of the model's
outputs differentiated by the layer's, the model loses |G^{1/2} (W - W') C^{1/2}|^2, which compares
layers with one another. Both are damped (`low_rank.damped`): a few tokens do not excite every
direction, and the inverse must exist.

Where a law says how much is signal, it reads the spectrum of W itself: that of W C^{1/2} is heavy
tailed as C is, and has no bulk.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from hf_rmt.compression.directions import kept_directions
from hf_rmt.compression.error_feedback import feed_back
from hf_rmt.compression.low_rank import INPUT_DAMPING, Excitation, damped, low_rank
from hf_rmt.compression.weight import CompressedWeight, compress_weight
from hf_rmt.nn import SpikedLinear
from hf_rmt.plan import LayerPlan
from hf_rmt.settings import METHOD_TABLE, PACKED_KINDS, CompressionSettings


@dataclass(frozen=True)
class CalibratedWeight(CompressedWeight):
    """A weight after a decision that knows its inputs.

    Attributes:
        excitation: What batches say about the layer.
    """

    excitation: Excitation | None = field(default=None, repr=False)

    def module(self, weight: Tensor, bias: Tensor | None) -> SpikedLinear:
        """The compressed layer, its signal chosen against the error of its packed noise."""
        layer = super().module(weight, bias)
        if self.plan.noise in PACKED_KINDS and self.excitation is not None:
            _settle(layer, weight, self.excitation)
        return layer


def check_calibratable(settings: CompressionSettings) -> None:
    """Refuse settings that calibration cannot serve.

    Raises:
        ValueError: If nothing is lost, entries are chosen and not directions, or spikes are to be
            recovered.
    """
    row = METHOD_TABLE[settings.method]
    if row.prune or row.refine:
        raise ValueError(
            f"calibration chooses directions, and method={settings.method!r} chooses entries; "
            "use a law or method='svd', or leave calibration out"
        )
    if settings.noise == "keep":
        raise ValueError(
            "calibration lessens what is lost, and noise='keep' loses nothing; leave it out, or "
            "set noise to drop, int8, int4 or ternary"
        )
    if settings.recover_spikes:
        raise ValueError(
            "recover_spikes=True shrinks the directions of the weight, and calibration chooses "
            "others, with sizes of least error; leave it at None, or calibration out"
        )


def compress_calibrated_weight(
    name: str,
    weight: Tensor,
    settings: CompressionSettings,
    excitation: Excitation,
    *,
    rank: int | None = None,
) -> CompressedWeight:
    """Decide what happens to one weight, its factors chosen by what its inputs excite.

    Args:
        name: Runtime name of the module.
        weight: Shape (out, in); it is not changed.
        settings: What the user asked for; spikes are not recovered.
        excitation: Of the layer.
        rank: Number of directions; None for what the method finds in the weight itself.

    Returns:
        The plan with the factors of svd_r(G^{1/2} W C^{1/2}) taken back to the weight's own
        coordinates, or with the weight that they make where that is smaller.
    """
    told = replace(settings, recover_spikes=False)
    if rank is not None:
        told = replace(told, method="svd", rank=rank, energy=None, fraction=None)
    result = compress_weight(name, weight, told)
    if result.fit is None or not (result.plan.compressed or result.filtered is not None):
        return result
    rank = len(kept_directions(result.fit, told, name))
    left, right = (factor.to(weight.dtype) for factor in low_rank(weight, rank, excitation))
    plan = _with_energies(result.plan, weight, left @ right)
    dense = result.filtered is not None
    factors = {"filtered": left @ right} if dense else {"left": left, "right": right}
    return CalibratedWeight(
        plan, result.fit, **factors, mean_input=excitation.mean, excitation=excitation
    )


def _with_energies(plan: LayerPlan, weight: Tensor, signal: Tensor) -> LayerPlan:
    """The plan with the energies of a signal that is not cut along the weight's directions."""
    whole, kept, lost = (
        float(torch.linalg.vector_norm(part, dtype=torch.float64)) ** 2
        for part in (weight, signal, weight - signal)
    )
    return replace(
        plan,
        signal_energy=kept / whole,
        dropped_energy=lost / whole if plan.dropped_energy else 0.0,
    )


@torch.no_grad()
def _settle(layer: SpikedLinear, weight: Tensor, excitation: Excitation) -> None:
    """Choose the codes of N for W - S, then S = svd_r((W - N) C^{1/2}) C^{-1/2} for these codes.

    Doing both once more gains nothing on the trained BERT. The factors are rounded to bfloat16,
    left after it was fitted to the rounded right.
    """
    moment = damped(excitation.inputs, INPUT_DAMPING)
    left, right = (factor.float() for factor in layer.factors())
    feed_back(layer.noise, torch.addmm(weight.float(), left, right, alpha=-1), moment)
    if not layer.rank:
        return
    rest = weight.float() - layer.noise.dense()
    right = low_rank(rest, layer.rank, excitation)[1].to(torch.bfloat16)
    excited = right.double() @ moment
    fitted = torch.linalg.solve(excited @ right.double().T, excited @ rest.double().T)
    layer.weight.copy_(torch.cat([right, fitted.to(torch.bfloat16)], dim=1))
