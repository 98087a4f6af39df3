"""Ternary heads: linears become ternary, activations steps, and the last layer is refitted.

The theory's pre-activation is N(0, tau^2). Here it is measured: with C the covariance of the
inputs, tau^2 is the mean of (W C W')_ii and what the means of the units vary by. Biases keep those
means where they were.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hf_rmt.compression.apply import decide_shared
from hf_rmt.compression.batches import Batch
from hf_rmt.compression.calibrated import measured, repeatable
from hf_rmt.compression.decision import Decision
from hf_rmt.compression.low_rank import Excitation
from hf_rmt.compression.parallel import together
from hf_rmt.compression.summary import compression_report
from hf_rmt.kernels import NoMatchError
from hf_rmt.nn import TernaryLinear
from hf_rmt.report import CompressionReport
from hf_rmt.settings import CompressionSettings
from hf_rmt.ternary.forward_trace import UNREACHED, Place, places, places_unfed
from hf_rmt.ternary.regression import outputs_of, regression
from hf_rmt.ternary.weight import (
    Regression,
    check_varied,
    made,
    matched_step,
    refit_weight,
    spread,
    ternarize_weight,
)

logger = logging.getLogger(__name__)

FEW = 64
"""Samples below which the user is warned of the fit."""
REFITTED = "refitted to the outputs it had"


@dataclass(frozen=True)
class Arguments:
    """What an activation is given: mean and variance over samples and units.

    Attributes:
        mean: In the dense model and the ternary one.
        variance: In the dense model.
        ternary_variance: In the ternary one.
    """

    mean: float
    variance: float
    ternary_variance: float


def compress_head(
    model: nn.Module,
    names: Sequence[str],
    settings: CompressionSettings,
    batches: Iterable[Batch] | None = None,
    *,
    dry_run: bool = False,
) -> CompressionReport:
    """Make layers of a model ternary in place, their activations steps, and refit the last one.

    Args:
        model: Any module with its weights in memory, the same on every process.
        names: Linears, as `select_layers` gives them.
        settings: What the user asked for; the method is `ntk`.
        batches: Keyword arguments of the model; on several processes each may have its own. The
            last layer is fitted to what it gave in the dense model, not to labels: those of a few
            hundred sentences say less.
        dry_run: Only plan; the model is not changed.

    Returns:
        The plan, with what became of the activations in the reasons.

    Raises:
        ValueError: If an activation is to be matched, or weights are random, without the data that
            it takes; if no step matches, the samples are all alike, or the sparsity is too high.
        RuntimeError: On every process, if one of several failed.
    """
    _check_sparsity(model, names, settings)
    if batches is None:
        decisions = _without_data(model, names, settings, dry_run)
    else:
        # in memory, for a loader that shuffles would pair inputs with other outputs
        decisions = _with_data(model, names, settings, list(repeatable(batches)), dry_run)
    return compression_report([decisions[name] for name in names], model)


def _check_sparsity(model: Any, names: Sequence[str], settings: CompressionSettings) -> None:
    """Refuse a sparsity that would leave rows of zeros."""
    for name in names:
        width = model.get_submodule(name).in_features
        if round((1 - (settings.sparsity or 0.0)) * width) < 1:
            raise ValueError(
                f"sparsity={settings.sparsity} leaves none of the {width} weights in a row of "
                f"{name!r}; set it to {1 - 1 / width:.3g} at most, or to None for that of least "
                "error"
            )


def _without_data(
    model: nn.Module, names: Sequence[str], settings: CompressionSettings, dry_run: bool
) -> dict[str, Any]:
    if settings.weights == "random":
        raise ValueError(
            "weights='random' keeps nothing that a head has learnt until its last layer is refitted"
            ", which takes data; call hf_rmt.compress(model, config, calibration=batches)"
        )
    found: Mapping[str, Place] = {}
    if settings.activation == "matched":
        found = places_unfed(model, names)

    def decide(name: str, weight: Tensor, settings: CompressionSettings) -> Decision:
        result = ternarize_weight(name, weight, settings)
        place = found.get(name, Place())
        layer = made(result)
        if not place.activation or layer is None:
            return result.noted(place.kept)
        arguments = _from_norm(model, name, place, layer)
        logger.warning("%s: tau=%.3g from %s", name, arguments.variance**0.5, place.norm)
        return _stepped(model, name, place, result, arguments)

    return _by_name(decide_shared(model, names, settings, dry_run=dry_run, decide=decide))


def _with_data(
    model: nn.Module,
    names: Sequence[str],
    settings: CompressionSettings,
    batches: Sequence[Batch],
    dry_run: bool,
) -> dict[str, Any]:
    found = _places(model, names, batches)
    ends = [name for name, at in found.items() if not at.activation and at.kept != UNREACHED]
    last = ends[-1] if ends else None
    if settings.weights == "random" and last is None:
        raise ValueError(
            "weights='random' needs a last layer to put into it what the head has learnt, and each "
            "layer that was selected feeds an activation; name the last one in target_modules"
        )
    outputs = [] if last is None else outputs_of(model, last, batches)
    hidden = [name for name in names if name != last]
    decisions: dict[str, Any] = {}
    for group, excited in measured(model, hidden, batches, min_size=1) if hidden else ():
        decide = _hidden_decision(model, found, excited)
        made = decide_shared(model, group, settings, dry_run=dry_run, decide=decide)
        decisions |= _by_name(made)
    if last is not None:
        seen = regression(model, last, batches, outputs)
        if seen.count < FEW:
            logger.warning("%s is fitted to %d samples; pass a few hundred", last, seen.count)
        decide = _last_decision(model, last, seen)
        made = decide_shared(model, [last], settings, dry_run=dry_run, decide=decide)
        decisions |= _by_name(made)
    return decisions


def _by_name(decisions: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
    return {plan.name: (plan, fit) for plan, fit in decisions}


def _hidden_decision(
    model: nn.Module, found: Mapping[str, Place], excited: Mapping[str, Excitation]
) -> Callable[[str, Tensor, CompressionSettings], Decision]:
    """What happens to the layers before the last."""

    def decide(name: str, weight: Tensor, settings: CompressionSettings) -> Decision:
        random, seen = settings.weights == "random", excited.get(name)
        if seen is None:
            return ternarize_weight(name, weight, settings, random=random).noted(UNREACHED)
        check_varied(name, seen.inputs)
        result = ternarize_weight(name, weight, settings, random=random, moment=seen.inputs)
        layer = made(result)
        if layer is None:
            return result
        result = replace(result, mean_input=seen.mean)
        place = found[name]
        if settings.activation == "keep" or not place.activation:
            return result.noted(place.kept if settings.activation == "matched" else "")
        arguments = _measured_arguments(model, name, weight, layer, seen)
        return _stepped(model, name, place, result, arguments)

    return decide


def _last_decision(
    model: Any, last: str, seen: Regression
) -> Callable[[str, Tensor, CompressionSettings], Decision]:
    """What happens to the last layer, which is fitted to what it gave."""
    bias = model.get_submodule(last).bias

    def decide(name: str, weight: Tensor, settings: CompressionSettings) -> Decision:
        result = refit_weight(name, weight, bias, settings, seen)
        return result if result.plan.reason else result.noted(REFITTED)

    return decide


def _stepped(
    model: nn.Module, name: str, place: Place, result: Decision, arguments: Arguments
) -> Decision:
    """The decision with the step that takes the place of the layer's activation."""
    parent = model.get_submodule(name.rpartition(".")[0])
    activation = parent.get_submodule(place.activation)
    tau, step_tau = arguments.variance**0.5, arguments.ternary_variance**0.5
    try:
        step = matched_step(
            lambda x: activation(torch.tensor(x, dtype=torch.float64)).numpy(),
            mean=arguments.mean,
            tau=tau,
            step_tau=step_tau,
        )
    except NoMatchError as error:
        raise NoMatchError(
            f"{type(activation).__name__} after {name!r} has no one-level step at tau={tau:.3g} "
            f"and mean {arguments.mean:.3g}; set activation='keep'. {error}",
            error.residual,
        ) from error
    plan = replace(result.plan, step={"module": place.activation, **step})
    return replace(result, plan=plan).noted(f"step for {type(activation).__name__}, {tau=:.3g}")


def _measured_arguments(
    model: Any, name: str, weight: Tensor, layer: TernaryLinear, seen: Excitation
) -> Arguments:
    """What the activation is given on calibration, in the dense layer and the ternary one."""
    bias = model.get_submodule(name).bias
    means = seen.inputs.new_zeros(len(weight))
    if seen.mean is not None:
        means = weight.to(seen.inputs) @ seen.mean + bias.detach().to(seen.inputs)
    return _arguments(means, weight, layer, seen.inputs)


def _arguments(means: Tensor, weight: Tensor, layer: TernaryLinear, moment: Tensor) -> Arguments:
    between = float(means.var(unbiased=False))
    ternary = layer.dense(moment.dtype)
    return Arguments(
        float(means.mean()),
        float(spread(weight, moment).mean()) + between,
        float(spread(ternary, moment).mean()) + between,
    )


def _from_norm(model: Any, name: str, place: Place, layer: TernaryLinear) -> Arguments:
    """What a LayerNorm without an affine part, or with a constant one, lets the layer give.

    Its outputs lie on a sphere, |x|^2 = gain^2 in: weights that do not depend on x then give
    arguments of variance gain^2 |w|^2, up to what the biases vary by.
    """
    linear, norm = model.get_submodule(name), model.get_submodule(place.norm or name)
    gain, offset = getattr(norm, "weight", None), getattr(norm, "bias", None)
    flat = gain is None or bool((gain == gain.flatten()[0]).all())
    if not place.norm or not flat or (offset is not None and offset.any()):
        raise ValueError(
            f"tau, the scale of what {place.activation!r} after {name!r} is given, is known without"
            " data only behind a LayerNorm of constant gain and no offset; pass calibration=batches"
            " to hf_rmt.compress, or set activation='keep'"
        )
    moment = torch.eye(linear.in_features, device=linear.weight.device)
    if gain is not None:
        moment *= gain.detach().flatten()[0] ** 2
    means = moment.new_zeros(linear.out_features) if linear.bias is None else linear.bias.detach()
    return _arguments(means, linear.weight.detach(), layer, moment)


def _places(model: nn.Module, names: Sequence[str], batches: Sequence[Batch]) -> dict[str, Place]:
    """Where layers stand, seen on the first batch that any process has."""

    def work() -> tuple[dict[str, Place] | None, dict[str, Tensor]]:
        return (places(model, names, batches[0]) if batches else None), {}

    seen = [found for found in together(work)[0] if found is not None]
    if not seen:
        raise ValueError("calibration holds no batch; pass some, or None to do without data")
    return seen[0]
