"""Finds, in a forward pass, the activation after each linear layer and the LayerNorm before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode

from hf_rmt.compression.calibration.batches import Batch, run_batch
from hf_rmt.compression.calibration.moments import listening
from hf_rmt.nn.layers.compressed_layer import is_compressed
from hf_rmt.ternary.functions import (
    ACTIVATION_MODULES,
    Function,
    called_function,
    module_function,
)

UNFOLLOWED = "no known activation reads its output"
UNREACHED = "no batch reached it; its activation is kept"
SHARED = "more than one activation or function reads its output; all of them are kept"
OUTPUT = "output"
"""If the model returns a tensor, this name is noted among the names of the calls that read it."""


@dataclass(frozen=True)
class Position:
    """What comes before and after a linear layer in a forward pass.

    Attributes:
        activation: Name of the activation module that only this layer feeds; empty if there is
            none. It lies in the layer's parent module, and its name is relative to the parent.
        norm: Full name of the LayerNorm whose output the layer reads; empty if there is none.
        kept: Why there is no activation to replace; empty if there is one.
        function: If `activation` is empty: the activation function that reads the layer's output,
            if nothing else reads it; None if there is none.
        reader: Full name of the linear layer that reads the output of `function`, if nothing else
            reads it; empty if there is none.
    """

    activation: str = ""
    norm: str = ""
    kept: str = ""
    function: Function | None = None
    reader: str = ""


@dataclass
class _Reading:
    """A call that got a certain tensor; `name` is the name of the called module or function.

    If an activation was called, `function` is its function, and `made` is the tensor it returned.
    """

    name: str
    function: Function | None = None
    made: _Value | None = None


@dataclass
class _Value:
    """A tensor, the module that made it, and the calls that read it.

    `maker` is the name of a linear layer or LayerNorm, or empty if an activation made the tensor.
    The tensor is kept in memory: if it were freed, another tensor could get the same `id`.
    """

    maker: str
    tensor: Tensor
    readings: list[_Reading] = field(default_factory=list)


class _Trace(TorchFunctionMode):
    """Runs a model, and notes which calls of modules and functions read which tensors.

    Hooks note the calls of linear layers, LayerNorms and activation modules. `__torch_function__`
    notes the calls of functions, except those that one of these modules makes. Some models create
    activation modules in `forward`. A global hook, on all modules, finds these.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        modules = dict(model.named_modules())
        linear = {name: part for name, part in modules.items() if _is_linear(part)}
        found = {name: module_function(part) for name, part in modules.items()}
        self.model, self.names = model, set(names)
        self.norms = {name for name, part in modules.items() if type(part) is nn.LayerNorm}
        self.activations = {name: function for name, function in found.items() if function}
        self.linears = {*linear, *names}
        self.order: list[str] = []
        self.made: dict[str, list[_Value]] = {}
        self.read: dict[str, str] = {}
        self._followed: dict[int, _Value] = {}
        self._registered = {id(part) for part in modules.values()}
        self._depth, self._checking = 0, False

    def run(self, batch: Batch) -> None:
        """Run the model on a batch, and note which calls read which tensors."""
        heard = [*self.linears, *self.norms, *self.activations]
        with ExitStack() as stack:
            for name in heard:
                hook = self.model.get_submodule(name).register_forward_pre_hook(self._enter)
                stack.callback(hook.remove)
            stack.callback(register_module_forward_pre_hook(self._enter_made).remove)
            stack.callback(register_module_forward_hook(self._leave_made).remove)
            stack.enter_context(listening(self.model, heard, self._leave, graph=False))
            with self:
                result = run_batch(self.model, batch, 0)
        for tensor in _tensors(result):
            self._note(tensor, _Reading(OUTPUT))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch, and note the call for each argument that is in `_followed`."""
        kwargs = kwargs or {}
        if self._depth:
            return func(*args, **kwargs)
        given = [each for each in _tensors((args, kwargs)) if self._value(each) is not None]
        versions = [tensor._version for tensor in given]
        result = func(*args, **kwargs)
        made = list(_tensors(result)) if given else []
        for tensor, version in zip(given, versions, strict=True):
            unchanged = any(each is tensor for each in made) and tensor._version == version
            if made and not unchanged:  # dropout may return its input
                name = str(getattr(func, "__name__", func))
                self._note(tensor, _Reading(name, called_function(func, args, kwargs)), result)
        return result

    def _enter(self, *_: Any) -> None:
        self._depth += 1

    def _leave(self, name: str, entry: Any, result: Any) -> None:
        self._depth -= 1
        self.order.append(name)
        value = self._value(entry)
        if value is not None:
            self.read[name] = value.maker
            self._note(entry, _Reading(name, self.activations.get(name)), result)
        if name in self.names or name in self.norms:
            self.made.setdefault(name, []).append(self._follow(result, name))

    def _enter_made(self, module: nn.Module, _: Any) -> None:
        self._depth += self._is_made(module)

    def _leave_made(self, module: nn.Module, given: Any, result: Any) -> None:
        """Note the inputs of a module for which `_is_made` is true. This is a forward hook."""
        if not self._is_made(module):
            return
        self._checking = True
        function = module_function(module)
        self._checking = False
        self._depth -= 1
        for tensor in _tensors(given):
            self._note(tensor, _Reading(type(module).__name__, function), result)

    def _is_made(self, module: nn.Module) -> bool:
        """Whether a module is an activation that is no part of the model: `forward` created it."""
        if self._checking or id(module) in self._registered:
            return False
        return type(module).__module__ in ACTIVATION_MODULES

    def _note(self, tensor: Tensor, reading: _Reading, result: Any = None) -> None:
        value = self._value(tensor)
        if value is None:
            return
        value.readings.append(reading)
        if reading.function is not None:
            reading.made = self._follow(result, "")

    def _follow(self, tensor: Any, maker: str) -> _Value:
        value = self._followed[id(tensor)] = _Value(maker, tensor)
        return value

    def _value(self, tensor: Any) -> _Value | None:
        return self._followed.get(id(tensor))


def layer_positions(model: nn.Module, names: Sequence[str], batch: Batch) -> dict[str, Position]:
    """The `Position`s of linear layers in a forward pass on one batch.

    A position says which activation and which LayerNorm a layer is connected to.

    Args:
        model: The model; it is not changed.
        names: Names of linear layers.
        batch: Keyword arguments of the model.

    Returns:
        The positions by name, in the order of the last calls; layers without a call come first.
    """
    trace = _Trace(model, names)
    trace.run(batch)
    order = {name: position for position, name in enumerate(trace.order)}
    ordered = sorted(names, key=lambda name: order.get(name, -1))
    return {name: _position(trace, name) for name in ordered}


def positions_without_data(model: nn.Module, names: Sequence[str]) -> dict[str, Position]:
    """The `Position`s of linear layers, by name, in a forward pass on dummy inputs.

    A position says which activation and which LayerNorm a layer is connected to.

    Raises:
        ValueError: If no dummy inputs are known for the model, or it does not run on them.
    """
    try:
        return layer_positions(model, names, dummy_batch(model))
    except Exception as error:  # a forward pass may raise any error on such inputs
        raise ValueError(
            f"{type(model).__name__} does not run on dummy inputs, which are needed to find its "
            f"activations ({error}); pass calibration=batches to hf_rmt.compress, or set "
            "activation='keep'"
        ) from error


def dummy_batch(model: Any) -> Batch:
    """Dummy arguments that a transformers model can run on.

    Raises:
        ValueError: If no such arguments are known.
    """
    config = getattr(model, "config", None)
    if getattr(model, "main_input_name", "") == "pixel_values" and hasattr(config, "image_size"):
        size = config.image_size
        sides = (size, size) if isinstance(size, int) else tuple(size)
        device, dtype = model.device, model.dtype
        images = torch.zeros(1, config.num_channels, *sides, device=device, dtype=dtype)
        return {"pixel_values": images}
    reads_tokens = getattr(model, "main_input_name", "input_ids") == "input_ids"
    if hasattr(model, "dummy_inputs") and reads_tokens:
        return {key: value.to(model.device) for key, value in model.dummy_inputs.items()}
    raise ValueError(f"the inputs of {type(model).__name__} are unknown")


def _position(trace: _Trace, name: str) -> Position:
    norm = trace.read.get(name, "")
    norm = norm if norm in trace.norms else ""
    if name not in trace.made:
        return Position(kept=UNREACHED)
    module = _module_beside(trace, name)
    if module:
        return Position(module, norm)
    readings = [value.readings for value in trace.made[name]]
    if not any(reading.function for given in readings for reading in given):
        return Position(norm=norm, kept=UNFOLLOWED)
    firsts = [given[0] for given in readings if len(given) == 1 and given[0].function]
    functions = {str(reading.function) for reading in firsts}
    if len(firsts) < len(readings) or len(functions) > 1:
        return Position(norm=norm, kept=SHARED)
    return Position(norm=norm, function=firsts[0].function, reader=_reader(trace, firsts))


def _module_beside(trace: _Trace, name: str) -> str:
    """The `Position.activation` of the linear layer `name`; empty if there is none."""
    given = [reading.name for value in trace.made[name] for reading in value.readings]
    fed = [reader for reader in given if reader in trace.activations]
    if not fed:
        return ""
    parent, _, activation = fed[-1].rpartition(".")
    alone = trace.order.count(fed[-1]) == len(trace.made[name])
    return activation if alone and parent == name.rpartition(".")[0] else ""


def _reader(trace: _Trace, readings: Sequence[_Reading]) -> str:
    """Name of the one linear layer that reads the output of an activation; empty if there is none.

    `readings` are the calls of the activation. The name is also empty if anything else reads the
    output, or if different calls have different readers.
    """
    found = {
        tuple(after.name for after in reading.made.readings) if reading.made else ()
        for reading in readings
    }
    (first, *others) = found
    alone = not others and len(first) == 1 and first[0] in trace.linears
    return first[0] if alone else ""


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or is_compressed(module)


def _tensors(given: Any) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples and mappings, such as the arguments of a call."""
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, Mapping):
        for each in given.values():
            yield from _tensors(each)
    elif isinstance(given, list | tuple):
        for each in given:
            yield from _tensors(each)
