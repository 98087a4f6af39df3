"""Where linears stand in a forward pass: which activations they feed, which norms they read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_rmt.compression.batches import Batch, run_batch
from hf_rmt.compression.moments import listening

CALLED = "no activation module follows it; one that forward calls is kept"
UNREACHED = "no batch reached it; its activation is kept"
SHARED = "its activation is used elsewhere too, and is kept"
ACTIVATION_MODULES = ("torch.nn.modules.activation", "transformers.activations")


@dataclass(frozen=True)
class Position:
    """Where a linear stands in a forward pass.

    Attributes:
        activation: Name, in the linear's parent, of the activation module that it alone feeds;
            empty for none.
        norm: Runtime name of the LayerNorm whose output it reads; empty for none.
        kept: Why there is no activation to replace; empty where there is one.
    """

    activation: str = ""
    norm: str = ""
    kept: str = ""


@dataclass
class _Trace:
    """Calls in order: who was called, and who made what it was given."""

    calls: list[tuple[str, str]]
    makers: dict[int, str]
    alive: list[Tensor]

    def hear(self, name: str, entry: Any, result: Any) -> None:
        self.calls.append((name, self.makers.get(id(entry), "")))
        self.makers[id(result)] = name
        self.alive.append(result)  # or its id would be given to another


def layer_positions(model: nn.Module, names: Sequence[str], batch: Batch) -> dict[str, Position]:
    """Where linears stand, seen on one batch.

    Args:
        model: The model; it is not changed.
        names: Linears.
        batch: Keyword arguments of the model.

    Returns:
        Their places, in the order of their last calls; those that were not called come first.
    """
    modules = dict(model.named_modules())
    activations = [name for name, part in modules.items() if _is_activation(part)]
    norms = [name for name, part in modules.items() if type(part) is nn.LayerNorm]
    trace = _Trace([], {}, [])
    with listening(model, [*names, *activations, *norms], trace.hear, graph=False):
        run_batch(model, batch, 0)
    called = Counter(name for name, _ in trace.calls)
    readers = {maker: name for name, maker in trace.calls if name in activations}
    made = {name: maker for name, maker in trace.calls}
    order = {name: position for position, (name, _) in enumerate(trace.calls)}
    found = {}
    for name in sorted(names, key=lambda name: order.get(name, -1)):
        norm = made.get(name, "") if made.get(name) in norms else ""
        activation = readers.get(name, "")
        kept = _why_kept(name, activation, called)
        found[name] = Position("" if kept else activation.rpartition(".")[2], norm, kept)
    return found


def positions_without_data(model: nn.Module, names: Sequence[str]) -> dict[str, Position]:
    """Where linears stand, seen on inputs of no meaning.

    Raises:
        ValueError: If the model does not run on any that are known.
    """
    try:
        return layer_positions(model, names, dummy_batch(model))
    except Exception as error:  # whatever a forward pass raises on them
        raise ValueError(
            f"{type(model).__name__} does not run on made-up inputs, on which to see its "
            f"activations ({error}); pass calibration=batches to hf_rmt.compress, or set "
            "activation='keep'"
        ) from error


def dummy_batch(model: Any) -> Batch:
    """Arguments that a transformers model runs on, of no meaning.

    Raises:
        ValueError: If none are known.
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
    raise ValueError(f"nothing is known of the inputs of {type(model).__name__}")


def _why_kept(name: str, activation: str, called: Counter[str]) -> str:
    if not called[name]:
        return UNREACHED
    if not activation:
        return CALLED
    beside = activation.rpartition(".")[0] == name.rpartition(".")[0]
    return "" if beside and called[activation] == called[name] else SHARED


def _is_activation(module: nn.Module) -> bool:
    """Whether a module is a function of each entry, without parameters.

    Processors compute several values at once with other code than a single one, so the two results
    are compared up to rounding.
    """
    if type(module).__module__ not in ACTIVATION_MODULES or any(True for _ in module.parameters()):
        return False
    values = torch.tensor([[-1.0, 0.5, 2.0]])
    try:
        together, alone = module(values), torch.cat([module(value) for value in values.T], dim=0)
    except (IndexError, RuntimeError, TypeError):
        return False
    return torch.allclose(together.flatten(), alone.flatten(), rtol=1e-5, atol=1e-6)
