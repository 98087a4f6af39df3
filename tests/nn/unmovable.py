"""What a user may do to a layer that no other layer can carry, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize, prune


def patch_forward(layer: Any) -> None:
    before = layer.forward
    layer.forward = lambda x: 10 * before(x)


UNMOVABLE: dict[str, tuple[Callable[[Any], Any], str]] = {
    "forward": (patch_forward, "its method 'forward' was replaced"),
    "another method": (
        lambda layer: setattr(layer, "extra_repr", lambda: "mine"),
        "its method 'extra_repr' was replaced",
    ),
    "parameter": (
        lambda layer: layer.register_parameter("gain", nn.Parameter(torch.ones(1))),
        "'gain' was registered on it",
    ),
    "buffer": (
        lambda layer: layer.register_buffer("gain", torch.ones(1)),
        "'gain' was registered on it",
    ),
    "passing buffer": (
        lambda layer: layer.register_buffer("gain", torch.ones(1), persistent=False),
        "'gain' was registered on it",
    ),
    "child": (lambda layer: setattr(layer, "drop", nn.Dropout(0.1)), "'drop' was registered on it"),
    "gradient hook": (
        lambda layer: layer.weight.register_hook(lambda gradient: 2 * gradient),
        "a hook waits for the gradient",
    ),
    "accumulated gradient hook": (
        lambda layer: layer.weight.register_post_accumulate_grad_hook(lambda _: None),
        "a hook waits for the gradient",
    ),
    "parametrization": (
        lambda layer: parametrize.register_parametrization(layer, "bias", nn.Identity()),
        "remove_parametrizations",
    ),
    "pruned weight": (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), "prune.remove"),
    "pruned bias": (lambda layer: prune.l1_unstructured(layer, "bias", 0.5), "prune.remove"),
}
