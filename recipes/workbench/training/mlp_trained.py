"""Applies the methods to trained networks: the hidden weights are compressed layer by layer."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from workbench.data.vectors import Split
from workbench.models.mlp_layers import DEPTH, Hidden, Method, prune, zero
from workbench.training.from_scratch import Arguments, fit
from workbench.writing import write_tensors

import torch
from torch import Tensor, nn

from hf_rmt.kernels import match_step_activation
from hf_rmt.nn import StepActivation, TernaryLinear


def trained_network(
    split: Split, width: int, seed: int, *, epochs: int, folder: Path
) -> nn.Sequential:
    """The dense network without hidden biases, trained by SGD or read from the folder."""
    torch.manual_seed(seed)
    inputs, outputs = split.train.features.shape[1], split.train.targets.shape[1]
    layers: list[nn.Module] = []
    for sizes in pairwise((inputs, *[width] * DEPTH)):
        layers += [nn.Linear(*sizes, bias=False), nn.ReLU()]
    net, file = nn.Sequential(*layers, nn.Linear(width, outputs)), folder / f"{width}-{seed}.pt"
    if file.exists():
        net.load_state_dict(torch.load(file))
        return net.eval()
    images, targets = (torch.from_numpy(part) for part in split.train)
    fit(net, images, targets.argmax(1), Arguments(epochs=epochs), seed)
    write_tensors(file, net.state_dict())
    return net


@torch.no_grad()
def trained_layers(method: Method, net: nn.Sequential, inputs: Tensor, seed: int) -> nn.Sequential:
    """The hidden layers of a trained network, compressed from the first to the last.

    Let tau be the root mean square of an activation's inputs in the dense network. These inputs are
    scaled to the same tau, and the step is matched at this tau. The mean of relu is added to the
    outputs of the step, because the next layer was trained with it.

    Args:
        method: The new weights and activations.
        net: Linear layers without bias, a relu after each, then the readout.
        inputs: Rows to measure tau on, shape (rows, features).
        seed: Seed of the choice of zeroed weights.
    """
    generator = torch.Generator().manual_seed(seed)
    layers, wanted, found = [], inputs, inputs
    for linear in list(net)[: 2 * DEPTH : 2]:
        arguments = linear(wanted)
        tau = arguments.square().mean().sqrt().item()
        small = compressed(linear, method, generator)
        scale = small.scale if isinstance(small, TernaryLinear) else small.weight
        scale *= tau / small(found).square().mean().sqrt()
        layers.append(Hidden(small, activation_at(method, tau), divisor=1.0))
        wanted, found = arguments.relu(), layers[-1](found)
    return nn.Sequential(*layers)


def compressed(linear: nn.Linear, method: Method, generator: torch.Generator) -> nn.Module:
    """A new layer with the weights of `linear`, made sparse or ternary."""
    if method.weights == "ternary":
        return TernaryLinear.from_linear(linear, sparsity=method.sparsity)
    copy = nn.utils.skip_init(nn.Linear, linear.in_features, linear.out_features, bias=False)
    weight = copy.requires_grad_(False).weight.copy_(linear.weight)
    if method.weights == "zeroed":
        zero(weight, method.sparsity, generator)
    elif method.weights == "pruned":
        prune(weight, method.sparsity)
    return copy


def activation_at(method: Method, tau: float) -> nn.Module:
    """The activation that a method uses in place of relu, for inputs of root mean square tau."""
    if method.activation == "relu":
        return nn.ReLU()
    if method.activation == "naive":
        return StepActivation((-tau, tau), (tau, 0.0, tau))
    levels = None if method.activation == "exact" else 1
    step = match_step_activation("relu", tau=tau, levels=levels)
    return StepActivation(step.thresholds, step.heights, mean=-step.target.m0)
