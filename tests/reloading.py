"""What a model was when it was saved, for a process that loads it again and compares.

The state must be the same bit for bit. The outputs may differ by the rounding of a few sums:
tensors that lie elsewhere in memory are added up in another order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

ROUNDINGS = 8
"""Output rounding errors that are allowed, in units of the dtype's precision."""


def save_with_evidence(model: Any, outputs: torch.Tensor, folder: Path) -> str:
    """Save a model with its state and its outputs beside it."""
    model.save_pretrained(folder)
    torch.save({"outputs": outputs, "state": dict(model.state_dict())}, folder / "evidence.pt")
    return str(folder)


def differences(model: Any, outputs: torch.Tensor, folder: str | Path) -> list[str]:
    """What differs between a loaded model and the one that was saved; nothing if all is well."""
    evidence = torch.load(Path(folder, "evidence.pt"))
    expected, before, after = evidence["outputs"], evidence["state"], model.state_dict()
    found = [f"{key} is missing or new" for key in before.keys() ^ after.keys()]
    found += [
        f"{key} differs"
        for key in before.keys() & after.keys()
        if before[key].dtype != after[key].dtype or not torch.equal(before[key], after[key])
    ]
    distance = float((outputs - expected).abs().max())
    precision = torch.finfo(model.dtype).eps * max(1.0, float(expected.abs().max()))
    if not distance <= ROUNDINGS * precision:
        found.append(f"outputs differ by {distance}")
    return found
