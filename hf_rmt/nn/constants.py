"""A decorator of functions that make constant tensors: each tensor is made only once."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

Constant = TypeVar("Constant", bound=Callable[..., Tensor])


def constant(make: Constant) -> Constant:
    """Decorate a function that makes a tensor: equal arguments give the same tensor again.

    While torch traces a program, the function may make tensors without values. Those are not
    reused.
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
