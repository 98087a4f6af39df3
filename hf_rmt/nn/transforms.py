"""Tells whether derivatives may be needed, and whether torch compiles, traces or transforms code.

If derivatives may be needed, the matrix products of this package run as autograd functions, with
derivatives of their own.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd import forward_ad

_is_tracing = torch._C._is_tracing
_peek = torch._C._functorch.peek_interpreter_stack
"""The functions of torch that say whether `torch.jit.trace` runs, and which transform is active."""


def is_differentiating() -> bool:
    """Whether gradients are enabled, or a transform of `torch.func` such as `vmap` is active.

    Some matrix products round their inputs or write into memory of their own, so autograd cannot
    follow them. If this function returns True, they run as autograd functions that define their
    derivatives. If it returns False, they compute the product directly.
    """
    return torch.is_grad_enabled() or is_transformed()


def is_transformed() -> bool:
    """Whether a transform of `torch.func` or a forward-mode derivative is active."""
    if torch.compiler.is_compiling():  # torch.compile traces without transforms
        return False
    return _peek() is not None or forward_ad._current_level >= 0


def runs_plainly() -> bool:
    """Whether torch only runs this code: it does not compile, export, trace or transform it.

    Layers call this in each forward pass. It makes all these tests in one call, to save time.
    """
    return not (
        torch.compiler.is_compiling()
        or _is_tracing()
        or _peek() is not None
        or forward_ad._current_level >= 0
    )


def are_wrapped(tensors: Iterable[Tensor]) -> bool:
    """Whether a transform of `torch.func`, such as `vmap`, runs over one of the tensors."""
    return any(torch._C._functorch.is_functorch_wrapped_tensor(tensor) for tensor in tensors)
