"""Tensors that never change, made once."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

Constant = TypeVar("Constant", bound=Callable[..., Tensor])


def constant(make: Constant) -> Constant:
    """Decorate a function that makes a tensor, so that equal arguments make it only once.

    While torch traces a program, the function may make tensors without values. These are not kept.
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
