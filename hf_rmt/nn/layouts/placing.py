"""`set_layout`: chooses the layouts (forms of weights in memory) of the layers of a model."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import nn

from hf_rmt.checks import check_choice, check_integer
from hf_rmt.nn.counterparts import check_in_memory
from hf_rmt.nn.layers.spiked import SpikedLinear
from hf_rmt.nn.layers.ternary import LAYOUTS as TERNARY_LAYOUTS
from hf_rmt.nn.layers.ternary import TernaryLinear
from hf_rmt.nn.layouts.base import ACTIVATIONS, LAYOUTS
from hf_rmt.nn.layouts.choosing import CHOICES, TOKENS, choose
from hf_rmt.nn.layouts.parking import give_back


def set_layout(
    model: nn.Module,
    layout: str,
    *,
    activations: str = "int8",
    tokens: tuple[int, ...] = TOKENS,
) -> str:
    """Choose how the weights of compressed layers lie in memory. Saved files stay the same.

    A layout is the form in which a weight lies in memory. It reads the low-rank factors of the
    signal (see `SpikedLinear`) again after a write to them, after each step of an optimizer, and
    after a call of `train` or `eval`. It does not notice a write through `.data`: call `train` or
    `eval` after such a write.

    Args:
        model: A model with compressed layers, or one such layer.
        layout: `packed` unpacks the noise in each forward, `int8` multiplies integers, and `dense`
            keeps one dense matrix. `fastest` measures these three for each shape of layer, and
            remembers the fastest of them on this machine. `smallest` takes the one of the three
            that needs the least memory. `fused` decodes codes inside the product, by a Triton
            kernel that has not run on a GPU yet; it is used only if it is named.
        activations: How the layout `int8` rounds its inputs: to 8 bits (`int8`), or nearly exactly
            to 16 bits (`int16`).
        tokens: Numbers of rows in an input for which `fastest` measures the times.

    Returns:
        The line of `layout_line`, followed by reasons if some layers cannot have the layout. If no
        layer is compressed, a sentence that says so.

    Raises:
        TypeError: If the model is no module, or tokens are no whole numbers.
        ValueError: If `layout` or `activations` is unknown, a number of tokens is below 1, or the
            layout needs the tensors of layers that are offloaded.

    Examples:
        >>> from hf_rmt.nn import SpikedLinear
        >>> set_layout(SpikedLinear(64, 64, 2, noise="int4"), "dense")
        'layouts: 1 dense; 0.02 MB in memory, 0.02 MB dense'
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a loaded model, got {type(model).__name__}; load it first")
    check_choice("layout", layout, (*LAYOUTS, *CHOICES))
    check_choice("activations", activations, ACTIVATIONS)
    tokens = _checked_tokens(tokens)
    layers = compressed_layers(model)
    if not layers:
        return "no layout was set, because the model has no compressed layer"
    if layout not in ("packed", "dense"):  # offloaded layers can run in these
        check_in_memory(model)
    for layer in layers:
        name = layout
        if layout in CHOICES:
            name = choose(layer, layout, activations=activations, tokens=tokens)
        place(layer, name, activations=activations)
    give_back()
    return layout_line(model) + refusals(model, layout, activations=activations)


def _checked_tokens(tokens: Any) -> tuple[int, ...]:
    if not isinstance(tokens, tuple | list) or not tokens:
        raise TypeError(f"tokens must be numbers of rows, such as (16, 128), got {tokens!r}")
    return tuple(check_integer("each of tokens", count, 1) for count in tokens)


def refusals(model: nn.Module, layout: str, *, activations: str = "int8") -> str:
    """Why some layers cannot have a layout (form of the weight in memory), in one line of text.

    `set_layout` appends this text to the line of `layout_line`. The text is empty if all layers can
    have the layout, or if `layout` is `fastest` or `smallest`.
    """
    if layout in CHOICES:
        return ""
    layers = [layer for layer in compressed_layers(model) if isinstance(layer, SpikedLinear)]
    layers = [layer for layer in layers if layer.noise.kind != "drop"]  # these need no layout
    why = (LAYOUTS[layout].refusal(layer, activations=activations) for layer in layers)
    counts = Counter(filter(None, why))
    return "".join(f"; {count} not {layout}: {reason}" for reason, count in counts.items())


def compressed_layers(model: nn.Module) -> list[SpikedLinear | TernaryLinear]:
    """The compressed layers of a model that have a layout, the form of the weight in memory."""
    kinds = (SpikedLinear, TernaryLinear)
    return [part for part in model.modules() if isinstance(part, kinds)]


def place(layer: SpikedLinear | TernaryLinear, name: str, *, activations: str = "int8") -> None:
    """Give a layer the layout (form of the weight in memory) of this name.

    A layer that cannot have this layout becomes `packed`. `activations` is as in `set_layout`.
    """
    if isinstance(layer, TernaryLinear):
        layer.layout = name if name in TERNARY_LAYOUTS else "packed"
        return
    if layer.layout_object is not None:
        layer.layout_object.remove(layer)
    kind, made = LAYOUTS[name], None
    if name != "packed" and not kind.refusal(layer, activations=activations):
        made = kind(layer, activations=activations)
        if not any(tensor.device.type == "meta" for tensor in (layer.weight, *layer.buffers())):
            made.prepare(layer)
    layer.layout_object = made  # last and in one step, because another thread may use the layer


def layout_line(model: nn.Module) -> str:
    """One line: how many layers have which layout (form of the weight in memory), and their bytes.

    Args:
        model: A model with compressed layers.

    Returns:
        The line; empty if no layer is compressed.
    """
    layers = compressed_layers(model)
    if not layers:
        return ""
    counts = Counter(layer.layout for layer in layers)
    parts = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    taken = sum(memory_bytes(layer) for layer in layers)
    dense = sum(_dense_bytes(layer) for layer in layers)
    return f"layouts: {parts}; {taken / 1e6:.2f} MB in memory, {dense / 1e6:.2f} MB dense"


def memory_bytes(layer: SpikedLinear | TernaryLinear) -> int:
    """Bytes of memory that a layer takes after its first forward pass."""
    if isinstance(layer, TernaryLinear):
        return layer.memory_bytes()
    return LAYOUTS[layer.layout].estimate(layer)


def _dense_bytes(layer: Any) -> int:
    like = layer.scale if isinstance(layer, TernaryLinear) else layer.weight
    bias = 0 if layer.bias is None else layer.bias.nbytes
    return layer.out_features * layer.in_features * like.element_size() + bias
