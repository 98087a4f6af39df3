"""Changes of a compressed layer after which nobody could load the saved model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm


def pruned(layer: Any) -> Callable[[], Any]:
    prune.l1_unstructured(layer, "weight", 0.5)
    return lambda: prune.remove(layer, "weight")


def pruned_bias(layer: Any) -> Callable[[], Any]:
    prune.l1_unstructured(layer, "bias", 0.5)
    return lambda: prune.remove(layer, "bias")


def normed(layer: Any) -> Callable[[], Any]:
    parametrizations.weight_norm(layer)
    return lambda: parametrize.remove_parametrizations(layer, "weight")


def spectral(layer: Any) -> Callable[[], Any]:
    parametrizations.spectral_norm(layer)
    return lambda: parametrize.remove_parametrizations(layer, "weight")


def parametrized_bias(layer: Any) -> Callable[[], Any]:
    parametrize.register_parametrization(layer, "bias", nn.Tanh())
    return lambda: parametrize.remove_parametrizations(layer, "bias")


def normed_by_a_hook(layer: Any) -> Callable[[], Any]:
    weight_norm(layer)
    return lambda: nn.utils.remove_weight_norm(layer)


def spectral_by_a_hook(layer: Any) -> Callable[[], Any]:
    spectral_norm(layer)
    return lambda: nn.utils.remove_spectral_norm(layer)


def extended(layer: Any) -> Callable[[], Any]:
    layer.register_buffer("mine", torch.ones(1))
    return lambda: delattr(layer, "mine")


def of_another_shape(layer: Any) -> Callable[[], Any]:
    before = layer.weight
    layer.weight = nn.Parameter(before.detach()[:5])
    return lambda: setattr(layer, "weight", before)


def without_bias(layer: Any) -> Callable[[], Any]:
    before, layer.bias = layer.bias, None
    return lambda: setattr(layer, "bias", before)


CHANGES = {
    pruned: r"prune\.remove\(layer, 'weight'\)",
    pruned_bias: r"prune\.remove\(layer, 'bias'\)",
    normed: "remove_parametrizations",
    spectral: "remove_parametrizations",
    parametrized_bias: "remove_parametrizations",
    normed_by_a_hook: "remove_weight_norm",
    spectral_by_a_hook: "remove_spectral_norm",
    extended: r"mine; .*to_dense\(\)",
    of_another_shape: r"weight; .*to_dense\(\)",
    without_bias: "bias; .*set it to zeros",
}
