"""A layout is the form in which the weight of a compressed layer lies in memory while it runs.

A file holds the weight in the same form for every layout. A layout is made from this stored weight,
and is never saved. All layouts of a layer compute the same function, each up to its own rounding.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import count
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from hf_rmt.nn.kept import Kept, identities, identity
from hf_rmt.nn.layouts.locks import usable_after_fork
from hf_rmt.nn.layouts.parking import park, unpark
from hf_rmt.nn.noise_product import NoiseProduct, noise_gradient
from hf_rmt.nn.spiked import SpikedLinear

ACTIVATIONS = ("int8", "int16")
"""How an integer layout rounds its inputs: `int8` to one digit of 8 bits, `int16` to two digits."""

LAYOUTS: dict[str, type[Layout]] = {}
"""The layouts by name. The module of each layout adds its layout with `register`."""

_STEPS = 0
"""Number of steps that all optimizers of this process have made."""
_LOCK = usable_after_fork(threading.RLock())
_HANDLES = count(1)
_LAYERS: WeakValueDictionary[int, SpikedLinear] = WeakValueDictionary()
"""Layers by the number (handle) by which compiled programs find them."""


def register(layout: type[Layout]) -> type[Layout]:
    """Add a layout to `LAYOUTS`; use this as a class decorator."""
    LAYOUTS[layout.name] = layout
    return layout


class Layout(ABC):
    """The weight of one layer in memory, made on first use and made again after the layer changed.

    Args:
        layer: The layer; it is not changed before the first use.
        activations: How the layout rounds its inputs, if it does; one of `ACTIVATIONS`.

    Attributes:
        name: The name by which a user asks for the layout.
        by_name_only: Whether `fastest` and `smallest` never choose the layout.
    """

    name: ClassVar[str]
    by_name_only: ClassVar[bool] = False

    def __init__(self, layer: SpikedLinear, *, activations: str = "int8") -> None:
        self.activations = activations
        self._kept = Kept()
        self.bind(layer)

    @classmethod
    def refusal(cls, layer: SpikedLinear, *, activations: str = "int8") -> str:
        """Why a layer cannot have this layout; empty if it can."""
        return "" if layer.noise.kind != "drop" else "it stores no noise"

    @abstractmethod
    def forward(
        self, layer: SpikedLinear, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        """The output of the layer for the input x.

        Under autocast, x already has its dtype. `weight` holds the factors of the signal.
        `weight` and `bias` may be valid for this call only, as with `torch.func.functional_call`.
        """

    @abstractmethod
    def noise_product(self, layer: SpikedLinear, x: Tensor) -> Tensor:
        """The product of x and the transposed noise, without a gradient."""

    @staticmethod
    @abstractmethod
    def estimate(layer: SpikedLinear) -> int:
        """Bytes of memory that the layer would take in this layout, its bias included."""

    @abstractmethod
    def prepare(self, layer: SpikedLinear) -> None:
        """Make the tensors of the layout before the first use; the layer must be in memory."""

    def bind(self, layer: SpikedLinear) -> None:
        """Connect this layout to a layer; a copied or unpickled layer needs a new connection."""
        self.handle = next(_HANDLES)
        _LAYERS[self.handle] = layer

    def reset(self) -> None:
        """Forget the tensors of the layout, because the layer's tensors moved or changed."""
        self._kept.reset()

    def remove(self, layer: SpikedLinear) -> None:
        """Forget the tensors of the layout, and bring the stored noise from disk back to memory."""
        self.reset()
        name = stored_name(layer)
        setattr(layer.noise, name, unpark(getattr(layer.noise, name)))

    def keep(
        self,
        layer: SpikedLinear,
        key: tuple[Any, ...],
        make: Callable[[], Any],
        *signal: Tensor,
    ) -> Any:
        """The value that `make` returns; it is kept until the key or the layer's noise changes.

        Args:
            layer: The layer.
            key: Everything that the value depends on, except the noise.
            make: A function that makes the value.
            *signal: The tensors whose `signal_identity` is part of the key.
        """
        kept = self._kept.get((key, identities(layer.noise._buffers.values())))
        if kept is not None:
            return kept
        with _LOCK, torch.inference_mode(False), torch.no_grad(), exact(layer.weight.device):
            self.reset()
            for name, buffer in layer.noise.named_buffers(recurse=False):
                if buffer.is_inference():  # it records no writes; a copy of it does
                    setattr(layer.noise, name, buffer.clone())
            kept = make()
            name = stored_name(layer)
            setattr(layer.noise, name, park(getattr(layer.noise, name)))
            stored = tuple(layer.noise.buffers())
            self._kept.put((key, identities(stored)), kept, (*signal, *stored))
        return kept

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "handle": 0}


class LayoutProduct(torch.autograd.Function):
    """The noise matrix applied to x by a layout; its derivatives use the stored noise instead."""

    @staticmethod
    def forward(x: Tensor, layer: SpikedLinear, layout: Layout) -> Tensor:
        """The result of `Layout.noise_product`."""
        return layout.noise_product(layer, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the layer for the derivative, but not its unpacked noise."""
        ctx.layer, ctx.shape = inputs[1], inputs[0].shape

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """The gradient with respect to x."""
        return noise_gradient(gradient, ctx.layer, ctx.shape), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        """The derivative along a tangent of x."""
        return NoiseProduct.apply(tangent, ctx.layer)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, layer: SpikedLinear, layout: Layout
    ) -> tuple[Tensor, int]:
        """One product for all mapped inputs, because the layout treats all rows of x alike.

        The mapped dimension becomes the first dimension of x and of the result.
        """
        assert in_dims[0] is not None
        return LayoutProduct.apply(x.movedim(in_dims[0], 0), layer, layout), 0


def stored_name(layer: SpikedLinear) -> str:
    """Name of the largest buffer of a layer's noise."""
    return "residual" if layer.noise.kind == "keep" else "codes"


def has_rows(layer: SpikedLinear, x: Tensor) -> bool:
    """Whether x is no nested tensor, and its last dimension has `in_features` entries."""
    return x.shape[-1:] == (layer.in_features,) and not x.is_nested


def signal_identity(layer: SpikedLinear, tensor: Tensor) -> tuple[Any, ...]:
    """A value that changes if a tensor of the signal is replaced or may have been written to.

    Fused optimizers and writes through `.data` do not change the version of a tensor. So each step
    of any optimizer changes this value, and so does each call of `train` or `eval`. The value
    contains `requires_grad`, because PEFT freezes a weight before it adds an adapter to the data of
    the weight.
    """
    return *identity(tensor), tensor.requires_grad, _STEPS, layer.mode_changes


def _count_step(*_: Any) -> None:
    global _STEPS
    _STEPS += 1


register_optimizer_step_post_hook(_count_step)


def exact(device: torch.device) -> torch.autocast:
    """A context in which autocast is switched off."""
    return torch.autocast(device.type, enabled=False)


def layer_of(handle: int) -> SpikedLinear:
    """The layer with this number (handle), by which a compiled program finds it."""
    return _LAYERS[handle]


def signal_bytes(layer: SpikedLinear) -> int:
    """Bytes of the factors of the signal and of the bias."""
    return sum(parameter.nbytes for parameter in layer.parameters())


def store_bytes(layer: SpikedLinear, *, without_codes: bool = False) -> int:
    """Bytes of the stored noise; with `without_codes`, the codes do not count: they are on disk."""
    names = {stored_name(layer)} if without_codes else set()
    return sum(part.nbytes for name, part in layer.noise.named_buffers() if name not in names)
