"""Checks that all processes are about to do the same work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from hf_rmt.compression.execution.parallel import WorkResult, sum_over_processes
from hf_rmt.compression.execution.rendezvous import n_processes
from hf_rmt.compression.targets.names import some

MISSING = "missing"


def agreed(
    model: Any, select: Callable[[], list[str]], settings: Any, arguments: Mapping[str, Any]
) -> list[str]:
    """The names of the layers, after a check that all processes are about to do the same work.

    Args:
        model: The model of this process.
        select: Finds the names. If it fails on one process, all processes raise an error.
        settings: The method and its options on this process.
        arguments: The other arguments of the call that change the result, as plain values by name.

    Returns:
        The names, the same on every process.

    Raises:
        RuntimeError: On every process, if `select` failed on one of them, or if layers, options,
            arguments or weights differ between the processes.
    """
    names: list[str] = []

    def evidence() -> dict[str, Any]:
        names.extend(select())
        layers = {name: model.get_submodule(name) for name in names}
        shapes = {f"the shape of {name!r}": tuple(it.weight.shape) for name, it in layers.items()}
        weights = {"the weights": digest(layer.weight for layer in layers.values())}
        # a config has fields of the same names, which the library fills in
        return {**settings.to_dict(), **arguments, **shapes, **weights}

    if n_processes() == 1:
        return select()
    check_agreed(evidence)
    return names


def check_agreed(evidence: Callable[[], Mapping[str, Any]]) -> None:
    """Refuse processes that are about to do different work.

    Args:
        evidence: A function that gives plain values by name, which must be the same on every
            process. It is called only if there are several processes.

    Raises:
        RuntimeError: On every process, if a value differs, or if `evidence` failed on one process.
    """
    if n_processes() == 1:
        return

    def work() -> WorkResult:
        return {key: str(value) for key, value in evidence().items()}, {}

    found, _ = sum_over_processes(work, doing="checked that all processes do the same")
    keys = {key: None for values in found for key in values}
    differing = [key for key in keys if len({values.get(key) for values in found}) > 1]
    if not differing:
        return
    shown = [
        f"{key} ({'; '.join(f'process {n}: {v.get(key, MISSING)}' for n, v in enumerate(found))})"
        for key in differing
    ]
    raise RuntimeError(
        f"the processes differ in {some(shown)}, so their models would be mixed; give each process "
        "the same model, the same config and the same arguments"
    )


def digest(weights: Iterable[Tensor]) -> str:
    """A short hash of the values of some weights."""
    found = sha256()
    for weight in weights:
        raw = weight.detach().cpu().contiguous().flatten().view(torch.uint8)
        found.update(raw.numpy().tobytes())
    return found.hexdigest()[:12]
