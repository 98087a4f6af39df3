"""What a last layer gives in the dense model, against what it is given in the compressed one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_rmt.compression.batches import Batch, mappings, run_batch
from hf_rmt.compression.moments import listening
from hf_rmt.compression.parallel import sum_over_processes
from hf_rmt.ternary.weight import Regression


def outputs_of(model: nn.Module, last: str, batches: Iterable[Batch]) -> list[list[Tensor]]:
    """What a layer gives, batch by batch and call by call."""
    calls: list[Tensor] = []
    found = []
    with listening(model, [last], lambda _, entry, result: calls.append(result), graph=False):
        for number, batch in enumerate(mappings(batches)):
            run_batch(model, batch, number)
            found.append(calls.copy())
            calls.clear()
    return found


def regression(
    model: Any, last: str, batches: Iterable[Batch], outputs: Sequence[Sequence[Tensor]]
) -> Regression:
    """Inputs of a layer as they are now against the outputs it had, padding left out.

    Args:
        model: The model; it is not changed.
        last: Runtime name of the layer.
        batches: Keyword arguments of the model; on several processes each may have its own.
        outputs: Of the same batches, as `outputs_of` gave them.

    Returns:
        The sums over the tokens of all processes.
    """
    layer = model.get_submodule(last)
    entries: list[Tensor] = []
    rows, columns = layer.weight.shape
    shapes = {
        "count": (),
        "inputs": (columns,),
        "outputs": (rows,),
        "squares": (columns, columns),
        "products": (columns, rows),
    }

    def work() -> tuple[None, dict[str, Tensor]]:
        device = layer.weight.device
        sums = {key: torch.zeros(shape, device=device) for key, shape in shapes.items()}
        with listening(model, [last], lambda _, entry, result: entries.append(entry), graph=False):
            for batch, targets in zip(mappings(batches), outputs, strict=True):
                model(**batch)
                for entry, target in zip(entries, targets, strict=True):
                    _add(sums, entry, target, batch.get("attention_mask"))
                entries.clear()
        return None, sums

    return Regression(**sum_over_processes(work)[1])


def _add(sums: dict[str, Tensor], entry: Tensor, target: Tensor, mask: Tensor | None) -> None:
    if mask is not None and mask.shape == entry.shape[:-1]:
        entry, target = entry[mask.bool()], target[mask.bool()]
    x, y = entry.flatten(0, -2).float(), target.flatten(0, -2).float()
    for key, part in (
        ("count", torch.tensor(float(len(x)))),
        ("inputs", x.sum(0)),
        ("outputs", y.sum(0)),
        ("squares", x.T @ x),
        ("products", x.T @ y),
    ):
        sums[key] += part
