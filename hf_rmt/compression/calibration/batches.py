"""Batches of a model's arguments: what they may be, and running a model on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

NO_BATCH = "calibration holds no batch; pass some, or None to do without data"
Batch = Mapping[str, Any]
ONE_ROW = {"input_ids", "attention_mask", "token_type_ids", "decoder_input_ids"}
"""Arguments that a row of a data set holds without the side of the batch."""


def mappings(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches one after the other, each held to be the arguments of a model.

    Raises:
        TypeError: If they are no batches.
    """
    if isinstance(batches, Mapping) or not hasattr(batches, "__iter__"):
        raise TypeError(
            f"calibration must be several batches, got one {type(batches).__name__}; pass [batch]"
        )
    for number, batch in enumerate(batches):
        if not isinstance(batch, Mapping):
            raise TypeError(
                f"a calibration batch must be a mapping of the model's arguments, got "
                f"{type(batch).__name__} as number {number}; pass tokenizer(texts, "
                "return_tensors='pt')"
            )
        yield _with_tensors(batch, number)


def _with_tensors(batch: Batch, number: int) -> Batch:
    """A batch whose lists, such as those of a tokenizer or of a row of a data set, are tensors."""
    given = {}
    for key, value in batch.items():
        numbers = isinstance(value, list | tuple) and _is_numeric(value)
        if not numbers and not isinstance(value, np.ndarray):
            given[key] = value
            continue
        try:
            tensor = torch.as_tensor(np.asarray(value) if numbers else value)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"calibration batch number {number}: {key!r} holds lists of different lengths; "
                "pass tokenizer(texts, padding=True, return_tensors='pt')"
            ) from error
        given[key] = tensor[None] if tensor.dim() == 1 and key in ONE_ROW else tensor
    _check_not_empty(given, number)
    return given


def _is_numeric(value: Any) -> bool:
    """Whether nested lists hold numbers."""
    while isinstance(value, list | tuple) and value:
        value = value[0]
    return isinstance(value, int | float)


def _check_not_empty(batch: Batch, number: int) -> None:
    """Refuse a batch without an entry, or of padding only."""
    if not batch or any(isinstance(v, Tensor) and not v.numel() for v in batch.values()):
        raise ValueError(f"calibration batch number {number} is empty; leave it out")
    mask = batch.get("attention_mask")
    if isinstance(mask, Tensor) and not bool(mask.any()):
        raise ValueError(
            f"calibration batch number {number} holds padding only: its attention_mask is 0 "
            "everywhere; leave it out"
        )
    held = [key for key in ("input_ids", "pixel_values") if isinstance(batch.get(key), list)]
    if held:
        raise ValueError(
            f"calibration batch number {number}: {held[0]!r} is a list of "
            f"{type(batch[held[0]][:1]).__name__}s; pass tokenizer(texts, return_tensors='pt')"
        )


def run_batch(model: nn.Module, batch: Batch, number: int) -> Any:
    """Run a model on a batch; an error names the batch.

    Args:
        model: The model.
        batch: Its keyword arguments.
        number: Of the batch, from 0.

    Raises:
        ValueError: If the model fails on the batch, such as by ids out of range.
    """
    try:
        return model(**batch)
    except (IndexError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ValueError(
            f"calibration batch number {number}, with {', '.join(batch)}, cannot be run by the "
            f"model: {type(error).__name__}: {error}; mend the batch, or leave it out"
        ) from error
