"""Activations as functions of one number, whether they are modules or are called as functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

ACTIVATION_MODULES = ("torch.nn.modules.activation", "transformers.activations")
CALLED_NAMES = frozenset(
    (
        *(
            "celu",
            "elu",
            "gelu",
            "hardsigmoid",
            "hardswish",
            "hardtanh",
            "leaky_relu",
            "logsigmoid",
        ),
        *("mish", "relu", "relu6", "selu", "sigmoid", "silu", "softplus", "softsign", "tanh"),
    )
)
"""Names of activations in `torch.nn.functional`. Every function or method with such a name counts
as this activation, also if its name has an underscore at the end, such as `relu_`."""


@dataclass(frozen=True)
class Function:
    """An elementwise activation; it can be pickled and sent between processes.

    Attributes:
        name: Name of the activation, with its options.
        called: The module, or the name of the function in `torch.nn.functional`.
        rest: Positional arguments of the call that follow the tensor.
        options: Keyword arguments of the call.
    """

    name: str
    called: nn.Module | str
    rest: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def apply(self, x: Tensor) -> Tensor:
        """The function applied to a tensor of any shape; the tensor may be overwritten."""
        called = getattr(functional, self.called) if isinstance(self.called, str) else self.called
        result: Tensor = called(x, *self.rest, **self.options)
        return result

    def __str__(self) -> str:
        return self.name

    def values(self, x: Any) -> Any:
        """The function's values at the numbers of a float64 array."""
        with torch.no_grad():
            return self.apply(torch.tensor(x, dtype=torch.float64)).numpy()

    def slopes(self, x: Any) -> Any:
        """The function's derivative at the numbers of a float64 array."""
        with torch.inference_mode(False), torch.enable_grad():
            given = torch.tensor(x, dtype=torch.float64, requires_grad=True)
            (found,) = torch.autograd.grad(self.apply(given.clone()).sum(), given)
        return found.numpy()


def module_function(module: nn.Module) -> Function | None:
    """The function of an activation module without parameters; None for other modules.

    The module must treat each value alone. To check this, the module is called once with several
    values, and then with each value alone. The results may differ by rounding, because a processor
    uses different code for one value and for many.
    """
    if type(module).__module__ not in ACTIVATION_MODULES or any(True for _ in module.parameters()):
        return None
    values = torch.tensor([[-1.0, 0.5, 2.0]])
    try:
        together, alone = module(values), torch.cat([module(value) for value in values.T], dim=0)
    except (IndexError, RuntimeError, TypeError):
        return None
    same = torch.allclose(together.flatten(), alone.flatten(), rtol=1e-5, atol=1e-6)
    return Function(type(module).__name__, module) if same else None


def called_function(
    called: Any, args: Sequence[Any], options: Mapping[str, Any]
) -> Function | None:
    """The activation that a call of a torch function applies; None if it is no activation.

    Args:
        called: The function, or the method of a tensor, that is called.
        args: Positional arguments of the call. Only the first may be a tensor.
        options: Keyword arguments of the call.
    """
    name = str(getattr(called, "__name__", "")).rstrip("_")
    if name not in CALLED_NAMES or not args or not isinstance(args[0], Tensor):
        return None
    rest = tuple(args[1:])
    told = {key: value for key, value in options.items() if key != "inplace"}
    if any(isinstance(value, Tensor) for value in (*rest, *told.values())):
        return None
    words = [*map(repr, rest), *(f"{key}={value!r}" for key, value in told.items())]
    text = f"{name}({', '.join(words)})" if words else name
    return Function(text, name, rest, told)
