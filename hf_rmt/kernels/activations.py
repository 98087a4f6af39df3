"""Activation functions on float64 arrays, by the names that Hugging Face configs use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf, expit, ndtr

Array = NDArray[np.float64]
Function = Callable[[Any], Any]
Activation = str | Function
"""A name in `ACTIVATIONS`, or a function on arrays."""


def _relu(x: Array) -> Array:
    return np.maximum(x, 0.0)


def _gelu(x: Array) -> Array:
    return x * ndtr(x)


def _gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))


def _silu(x: Array) -> Array:
    return x * expit(x)


def _softplus(x: Array) -> Array:
    return np.logaddexp(0.0, x)


ACTIVATIONS: dict[str, Function] = {
    "gelu": _gelu,
    "gelu_10": lambda x: np.clip(_gelu(x), -10.0, 10.0),
    "gelu_accurate": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_new": _gelu_tanh,
    "gelu_python": _gelu,
    "gelu_python_tanh": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "hardswish": lambda x: x * np.clip(x + 3.0, 0.0, 6.0) / 6.0,
    "laplace": lambda x: 0.5 * (1.0 + erf((x - 0.707107) / (0.282095 * np.sqrt(2.0)))),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "linear": lambda x: 1.0 * x,
    "mish": lambda x: x * np.tanh(_softplus(x)),
    "quick_gelu": lambda x: x * expit(1.702 * x),
    "relu": _relu,
    "relu2": lambda x: _relu(x) ** 2,
    "relu6": lambda x: np.clip(x, 0.0, 6.0),
    "sigmoid": expit,
    "sign": np.sign,
    "silu": _silu,
    "sqrtsoftplus": lambda x: np.sqrt(_softplus(x)),
    "swish": _silu,
    "tanh": np.tanh,
}
TRAINED = ("prelu", "xielu")
"""Activations with trained parameters: their name alone does not define a function."""


def resolve_activation(activation: Activation) -> Function:
    """The function on arrays that a name stands for; a function is returned as it is.

    Args:
        activation: A name in `ACTIVATIONS`, or a function on arrays.

    Returns:
        The function.

    Raises:
        ValueError: If the name is not known, or its function has trained parameters.

    Examples:
        >>> float(resolve_activation("relu6")(9.0))
        6.0
    """
    if callable(activation):
        return activation
    if activation in TRAINED:
        raise ValueError(
            f"activation {activation!r} has trained parameters, so its name alone does not define "
            "a function; pass a function of arrays that contains the values of the parameters"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"activation must be callable or one of {sorted(ACTIVATIONS)}, got {activation!r}"
        )
    return ACTIVATIONS[activation]
