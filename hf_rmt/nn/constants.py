"""Tensors that never change, made once."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

Constant = TypeVar("Constant", bound=Callable[..., Tensor])


def constant(make: Constant) -> Constant:
    """A decorator for a function that makes a tensor: it makes only one tensor for each argument.

    While a program is traced, the function may make tensors without values. They are not kept.
    """
    known: dict[Any, Tensor] = {}

    @wraps(make)
    def once(*key: Any) -> Tensor:
        if key in known:
            return known[key]
        with torch.inference_mode(False):
            made = make(*key)
        if type(made) is Tensor:
            known[key] = made
        return made

    return once  # type: ignore[return-value]
