"""Whether a product has to say how it is differentiated."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def is_differentiating() -> bool:
    """Whether gradients are on, or a transform is at work.

    Products that round their inputs, or that write into memory of their own, have rules for these
    cases. Elsewhere they go the short way.
    """
    return torch.is_grad_enabled() or is_transformed()


def is_transformed() -> bool:
    """Whether a transform of `torch.func` or a forward-mode derivative is at work."""
    if torch.compiler.is_compiling():  # a program is traced without them
        return False
    interpreted = torch._C._functorch.peek_interpreter_stack() is not None
    return interpreted or forward_ad._current_level >= 0
