"""Gathers sums over samples, from which a new weight of a model's last layer is computed.

The new weight shall map the layer's inputs in the compressed model to the outputs that the layer
had before compression. It is found by least squares.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_rmt.compression.calibration.batches import Batch, mappings, run_batch
from hf_rmt.compression.calibration.moments import listening
from hf_rmt.compression.calibration.token_masks import TokenMasks
from hf_rmt.compression.execution.parallel import sum_over_processes
from hf_rmt.ternary.least_squares import Regression

HELD_OUT = 4
"""One in this many samples is left out of the fit. These samples then decide whether step
activations (with a few values) are used."""


def outputs_of(model: nn.Module, last: str, batches: Iterable[Batch]) -> list[list[Tensor]]:
    """The outputs of a layer: for each batch, one tensor per call of the layer."""
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
) -> tuple[Regression, Regression]:
    """Compute the sums over samples from which the layer `last` is fitted; see `Regression`.

    The model is run on the batches to get the layer's inputs. The outputs are earlier ones, which
    are given. Padding is left out.

    Args:
        model: The model; it is not changed.
        last: Full name of the layer.
        batches: Batches with keyword arguments of the model; every process may have its own.
        outputs: Earlier outputs of the layer on the same batches, from `outputs_of`.

    Returns:
        Two results, each summed over the tokens of all processes. The first is for the fit and
        covers three of every four samples. The second covers the other samples, which are held out.
    """
    layer = model.get_submodule(last)
    entries: list[tuple[Tensor, Tensor | None]] = []
    masks = TokenMasks(model)

    def heard(name: str, entry: Tensor, _: Tensor) -> None:
        entries.append((entry, masks.of(name, entry)))

    rows, columns = layer.weight.shape
    shapes = {
        "count": (),
        "inputs": (columns,),
        "outputs": (rows,),
        "squares": (columns, columns),
        "products": (columns, rows),
        "energies": (rows,),
    }

    def work() -> tuple[None, dict[str, Tensor]]:
        device, samples = layer.weight.device, 0
        parts = [
            {
                key: torch.zeros(shape, device=device, dtype=torch.float64)
                for key, shape in shapes.items()
            }
            for _ in range(2)
        ]
        with masks.followed(), listening(model, [last], heard, graph=False):
            for batch, targets in zip(mappings(batches), outputs, strict=True):
                model(**batch)
                for (entry, mask), target in zip(entries, targets, strict=True):
                    held = held_out(len(entry), samples).to(device)
                    _add(parts, held, entry, target, mask)
                samples += len(entries[0][0]) if entries else 0
                entries.clear()
        return None, {f"{n} {key}": part[key] for n, part in enumerate(parts) for key in part}

    sums = sum_over_processes(work, doing="ran the model on the calibration")[1]
    fitted, held = (Regression(**{key: sums[f"{n} {key}"] for key in shapes}) for n in range(2))
    return fitted, held


def held_out(count: int, before: int) -> Tensor:
    """Say for each sample of a batch whether it is held out of the fit: every fourth sample is.

    Args:
        count: Number of samples in the batch.
        before: Number of samples in all earlier batches.
    """
    return torch.arange(before, before + count) % HELD_OUT == HELD_OUT - 1


def _add(
    parts: Sequence[dict[str, Tensor]],
    held: Tensor,
    entry: Tensor,
    target: Tensor,
    mask: Tensor | None,
) -> None:
    """Add a layer's inputs `entry` and outputs `target` from one batch to the sums in `parts`.

    `held` says which samples are held out of the fit. These are added to `parts[1]`, and the others
    to `parts[0]`. If `mask` has the shape of the tokens, padding is left out.
    """
    masked = mask is not None and mask.shape == entry.shape[:-1]
    for sums, chosen in zip(parts, (~held, held), strict=True):
        kept = chosen
        if mask is not None and masked:
            kept = mask.bool() & chosen.view(-1, *[1] * (mask.dim() - 1))
        x, y = (each[kept].flatten(0, -2).double() for each in (entry, target))
        for key, part in (
            ("count", torch.tensor(float(len(x)))),
            ("inputs", x.sum(0)),
            ("outputs", y.sum(0)),
            ("squares", x.T @ x),
            ("products", x.T @ y),
            ("energies", y.square().sum(0)),
        ):
            sums[key] += part
