"""Runs work outside of torch modes that the user's program may have set, such as autocast."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import Any, TypeVar

import torch

DEVICES = ("cpu", "cuda", "xpu", "mps")
"""Kinds of devices on which autocast may be enabled."""
F = TypeVar("F", bound=Callable[..., Any])


def undisturbed(function: F) -> F:
    """A decorator that runs a function outside of autocast and inference mode.

    Autocast would round the products from which weights are computed. Tensors that are made in
    inference mode could not be trained later.

    Args:
        function: Any function.

    Returns:
        The wrapped function. The modes are as before when it returns or raises.
    """

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            for kind in filter(torch.is_autocast_enabled, DEVICES):
                stack.enter_context(torch.autocast(kind, enabled=False))
            if torch.is_inference_mode_enabled():
                stack.enter_context(torch.inference_mode(False))
            return function(*args, **kwargs)

    return run  # type: ignore[return-value]
