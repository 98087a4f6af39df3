"""Checks a compressed model and updates its record before saving, so that its files load again.

After the compression, layers may have been merged with adapters, made dense (not compressed),
moved, removed, or changed by another library. The record, the part of config.json that says how
each layer was compressed, is updated to the layers that are there now. A layer that no record can
describe is refused before anything is written.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from hf_rmt.compression.targets.names import some
from hf_rmt.huggingface.compat import adapter_layers, saves_adapter_only, shed_adapters
from hf_rmt.huggingface.saving.record import CompressionRecord
from hf_rmt.nn import LatentTernaryLinear
from hf_rmt.nn.counterparts import compressed_layers, matrix_shape
from hf_rmt.nn.dense_matrix import dense_shape, has_matrix
from hf_rmt.nn.layers.compressed_layer import CompressedLayer, compressed_like, is_compressed
from hf_rmt.nn.layers.spiked import SpikedLinear
from hf_rmt.nn.layers.step_activation import StepActivation
from hf_rmt.nn.stores.noise_store import stored_bits
from hf_rmt.plan import CompressionPlan, LayerPlan, Outcome

REMEDIES = {
    "weight_mask": "it is pruned; call torch.nn.utils.prune.remove(layer, 'weight') first",
    "bias_mask": "it is pruned; call torch.nn.utils.prune.remove(layer, 'bias') first",
    "parametrizations.": "it is parametrized; call "
    "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') first, or 'bias'",
    "weight_g": "call torch.nn.utils.remove_weight_norm(layer) first",
    "weight_u": "call torch.nn.utils.remove_spectral_norm(layer) first",
    "bias": "instead of removing a bias, set it to zeros; an added bias cannot be saved",
}
"""What a user can do about a tensor that cannot be saved, by the start of the tensor's name. The
error message ends with these words."""
OTHERWISE = "remove these tensors, or replace the layer by layer.to_dense()"

logger = logging.getLogger(__name__)


def make_savable(model: Any, state_dict: Mapping[str, Any] | None = None) -> None:
    """Check a compressed model and update its record, so that its files can be loaded.

    The record, the `quantization_config` of the model, says how each layer was compressed.

    Args:
        model: A transformers model with a quantizer of this package, or one whose parts have such a
            quantizer.
        state_dict: The tensors that will be written; None for those of the model.

    Raises:
        ValueError: If the written files could not be loaded. The error names the layer.
    """
    from hf_rmt.huggingface.conclude import adopt

    if saves_adapter_only(model):
        adopt(model)
        return
    shed_adapters(model)
    _check_no_adapters(model)
    adopt(model)
    record_now(model)
    for plan in CompressionPlan.from_dict(_record(model).layers or {}):
        if plan.compressed:
            _check_tensors(plan, model.get_submodule(plan.name), state_dict)


def warn_of_latent(model: Any) -> None:
    """Warn if a model is saved while ternary layers (entries -1, 0, 1) are still being trained."""
    latent = [name for name, part in model.named_modules() if isinstance(part, LatentTernaryLinear)]
    if latent:
        logger.warning(
            "%s: saved with the weights that TernaryCallback trains, which from_pretrained cannot "
            "load; end the training, or call TernaryCallback.pack(model), and save again",
            some(latent),
        )


def record_now(model: Any) -> None:
    """Update the record of a model (how each layer was compressed) to the layers it has now.

    Args:
        model: A transformers model with a quantizer of this package.

    Raises:
        ValueError: If a recorded layer is now a compressed layer of another kind.
    """
    config = _record(model)
    if config.layers is None:
        return
    plans = {plan.name: plan for plan in CompressionPlan.from_dict(config.layers)}
    parts = {name: _part(model, name) for name in plans}
    if gone := [name for name, plan in plans.items() if not _is_layer(parts[name], plan)]:
        logger.warning(
            "%s: no longer a layer of this %s; the saved record leaves it out",
            some(gone),
            type(model).__name__,
        )
    held = {id(part) for part in parts.values()}
    came = {name: part for name, part in compressed_layers(model).items() if id(part) not in held}
    there = {name: part for name, part in (parts | came).items() if name not in gone}
    found = {name: _of_now(model, name, part, plans.get(name)) for name, part in there.items()}
    places = {name: place for place, (name, _) in enumerate(model.named_modules())}
    ordered = sorted(found.values(), key=lambda plan: places.get(plan.name, 0))
    config.layers = CompressionPlan(tuple(ordered)).to_dict()


def _record(model: Any) -> CompressionRecord:
    config: CompressionRecord = model.hf_quantizer.quantization_config
    return config


def _check_no_adapters(model: nn.Module) -> None:
    if wrapped := adapter_layers(model):
        raise ValueError(
            f"layer {wrapped[0]!r} has an adapter of PEFT around it, but a model is saved without "
            "adapters; call merge_and_unload() or unload() on the PeftModel and save the model "
            "that this returns, or save only the adapter with the PeftModel's own save_pretrained"
        )


def _part(model: nn.Module, name: str) -> Any:
    """The module with this name; None if there is no such module."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _is_layer(module: Any, plan: LayerPlan) -> bool:
    """Whether a module can be saved under the name of a recorded layer.

    `plan` is the record of the layer. `module` is the module that has its name now, or None. If the
    layer was recorded as compressed, the module must be a compressed layer or have a weight that is
    a matrix.
    """
    if module is None or not plan.compressed:
        return module is not None
    return isinstance(module, CompressedLayer | LatentTernaryLinear) or has_matrix(module)


def _of_now(model: nn.Module, name: str, layer: Any, plan: LayerPlan | None) -> LayerPlan:
    """The record of one layer (its plan), updated to the layer as it is now.

    A plan says whether and how a layer was compressed. `plan` is the earlier one; None if there is
    none. A layer that was made dense (not compressed) later, for example, is recorded as dense.
    """
    if plan is None:
        plan = LayerPlan(name, matrix_shape(layer), Outcome.KEPT)
    plan = _with_step_of_now(model, layer, plan)
    if isinstance(layer, SpikedLinear):
        return _spiked_now(layer, plan)
    if not is_compressed(layer):
        # a layer with latent weights, as in training, counts as the ternary layer that it becomes
        stands = not plan.compressed or isinstance(layer, LatentTernaryLinear)
        return plan if stands else _dense_now(layer, plan)
    if plan.compressed and plan.kind == layer.kind:
        return plan
    raise ValueError(
        f"layer {name!r} is a {type(layer).__name__} now, but was recorded as "
        f"{plan.kind if plan.compressed else 'dense'}; replace it by layer.to_dense(), or compress "
        "the dense layer in this model"
    )


def _spiked_now(layer: SpikedLinear, plan: LayerPlan) -> LayerPlan:
    shape, rank, noise = (layer.out_features, layer.in_features), layer.rank, layer.noise.kind
    if not (plan.compressed and plan.kind == layer.kind and plan.shape == shape):
        bits = 8 * shape[0] * shape[1] * layer.weight.dtype.itemsize
        came = "it was compressed elsewhere and moved here"
        plan = LayerPlan(plan.name, shape, Outcome.REPLACED, dense_bits=bits, reason=came)
    elif (rank, noise) == (plan.rank, plan.noise):
        return plan
    bits = stored_bits(shape, rank, noise, dtype=layer.weight.dtype)
    return replace(plan, rank=rank, noise=noise, bits=bits)


def _dense_now(layer: Any, plan: LayerPlan) -> LayerPlan:
    bits = 8 * layer.weight.numel() * layer.weight.dtype.itemsize
    return LayerPlan(
        plan.name,
        dense_shape(layer),
        Outcome.KEPT,
        bits=bits,
        dense_bits=bits,
        reason="it was made dense after it had been compressed",
        step=plan.step,
    )


def _with_step_of_now(model: nn.Module, layer: Any, plan: LayerPlan) -> LayerPlan:
    """The record of a layer (its plan), without a step function that is no longer in the model.

    Compression may replace an activation by a step function, which the field `step` records. If
    the function is gone, this field becomes None.
    """
    if plan.step is None:
        return plan
    if "function" in plan.step:
        stands = getattr(layer, "step", None) is not None
    else:
        name = f"{plan.name.rpartition('.')[0]}.{plan.step['module']}".lstrip(".")
        stands = isinstance(_part(model, name), StepActivation)
    return plan if stands else replace(plan, step=None)


def _check_tensors(plan: LayerPlan, layer: Any, given: Mapping[str, Any] | None) -> None:
    """Refuse a compressed layer if the tensors to be written are not the ones that loading needs.

    `plan` records how the layer was compressed. `given` holds the tensors that a caller writes, by
    name; None means the layer's own tensors. Tensors missing in `given` are no error, because a
    caller may save only some.
    """
    if not is_compressed(layer):
        return
    wanted = _tensors_of(plan, layer)
    if given is None:
        there = {key: value.shape for key, value in layer.state_dict(keep_vars=True).items()}
        odd = [key for key, shape in there.items() if wanted.get(key) != shape]
        odd += [key for key in wanted if key not in there]
    else:
        start = f"{plan.name}."
        shapes = {
            key.removeprefix(start): value.shape
            for key, value in given.items()
            if key.startswith(start)
        }
        odd = [key for key, shape in shapes.items() if wanted.get(key) != shape]
    odd = [key for key in odd if not key.startswith("step.")]
    if odd:
        found = (REMEDIES[start] for start in REMEDIES for key in odd if key.startswith(start))
        otherwise = OTHERWISE if given is None else "pass the tensors of model.state_dict()"
        raise ValueError(
            f"layer {plan.name!r} cannot be saved: a compressed layer is loaded with "
            f"{', '.join(wanted)} of the recorded shapes, and this layer differs in "
            f"{', '.join(odd)}; {next(found, otherwise)}"
        )


def _tensors_of(plan: LayerPlan, layer: Any) -> dict[str, torch.Size]:
    """The shape of each tensor that a file must hold for a compressed layer, by tensor name.

    `plan` records how the layer was compressed.
    """
    with torch.device("meta"):
        dense: Any = layer.empty_dense()
        there = layer.bias is not None if layer.took_bias is None else layer.took_bias
        dense.bias = nn.Parameter(torch.empty(layer.out_features)) if there else None
        empty = compressed_like(dense, plan.kind, plan.rank, plan.noise)
    return {key: tensor.shape for key, tensor in empty.state_dict().items()}
