"""Makes the step activations that replace the activations of a head (the last layers of a model).

A step activation takes few values. It has the m1, m2 and (if m2 is not 0) m3 of `GaussianMoments`
that the activation has at the scale tau, the standard deviation of the activation's inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hf_rmt.compression.calibration.low_rank import LayerMoments
from hf_rmt.compression.decision import Decision
from hf_rmt.kernels import NoMatchError
from hf_rmt.nn import TernaryLinear
from hf_rmt.ternary.forward_trace import Position
from hf_rmt.ternary.functions import Function, module_function
from hf_rmt.ternary.preimages import levels_before
from hf_rmt.ternary.weight import matched_step, spread


@dataclass(frozen=True)
class Arguments:
    """The inputs of an activation: their mean and variance over samples and neurons.

    Attributes:
        mean: The mean of the inputs, the same before compression and in the ternary model.
        variance: The variance of the inputs before compression.
        ternary_variance: The variance of the inputs in the ternary model.
    """

    mean: float
    variance: float
    ternary_variance: float


def stepped(
    model: nn.Module,
    name: str,
    place: Position,
    result: Decision,
    arguments: Arguments,
    *,
    free: bool = False,
) -> Decision:
    """Add a step activation to the decision on a layer; it replaces the layer's activation.

    A step activation is a function with a few values.

    Args:
        model: The model.
        name: Full name of the layer.
        place: It says which activation follows the layer, a module or a function.
        result: The decision on the layer so far.
        arguments: Mean and variances of the activation's inputs.
        free: Whether the next layer, which reads the activation, is refitted with a bias.

    Returns:
        The new decision. It has no step activation if the activation is a function that cannot
        return the values of the step activation.

    Raises:
        NoMatchError: If no step activation with the Gaussian moments of the activation is found.
    """
    function = activation_of(model, name, place)
    tau, step_tau = arguments.variance**0.5, arguments.ternary_variance**0.5
    try:
        step = matched_step(function.values, mean=arguments.mean, tau=tau, step_tau=step_tau)
    except NoMatchError as error:
        raise NoMatchError(
            f"no one-level step for {function} after {name!r} was found at tau={tau:.3g} and mean "
            f"{arguments.mean:.3g} (standard deviation and mean of the activation's inputs); set "
            f"activation='keep'. {error}",
            error.residual,
        ) from error
    if place.activation:
        recorded: dict[str, Any] = {"module": place.activation, **step}
    elif levels := levels_before(function, step["heights"], free=free):
        recorded = {
            "function": function.name,
            "thresholds": step["thresholds"],
            "heights": levels.heights,
            "values": levels.values,
            "slopes": levels.slopes,
            "gain": levels.gain,
        }
    else:
        return result.noted(_out_of_reach(function, step["heights"]))
    plan = replace(result.plan, step=recorded)
    return replace(result, plan=plan).noted(f"step for {function}, {tau=:.3g}")


def activation_of(model: nn.Module, name: str, place: Position) -> Function:
    """The activation that a layer feeds.

    Raises:
        ValueError: If the layer feeds no activation that a step activation can replace.
    """
    if place.function is not None:
        return place.function
    parent = model.get_submodule(name.rpartition(".")[0])
    function = module_function(parent.get_submodule(place.activation))
    if function is None:
        raise ValueError(
            f"{name!r} feeds no activation that a step can replace: "
            f"{place.kept or place.activation}; set activation='keep'"
        )
    return function


def measured_arguments(
    model: Any, name: str, weight: Tensor, layer: TernaryLinear, seen: LayerMoments
) -> Arguments:
    """Mean and variances of the inputs of the activation after a layer, from calibration data.

    `weight` is the layer's weight before compression, `layer` is the ternary layer that replaces
    the old one, and `seen` holds the moments of the layer's inputs (see `LayerMoments`).
    """
    bias = model.get_submodule(name).bias
    means = seen.inputs.new_zeros(len(weight))
    if seen.mean is not None:
        means = weight.to(seen.inputs) @ seen.mean + bias.detach().to(seen.inputs)
    return _arguments(means, weight, layer, seen.inputs)


def arguments_from_norm(model: Any, name: str, place: Position, layer: TernaryLinear) -> Arguments:
    """Mean and variances of an activation's inputs, computed from a LayerNorm and not from data.

    The layer before the activation must read a LayerNorm with one gain (`weight`) for all entries
    and no offset (`bias`). Then the outputs x of this LayerNorm lie on a sphere,
    |x|^2 = gain^2 in_features. The rows w of the layer's weight do not depend on x. So the variance
    is the mean of gain^2 |w|^2 over the rows, plus the variance of the biases.

    Raises:
        ValueError: If the layer reads no such LayerNorm.
    """
    linear, norm = model.get_submodule(name), model.get_submodule(place.norm or name)
    gain, offset = getattr(norm, "weight", None), getattr(norm, "bias", None)
    flat = gain is None or bool((gain == gain.flatten()[0]).all())
    if not place.norm or not flat or (offset is not None and offset.any()):
        raise ValueError(
            f"the scale tau of the inputs of {place.activation or str(place.function)!r} after "
            f"{name!r} is not known: without data it is known only if {name!r} reads a LayerNorm "
            "with constant gain and no offset; pass calibration=batches to hf_rmt.compress, or "
            "set activation='keep'"
        )
    moment = torch.eye(linear.in_features, device=linear.weight.device)
    if gain is not None:
        moment *= gain.detach().flatten()[0] ** 2
    means = moment.new_zeros(linear.out_features) if linear.bias is None else linear.bias.detach()
    return _arguments(means, linear.weight.detach(), layer, moment)


def _arguments(means: Tensor, weight: Tensor, layer: TernaryLinear, moment: Tensor) -> Arguments:
    between = float(means.var(unbiased=False))
    ternary = layer.dense(moment.dtype)
    return Arguments(
        float(means.mean()),
        float(spread(weight, moment).mean()) + between,
        float(spread(ternary, moment).mean()) + between,
    )


def _out_of_reach(function: Function, heights: list[float]) -> str:
    levels = " and ".join(f"{height:.3g}" for height in sorted(set(heights)))
    return (
        f"{function} is kept: it is called as a function and cannot return the values {levels} of "
        "a step, and the next layer, which could correct other values, is not refitted with a bias"
    )
