"""Checks and converts batches of a model's arguments, and runs a model on a batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

NO_BATCH = "calibration holds no batch; pass at least one, or None to work without data"
Batch = Mapping[str, Any]
ROW_DIMENSIONS = {
    "input_ids": 1,
    "attention_mask": 1,
    "token_type_ids": 1,
    "decoder_input_ids": 1,
    "input_values": 1,
    "input_features": 2,
    "inputs_embeds": 2,
    "pixel_values": 3,
}
"""How many dimensions one example of each argument has, such as 1 for `input_ids`. A batch of
several examples has one dimension more. So if the first of these arguments in a batch has just
this many dimensions, the batch is a single example."""
REMEDY = (
    "pass tokenizer(texts, padding=True, return_tensors='pt'), "
    "dataset.with_format('torch').iter(batch_size=8), or a DataLoader with a collator"
)


def mappings(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Give the batches one after the other, after a check that each holds arguments of a model.

    A row of a data set becomes a batch of one row.

    Raises:
        TypeError: If `batches` is not a series of batches, or a batch is not a mapping.
        ValueError: If a batch is empty, or cannot be converted to tensors.
    """
    if isinstance(batches, Mapping) or not hasattr(batches, "__iter__"):
        raise TypeError(
            f"calibration must be several batches, got one {type(batches).__name__}; pass "
            "[batch], or one split of a data set"
        )
    for number, batch in enumerate(batches):
        if not isinstance(batch, Mapping):
            raise TypeError(
                f"a calibration batch must be a mapping of the model's arguments, got "
                f"{type(batch).__name__} as number {number}; {REMEDY}"
            )
        yield _with_tensors(batch, number)


class Batches:
    """Batches that can be iterated many times. Each time, lists in them are converted to tensors.

    Args:
        given: An object that can be iterated many times, such as a data set or a `DataLoader`.
    """

    def __init__(self, given: Iterable[Batch]) -> None:
        self.given = given

    def __iter__(self) -> Iterator[Batch]:
        return mappings(self.given)


def _with_tensors(batch: Batch, number: int) -> Batch:
    """Convert lists of numbers in a batch to tensors; raise an error if the batch is empty.

    A single example, such as one row of a data set, becomes a batch of one example. `number` is
    the place of the batch, for error messages.
    """
    given = {key: _as_tensor(key, value, number) for key, value in batch.items()}
    if _is_row(given):
        given = {
            key: value[None] if isinstance(value, Tensor) else value
            for key, value in ((key, _scalar(value)) for key, value in given.items())
        }
    _check_not_empty(given, number)
    return given


def _as_tensor(key: str, value: Any, number: int) -> Any:
    """Convert an array or a list of numbers to a tensor; return any other value as it is.

    `key` is the name of the argument, and `number` the place of its batch, for an error message.
    """
    numbers = isinstance(value, list | tuple) and _is_numeric(value)
    array = isinstance(value, np.ndarray) and value.dtype.kind not in "US"
    if not numbers and not array:
        return value
    try:
        tensor = torch.as_tensor(np.asarray(value) if numbers else value)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"calibration batch number {number}: {key!r} holds lists of different lengths; {REMEDY}"
        ) from error
    # lists of Python numbers have no dtype, so they get torch's default, as models do
    return (
        tensor.to(torch.get_default_dtype()) if numbers and tensor.is_floating_point() else tensor
    )


def _is_numeric(value: Any) -> bool:
    """Whether a value is a number or an array, or a list of these, such as [[1, 2], [3]].

    Only the first entry of a list is looked at.
    """
    while isinstance(value, list | tuple) and len(value):
        value = value[0]
    return isinstance(value, int | float | np.number | np.ndarray)


def _is_row(batch: Batch) -> bool:
    """Whether a batch is a single example, so that its tensors have no batch dimension.

    For example, it is one if `input_ids` has the shape (tokens,). `ROW_DIMENSIONS` has the rule.
    """
    held = [(batch[key], rank) for key, rank in ROW_DIMENSIONS.items() if key in batch]
    tensors = [(value, rank) for value, rank in held if isinstance(value, Tensor)]
    return bool(tensors) and tensors[0][0].dim() == tensors[0][1]


def _scalar(value: Any) -> Any:
    """Convert a number, such as a label, to a tensor; return any other value as it is."""
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return torch.as_tensor(value) if number else value


def _check_not_empty(batch: Batch, number: int) -> None:
    """Raise an error if a batch is empty, is all padding, or has inputs that are no tensors."""
    if not batch or any(isinstance(v, Tensor) and not v.numel() for v in batch.values()):
        raise ValueError(f"calibration batch number {number} is empty; leave it out")
    mask = batch.get("attention_mask")
    if isinstance(mask, Tensor) and not bool(mask.any()):
        raise ValueError(
            f"calibration batch number {number} holds padding only: its attention_mask is 0 "
            "everywhere; leave it out"
        )
    for key in ("input_ids", "input_values", "input_features", "pixel_values"):
        value = batch.get(key)
        if isinstance(value, list | tuple | int | str):
            filled = isinstance(value, list | tuple) and value
            held = f"a list of {type(value[0]).__name__}s" if filled else repr(value)
            raise ValueError(
                f"calibration batch number {number}: {key!r} is {held} and no tensor; {REMEDY}"
            )


def run_batch(model: nn.Module, batch: Batch, number: int) -> Any:
    """Run a model on a batch; an error names the batch.

    Args:
        model: The model.
        batch: The keyword arguments of the model.
        number: The number of the batch, counted from 0.

    Raises:
        ValueError: If the model fails on the batch, for example because ids are out of range.
    """
    try:
        return model(**batch)
    except (IndexError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ValueError(
            f"calibration batch number {number}, with {', '.join(batch)}, cannot be run by the "
            f"model: {type(error).__name__}: {error}; correct the batch, or leave it out"
        ) from error
