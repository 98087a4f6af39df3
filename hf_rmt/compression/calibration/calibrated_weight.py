"""Compresses a weight so that its outputs on calibration inputs change little.

Let C be the second moment of a layer's inputs x, that is the mean of x x', where ' is the
transpose. If V replaces the weight W, the mean squared error of the layer's outputs is
|(W - V) C^{1/2}|^2, where |A| is the Frobenius norm. So the best factors of a given rank are those
of W C^{1/2}, multiplied by C^{-1/2}. If the layer has a bias, C is the covariance of x, because the
bias can correct the mean. Let G be the second moment of the derivatives of the model's outputs by
the layer's outputs. The error of the model's outputs is then about |G^{1/2} (W - V) C^{1/2}|^2. By
this measure layers can be compared. C and G are damped (`low_rank.damped`), so that their inverses
exist even if the inputs miss some directions.

To decide how much is signal, a law of the noise (the distribution of the squared singular values of
pure noise) is fitted to W, not to W C^{1/2}. The singular values of W C^{1/2} have a heavy tail,
like those of C, and none of them look like noise.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from hf_rmt.compression.calibration.error_feedback import feed_back
from hf_rmt.compression.calibration.low_rank import INPUT_DAMPING, LayerMoments, damped, low_rank
from hf_rmt.compression.decision import Decision, SpikedBuild
from hf_rmt.compression.methods.spectral import spectral_method_of
from hf_rmt.compression.methods.truncation import of_rank
from hf_rmt.compression.weight import (
    choose_directions,
    factored,
    plan_layer,
    relative_energies,
    split_weight,
)
from hf_rmt.nn import SpikedLinear
from hf_rmt.plan import Outcome
from hf_rmt.settings import PACKED_KINDS, CompressionSettings


@dataclass(frozen=True)
class CalibratedBuild(SpikedBuild):
    """Makes a compressed layer (`SpikedLinear`) that suits the inputs that a layer usually gets.

    The layer holds the signal (a product of two factors), and may hold the noise (the rest of the
    weight) in few bits. Both are chosen so that outputs on calibration batches change little.

    Attributes:
        excitation: Second moments of the layer's inputs and gradients, measured on batches;
            `LayerMoments` explains them.
    """

    excitation: LayerMoments = field(kw_only=True, repr=False)

    def __call__(self, weight: Tensor) -> SpikedLinear:
        """Make the compressed layer from the dense weight.

        If its noise (the weight minus the signal) is rounded to few bits, the signal is then
        fitted anew, to make up for the rounding errors.
        """
        layer = super().__call__(weight)
        if self.noise in PACKED_KINDS:
            _settle(layer, weight, self.excitation)
        return layer


def check_calibratable(settings: CompressionSettings) -> None:
    """Refuse settings that do not work with calibration.

    Raises:
        ValueError: If the method sets single entries to zero, or if the options are `noise="keep"`
            or `recover_spikes=True`.
    """
    if not spectral_method_of(settings).stores_noise:
        raise ValueError(
            f"calibration chooses low-rank factors, but method={settings.method!r} sets entries to "
            "zero; use method='svd' or, for example, 'pdb', or leave calibration out"
        )
    if settings.noise == "keep":
        raise ValueError(
            "calibration reduces a loss, but noise='keep' loses nothing; leave calibration out, "
            "or set noise to drop, int8, int4 or ternary"
        )
    if settings.recover_spikes:
        raise ValueError(
            "recover_spikes=True shrinks the directions of the weight itself, but calibration "
            "chooses other directions and the sizes that give the least error; set "
            "recover_spikes=None, or leave calibration out"
        )


def compress_calibrated_weight(
    name: str,
    weight: Tensor,
    settings: CompressionSettings,
    excitation: LayerMoments,
    *,
    rank: int | None = None,
) -> Decision:
    """Decide how to compress one weight W, with factors that suit the inputs of the layer.

    Args:
        name: Name of the module in `model.named_modules()`.
        weight: W, shape (out, in); it is not changed.
        settings: The method and its options; the option `recover_spikes` has no effect.
        excitation: Second moments, C of the layer's inputs and G of the gradients of its outputs;
            `LayerMoments` explains them.
        rank: Number of directions (singular values with their vectors) to keep; None for the number
            that the method finds in the weight itself.

    Returns:
        The decision. Its factors are the leading singular directions of G^{1/2} W C^{1/2},
        transformed back to the coordinates of W. If the factors need more memory than a dense
        weight, the decision has their product as new weight, or leaves the layer as it is.
    """
    told = settings.replace(recover_spikes=False) if rank is None else of_rank(settings, rank)
    found = split_weight(name, weight, told)
    if isinstance(found, Decision):
        return found
    kept = choose_directions(name, weight, found, told)
    if isinstance(kept, Decision):
        return kept
    plan = plan_layer(name, weight, found.fit, kept, told)
    if plan.outcome is Outcome.KEPT:
        return Decision(plan, found.fit)
    left, right = (factor.to(weight.dtype) for factor in low_rank(weight, len(kept), excitation))
    build = CalibratedBuild(left, right, told.noise, excitation=excitation)
    signal, lost = relative_energies(weight, left @ right)
    dropped = lost if plan.dropped_energy else 0.0
    plan = replace(plan, signal_energy=signal, dropped_energy=dropped)
    return replace(factored(plan, found.fit, build), mean_input=excitation.mean)


@torch.no_grad()
def _settle(layer: SpikedLinear, weight: Tensor, excitation: LayerMoments) -> None:
    """Fit the noise and the signal of a new layer in place, so that its outputs change little.

    The signal is a product of two factors. The noise N stores the rest of the weight W in few bits.
    First `feed_back` chooses N again. Then the signal becomes the matrix of the same rank that
    approximates W - N with the least error of the outputs. Its right factor is rounded to bfloat16.
    Its left factor is fitted to the rounded right factor, and rounded too. A second pass over all
    this gains nothing on a trained BERT.
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
