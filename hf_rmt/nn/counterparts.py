"""Dense and compressed layers of a model: their matrices, and how one kind replaces the other."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_rmt.nn.dense_matrix import dense_shape, has_matrix, to_matrix
from hf_rmt.nn.layers.compressed_layer import CompressedLayer, compressed_like, is_compressed
from hf_rmt.nn.layers.step_activation import StepActivation, StepBefore
from hf_rmt.nn.layers.ternary import TernaryLinear
from hf_rmt.nn.swap import cannot_swap, swap_module, why_not_swapped
from hf_rmt.plan.plans import LayerPlan


def weight_matrix(module: Any) -> Tensor:
    """The weight matrix of a dense or compressed layer, shape (out, in), without a gradient."""
    if is_compressed(module):
        matrix: Tensor = module.dense().detach()
        return matrix
    return to_matrix(module, module.weight.detach())


def matrix_shape(module: Any) -> tuple[int, int]:
    """Shape (out, in) of the matrix of a layer, dense or compressed."""
    if is_compressed(module):
        return module.out_features, module.in_features
    return dense_shape(module)


def compressed_layers(model: nn.Module) -> dict[str, CompressedLayer]:
    """A dict from names in `model.named_modules()` to the compressed layers of a model."""
    found = model.named_modules()
    return {name: part for name, part in found if isinstance(part, CompressedLayer)}


def check_in_memory(model: nn.Module) -> None:
    """Raise an error if a model has compressed layers with tensors on the meta device (offloaded).

    Raises:
        ValueError: If there is such a layer. The message names the layer and the remedy.
    """
    for name, layer in compressed_layers(model).items():
        if any(part.device.type == "meta" for part in (*layer.parameters(), *layer.buffers())):
            raise not_in_memory(name)


def not_in_memory(name: str) -> ValueError:
    """The error which says that the tensors of the layer `name` are not in memory."""
    return ValueError(
        f"the weight of {name!r} is offloaded or on the meta device, where there is nothing to "
        "read; load the model without offloading"
    )


def densify(model: nn.Module, *, dtype: torch.dtype | None = None) -> nn.Module:
    """Replace every compressed layer, in place, by a dense layer that computes the same.

    Args:
        model: A model with compressed layers.
        dtype: Dtype of the dense weights; None keeps the dtype of each layer.

    Returns:
        The model.

    Raises:
        ValueError: If the model has a step activation (see `StepActivation`), which no plain model
            has; if a layer cannot be replaced (see `why_not_swapped`); or if a layer is offloaded.
            The model is not changed then.
    """
    check_in_memory(model)
    steps = [name for name, part in model.named_modules() if isinstance(part, StepActivation)]
    if steps:
        raise ValueError(
            f"{steps[0]!r} is a step activation, which only this package has, so no plain model "
            "computes the same; to get a model that can be exported, compress with "
            "activation='keep'"
        )
    layers = compressed_layers(model)
    for name, layer in layers.items():
        if reason := why_not_swapped(layer):
            raise cannot_swap(name, reason)
    for name, layer in layers.items():
        swap_module(model, name, layer.to_dense(dtype))
    return model


def place_step(model: nn.Module, linear: str, step: Mapping[str, Any]) -> None:
    """Replace the activation after a linear layer by a step activation; see `StepActivation`.

    Args:
        model: The model.
        linear: Name of the linear layer, dense or compressed, in `model.named_modules()`.
        step: The step activation in the form of `LayerPlan.step`. With an entry `module`, it
            replaces the module of this name, which has the same parent as the linear layer. With an
            entry `function`, it becomes the last operation of the linear layer.

    Raises:
        ValueError: If there is no module of that name, if that module is no activation, or if a
            step with a `function` is given for a layer that is no `TernaryLinear`.
    """
    layer: Any = model.get_submodule(linear)
    like = layer.scale if isinstance(layer, TernaryLinear) else layer.weight
    told: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
    points = step["thresholds"], step["heights"]
    if "function" in step:
        if not isinstance(layer, TernaryLinear):
            raise ValueError(
                "only a ternary layer can hold a step activation that replaces a function, and "
                f"{linear!r} is a {type(layer).__name__}; compress the model again"
            )
        layer.step = StepBefore(*points, values=step["values"], slopes=step["slopes"], **told)
        layer.step.train(layer.training)
        return
    check_activation(model, linear, step["module"])
    parent = linear.rpartition(".")[0]
    swap_module(model, f"{parent}.{step['module']}".lstrip("."), StepActivation(*points, **told))


def check_activation(model: nn.Module, linear: str, name: str) -> None:
    """Raise an error if a module is no activation, or is not beside a given linear layer.

    Args:
        model: The model.
        linear: Name of the linear layer in `model.named_modules()`.
        name: Name of the module in the parent module of the linear layer.

    Raises:
        ValueError: If there is no such module, or it is no activation.
    """
    beside = dict(model.get_submodule(linear.rpartition(".")[0]).named_children())
    found = beside.get(name)
    if found is None or list(found.children()):
        plain = False
    else:
        plain = isinstance(found, nn.PReLU) or not found.state_dict()
    if not plain or isinstance(found, nn.Dropout | nn.Identity | StepActivation):
        raise ValueError(
            f"a step activation must replace an activation beside the layer {linear!r}, got "
            f"{name!r}; the modules there are {', '.join(beside)}; compress the model again"
        )


def empty_layer(dense: nn.Module, plan: LayerPlan) -> CompressedLayer:
    """Make a compressed layer of the kind that a plan names; its tensors are filled later.

    The layer is on the device of the dense (not compressed) layer that it replaces.

    Args:
        dense: The layer to replace.
        plan: The plan of this layer, which was saved with the model.

    Raises:
        ValueError: If the dense layer has no matrix of the shape in the plan.
    """
    if not has_matrix(dense) or dense_shape(dense) != plan.shape:
        found = dense_shape(dense) if has_matrix(dense) else type(dense)
        raise ValueError(
            f"layer {plan.name!r} was compressed as a matrix of shape {plan.shape}, this model has "
            f"{found}; its config.json belongs to another model, or an argument such as num_labels "
            "gives this layer another size. Load the model with its own config.json and without "
            "that argument; afterwards put a new layer in the place of this one"
        )
    return compressed_like(dense, plan.kind, plan.rank, plan.noise)


def paired_name(name: str, prefix: str, known: Collection[str]) -> str | None:
    """The name of the same module in another model, with or without the base model's prefix.

    A module `layer` of a base model is called `bert.layer` in the same model with a task head.

    Args:
        name: Name of the module in the first model.
        prefix: `base_model_prefix` of the models, without a dot; in the example, `bert`.
        known: Names of the modules in the other model.

    Returns:
        The name in the other model, or None if the module is not there.
    """
    for candidate in (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")):
        if candidate in known:
            return candidate
    return None


def undoing(model: nn.Module) -> str:
    """The line of code that undoes the compression of a model, as text for error messages."""
    plain = "model = hf_rmt.export_dense(model)"
    return "model.dequantize()" if hasattr(model, "dequantize") else plain
