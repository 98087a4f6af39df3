"""Tells whether a derivative may be asked for, so that a product must define one."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd import forward_ad


def is_differentiating() -> bool:
    """Whether gradients are enabled or a transform of `torch.func` is active.

    Products that round their inputs, or that write into memory of their own, have rules for these
    cases. In other cases they compute the product directly.
    """
    return torch.is_grad_enabled() or is_transformed()


def is_transformed() -> bool:
    """Whether a transform of `torch.func` or a forward-mode derivative is at work."""
    if torch.compiler.is_compiling():  # torch.compile traces without transforms
        return False
    interpreted = torch._C._functorch.peek_interpreter_stack() is not None
    return interpreted or forward_ad._current_level >= 0


def are_wrapped(tensors: Iterable[Tensor]) -> bool:
    """Whether a transform of `torch.func` runs over one of the tensors, as `vmap` over a buffer."""
    return any(torch._C._functorch.is_functorch_wrapped_tensor(tensor) for tensor in tensors)
