"""Tells whether derivatives may be needed.

If so, the matrix products of this package use autograd functions of their own, which give them.
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

    If so, matrix products that round their inputs, or that write into their own memory, use rules
    of their own for derivatives. If not, they compute the product directly.
    """
    return torch.is_grad_enabled() or is_transformed()


def is_transformed() -> bool:
    """Whether a transform of `torch.func` or a forward-mode derivative is active."""
    if torch.compiler.is_compiling():  # torch.compile traces without transforms
        return False
    return _peek() is not None or forward_ad._current_level >= 0


def runs_plainly() -> bool:
    """Whether torch only runs this code: it does not compile, export, trace or transform it.

    Layers call this in each forward pass. It is one function, because calls take time.
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
