"""The weights that a training started from, kept beside its checkpoints."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

START_FILE = "_rmt_start.safetensors"
"""Name of the file in the output folder that holds the weights at the start of training. Trainer
pushes no file whose name begins with "_"."""


def save_start(
    weights: Mapping[str, Tensor], folder: str | PathLike[str], *, name: str = START_FILE
) -> None:
    """Write tensors into the output folder of a training.

    Args:
        weights: The tensors by name, on the CPU.
        folder: The folder; it is made if it does not exist.
        name: Name of the file.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file(dict(weights), Path(folder, name))


def load_start(
    folder: str | PathLike[str], expected: str | None, *, name: str = START_FILE
) -> dict[str, Tensor]:
    """Read the weights at the start of a training, or other tensors kept beside its checkpoints.

    Args:
        folder: Output folder of the training.
        expected: Digest of the tensors, as a checkpoint records it; None for no check.
        name: Name of the file.

    Returns:
        The tensors by name, on the CPU.

    Raises:
        FileNotFoundError: If the file is gone.
        ValueError: If the digest of the tensors in the file is not `expected`.
    """
    path = Path(folder, name)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} must hold tensors with which this training continues, but does not exist; put "
            "it back beside the checkpoints, or start the training again"
        )
    weights = load_file(path)
    if expected is not None and digest(weights) != expected:
        raise ValueError(
            f"{path} must hold the tensors with which this training continues, but holds other "
            "tensors, because another training has used the folder; put the right file back, or "
            "start the training again"
        )
    return weights


def keep_start(weights: Mapping[str, Tensor], args: Any, *, name: str = START_FILE) -> None:
    """Write tensors beside the checkpoints of a training, if the training writes checkpoints.

    Args:
        weights: The tensors by name, on the CPU.
        args: `TrainingArguments`.
        name: Name of the file.
    """
    if args.should_save and args.save_strategy != "no":
        save_start(weights, args.output_dir, name=name)


def carry_start(
    args: Any, began: str, expected: str | None, *, name: str = START_FILE
) -> dict[str, Tensor]:
    """Read tensors that a training keeps beside its checkpoints; copy them to a new output folder.

    Args:
        args: `TrainingArguments` of the resumed run, with its output folder.
        began: Output folder in which the run began.
        expected: Digest of the tensors, as a checkpoint records it; None for no check.
        name: Name of the file.

    Returns:
        The tensors by name, on the CPU.

    Raises:
        FileNotFoundError: If the file lies in neither folder.
        ValueError: If the digest of the tensors in the file is not `expected`.
    """
    if Path(args.output_dir, name).is_file() or not Path(began, name).is_file():
        return load_start(args.output_dir, expected, name=name)
    weights = load_start(began, expected, name=name)
    keep_start(weights, args, name=name)
    return weights


def home(args: Any, saved: Mapping[str, Any] | None) -> tuple[str, str]:
    """The output folder of a run, and the output folder in which the run began.

    Args:
        args: `TrainingArguments`.
        saved: The state that `RMTCallback` stored in the checkpoint; None for a new run.

    Returns:
        Two absolute paths. They are equal if the run goes on in the same folder.
    """
    here = str(Path(args.output_dir).absolute())
    return here, (saved or {}).get("folder", here)


def digest(weights: Mapping[str, Tensor]) -> str:
    """The SHA-256, in hexadecimal, of the names and the values of tensors on the CPU."""
    result = hashlib.sha256()
    for name in sorted(weights):
        result.update(name.encode())
        result.update(weights[name].contiguous().view(-1).view(torch.uint8).numpy().data)
    return result.hexdigest()
