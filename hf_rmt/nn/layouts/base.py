"""A layout is the form in which the weight of a compressed layer lies in memory while it runs.

A saved model holds the weight in the same form for every layout. A layout is made from this stored
weight, and is never saved. All layouts of a layer compute the same function, each up to its own
rounding.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from itertools import count
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from hf_rmt.nn.kept import Kept, identities
from hf_rmt.nn.layers.spiked import SpikedLinear
from hf_rmt.nn.layouts.locks import usable_after_fork
from hf_rmt.nn.layouts.parking import park, unpark
from hf_rmt.nn.noise_product import NoiseProduct, noise_gradient

ACTIVATIONS = ("int8", "int16")
"""How a layout (form of a weight in memory) that multiplies integers rounds its inputs: `int8` to
one digit of 8 bits, `int16` to two digits."""

LAYOUTS: dict[str, type[Layout]] = {}
"""The classes of layouts (forms of a weight in memory) by name, such as `dense`. The module of
each layout adds its class with `register`."""

_STEPS = 0
"""Number of steps that all optimizers of this process have made."""
_LOCK = usable_after_fork(threading.RLock())
_HANDLES = count(1)
_LAYERS: WeakValueDictionary[int, SpikedLinear] = WeakValueDictionary()
"""Compressed layers by number (handle). A program that torch.compile made holds the number and
finds the layer here."""


def register(layout: type[Layout]) -> type[Layout]:
    """Add a subclass of `Layout` to `LAYOUTS` under its name; use this as a class decorator."""
    LAYOUTS[layout.name] = layout
    return layout


class Layout(ABC):
    """A layout, the form in which the weight of one layer lies in memory while it runs.

    The layout makes its tensors on first use, and again after the layer changed.

    Args:
        layer: The layer; it is not changed before the first use.
        activations: How the layout rounds the inputs of the layer, if it rounds them; one of
            `ACTIVATIONS`.

    Attributes:
        name: The name by which a user asks for the layout.
        by_name_only: Whether the options `fastest` and `smallest` of `set_layout` never choose it.
        is_transformable: Whether `forward` works while a transform of `torch.func`, such as `vmap`,
            is active. If not, the layer computes such calls itself, as without a layout.
    """

    name: ClassVar[str]
    by_name_only: ClassVar[bool] = False
    is_transformable: ClassVar[bool] = True

    def __init__(self, layer: SpikedLinear, *, activations: str = "int8") -> None:
        self.activations = activations
        self._kept = Kept()
        self.bind(layer)

    @classmethod
    def refusal(cls, layer: SpikedLinear, *, activations: str = "int8") -> str:
        """Why a layer cannot have this layout (form of its weight in memory); empty if it can."""
        return "" if layer.noise.kind != "drop" else "it stores no noise"

    @abstractmethod
    def forward(
        self, layer: SpikedLinear, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        """The output of the layer for the input x.

        Under autocast, x already has the dtype of autocast. `weight` holds the factors of the
        low-rank signal, as in `SpikedLinear`. `weight` and `bias` may be valid for this call only,
        as with `torch.func.functional_call`.
        """

    @abstractmethod
    def noise_product(self, layer: SpikedLinear, x: Tensor) -> Tensor:
        """The product of x and the transposed noise matrix, without a gradient.

        The noise is the weight of the layer minus the low-rank signal.
        """

    @staticmethod
    @abstractmethod
    def estimate(layer: SpikedLinear) -> int:
        """Bytes that the layer would take with this layout (form of its weight in memory).

        The bias is included.
        """

    @abstractmethod
    def prepare(self, layer: SpikedLinear) -> None:
        """Make the tensors of this layout (form of the weight in memory) before the first use.

        The layer must be in memory, not on the meta device.
        """

    def bind(self, layer: SpikedLinear) -> None:
        """Connect this layout (form of a weight in memory) to a layer.

        A copied or unpickled layer needs a new connection.
        """
        self.handle = next(_HANDLES)
        _LAYERS[self.handle] = layer

    def reset(self) -> None:
        """Forget the tensors of this layout, because the layer's own tensors moved or changed.

        The layout is the form of the weight in memory. The next use makes its tensors again.
        """
        self._kept.reset()

    def remove(self, layer: SpikedLinear) -> None:
        """Forget the tensors that this layout made, and bring the stored noise back to memory.

        The layout is the form of the weight in memory. While it was used, the noise (see
        `NoiseStore`) may have been on disk.
        """
        self.reset()
        name = stored_name(layer)
        setattr(layer.noise, name, unpark(getattr(layer.noise, name)))

    def keep(
        self, layer: SpikedLinear, make: Callable[..., Any], argument: Any, *signal: Tensor
    ) -> Any:
        """The value of `make(layer, argument, *signal)`, kept until a tensor that it uses changes.

        Args:
            layer: The layer; `make` may use its stored noise (see `NoiseStore`).
            make: A function that makes tensors of the layout from those of the layer.
            argument: The second argument of `make`, such as a dtype.
            *signal: The tensors, besides the stored noise, that `make` uses.
        """
        kept = self._kept.get(_state(layer, make, argument, signal))
        if kept is not None:
            return kept
        with _LOCK, torch.inference_mode(False), torch.no_grad(), exact(layer.weight.device):
            self.reset()
            for name, buffer in layer.noise.named_buffers(recurse=False):
                if buffer.is_inference():  # it records no writes; a copy of it does
                    setattr(layer.noise, name, buffer.clone())
            kept = make(layer, argument, *signal)
            name = stored_name(layer)
            setattr(layer.noise, name, park(getattr(layer.noise, name)))
            state = _state(layer, make, argument, signal)
            self._kept.put(state, kept, (*signal, *layer.noise.buffers()))
        return kept

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "handle": 0}


class LayoutProduct(torch.autograd.Function):
    """Multiplies inputs x by the noise part of a weight; a `Layout` computes the product.

    A layout is the form of a weight in memory. The noise part is the weight minus its low-rank
    signal. The derivatives do not use the layout: they unpack the stored noise (see `NoiseStore`).
    """

    @staticmethod
    def forward(x: Tensor, layer: SpikedLinear, layout: Layout) -> Tensor:
        """The product of x and the transposed noise matrix, from `Layout.noise_product`."""
        return layout.noise_product(layer, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the layer for `backward`, but not the unpacked noise part of its weight."""
        ctx.layer, ctx.shape = inputs[1], inputs[0].shape

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """The gradient with respect to x, from the gradient with respect to the output."""
        return noise_gradient(gradient, ctx.layer, ctx.shape), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        """The derivative of the output of `forward` along a tangent of x."""
        return NoiseProduct.apply(tangent, ctx.layer)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, layer: SpikedLinear, layout: Layout
    ) -> tuple[Tensor, int]:
        """Compute one product for all mapped inputs: a `Layout` treats all rows of x alike.

        The mapped dimension becomes the first dimension of x and of the result.
        """
        assert in_dims[0] is not None
        return LayoutProduct.apply(x.movedim(in_dims[0], 0), layer, layout), 0


def stored_name(layer: SpikedLinear) -> str:
    """Name of the buffer of `NoiseStore` that holds most of the noise: `codes` or `residual`."""
    return "residual" if layer.noise.kind == "keep" else "codes"


def has_rows(layer: SpikedLinear, x: Tensor) -> bool:
    """Whether x is no nested tensor, and its last dimension has `in_features` entries."""
    return x.shape[-1:] == (layer.in_features,) and not x.is_nested


def signal_state(layer: SpikedLinear, signal: Collection[Tensor]) -> tuple[Any, ...]:
    """A value that changes if a tensor in `signal` is replaced, or may have been written to.

    These tensors are the factors of the low-rank part of the layer's weight, or the bias.

    Fused optimizers and writes through `.data` do not change the version of a tensor, which counts
    writes. So each step of any optimizer changes the value, and so does each call of `train` or
    `eval`. The value contains `requires_grad`, because PEFT freezes a weight before it adds an
    adapter to the data of the weight.
    """
    trained = (tensor.requires_grad for tensor in signal)
    return _STEPS, layer.mode_changes, *trained, *identities(signal)


def _state(layer: SpikedLinear, make: Any, argument: Any, signal: tuple[Tensor, ...]) -> Any:
    """The key of `Layout.keep`: everything on which the kept value of a layer depends.

    Each forward pass computes this key, so this must be fast. The key is one flat tuple. The code
    reads few objects, because objects outside of the processor's cache take long to read.
    """
    store: Any = layer._modules["noise"]  # `layer.noise` takes five times as long
    of_signal = signal_state(layer, signal) if signal else ()
    return make, argument, *identities(store._buffers.values()), *of_signal


def _count_step(*_: Any) -> None:
    global _STEPS
    _STEPS += 1


register_optimizer_step_post_hook(_count_step)


def exact(device: torch.device) -> torch.autocast:
    """A context in which autocast is switched off for the type of this device."""
    return torch.autocast(device.type, enabled=False)


def layer_of(handle: int) -> SpikedLinear:
    """The layer with the number `handle`; a compiled program holds this number, not the layer."""
    return _LAYERS[handle]


def signal_bytes(layer: SpikedLinear) -> int:
    """Bytes of the low-rank factors of the signal (see `SpikedLinear`), and of the bias."""
    return sum(parameter.nbytes for parameter in layer.parameters())


def store_bytes(layer: SpikedLinear, *, without_codes: bool = False) -> int:
    """Bytes of the stored noise of a layer; see `NoiseStore`.

    Set `without_codes` if the buffer that `stored_name` names is on disk. It does not count then.
    """
    names = {stored_name(layer)} if without_codes else set()
    return sum(part.nbytes for name, part in layer.noise.named_buffers() if name not in names)
