"""Tells whether derivatives may be needed. If so, the products of this package must give them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd import forward_ad


def is_differentiating() -> bool:
    """Whether gradients are enabled or a transform of `torch.func` is active.

    If so, products that round their inputs, or that write into their own memory, use rules of their
    own for derivatives. If not, they compute the product directly.
    """
    return torch.is_grad_enabled() or is_transformed()


def is_transformed() -> bool:
    """Whether a transform of `torch.func` or a forward-mode derivative is active."""
    if torch.compiler.is_compiling():  # torch.compile traces without transforms
        return False
    interpreted = torch._C._functorch.peek_interpreter_stack() is not None
    return interpreted or forward_ad._current_level >= 0


def are_wrapped(tensors: Iterable[Tensor]) -> bool:
    """Whether a transform of `torch.func`, such as `vmap`, runs over one of the tensors."""
    return any(torch._C._functorch.is_functorch_wrapped_tensor(tensor) for tensor in tensors)
