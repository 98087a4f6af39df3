"""Hidden layers with random weights: dense, ternary or heuristic, and the bits that they take."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from hf_rmt.kernels import MatchedStep, match_network, match_step_activation
from hf_rmt.nn import StepActivation, TernaryLinear

DEPTH = 3
FLOAT = 32
DENSE = "dense"
BEYOND_ONE = 0.31731050786291415
"""The probability that a standard normal number lies outside of [-1, 1]."""


@dataclass(frozen=True)
class Method:
    """The weights and activations of the hidden layers.

    Args:
        weights: `gaussian`, `ternary`, `zeroed` (uniformly) or `pruned` (by magnitude).
        sparsity: Share of zero weights.
        activation: `relu`; `exact` or `one level`, which are steps that match relu; or `naive`,
            which is 1 if |x| > 1 and 0 if not.
    """

    weights: str
    sparsity: float
    activation: str

    @property
    def is_ours(self) -> bool:
        """Whether the method is one of ours: ternary weights with a step activation."""
        return self.weights == "ternary" and self.activation != "relu"


METHODS = {
    DENSE: Method("gaussian", 0.0, "relu"),
    "ternary, sparsity 0, exact": Method("ternary", 0.0, "exact"),
    "ternary, sparsity 0.5, exact": Method("ternary", 0.5, "exact"),
    "ternary, sparsity 0.9, exact": Method("ternary", 0.9, "exact"),
    "ternary, sparsity 0.9, 1 bit": Method("ternary", 0.9, "one level"),
    "ternary, sparsity 0.9, relu": Method("ternary", 0.9, "relu"),
    "80 % zeroed uniformly": Method("zeroed", 0.8, "relu"),
    "naive binary activation": Method("gaussian", 0.0, "naive"),
    "90 % pruned by magnitude": Method("pruned", 0.9, "relu"),
}


class Hidden(nn.Module):
    """A layer x -> s(W x) / divisor with a weight W and an activation s."""

    def __init__(self, linear: nn.Module, activation: nn.Module, *, divisor: float) -> None:
        super().__init__()
        self.linear, self.activation, self.divisor = linear, activation, divisor

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.linear(x)) / self.divisor


class CentredRelu(nn.Module):
    """The activation max(x, 0) minus a given mean."""

    def __init__(self, mean: float) -> None:
        super().__init__()
        self.mean = mean

    def forward(self, x: Tensor) -> Tensor:
        return x.relu() - self.mean


def hidden_layers(method: Method, sizes: Sequence[int], seed: int) -> nn.Sequential:
    """The random layers of a method, for inputs of norm 1.

    Args:
        method: The weights and activations of the layers.
        sizes: Width of the input, then the width of each layer.
        seed: Seed of the weights.
    """
    steps = match_network(["relu"] * (len(sizes) - 1), tau=1.0, levels=None)
    layers = []
    for place, (step, shape) in enumerate(zip(steps, pairwise(sizes), strict=True)):
        linear = random_linear(method, shape, len(steps) * seed + place)
        layers.append(Hidden(linear, activation_of(method, step), divisor=shape[1] ** 0.5))
    return nn.Sequential(*layers)


def activation_of(method: Method, step: MatchedStep) -> nn.Module:
    """The centred activation of a layer; `step` is the step that matches relu in this layer.

    The naive activation is scaled to variance 1. Then the inputs of the next activation also have
    variance 1.
    """
    if method.activation == "relu":
        return CentredRelu(step.target.m0)
    if method.activation == "naive":
        height = (BEYOND_ONE * (1 - BEYOND_ONE)) ** -0.5
        return StepActivation((-1.0, 1.0), (height, 0.0, height), mean=BEYOND_ONE * height)
    if method.activation == "one level":
        one = match_step_activation("relu", tau=step.target.tau)
        scale = one.target.tau_out / one.moments.tau_out
        return StepActivation(one.thresholds, [scale * height for height in one.heights])
    return StepActivation(step.thresholds, step.heights)


def random_linear(method: Method, sizes: Sequence[int], seed: int) -> nn.Module:
    """A layer of weights of mean 0 and variance 1, without bias."""
    inputs, outputs = sizes
    if method.weights == "ternary":
        return TernaryLinear.random(inputs, outputs, method.sparsity, seed)
    generator = torch.Generator().manual_seed(seed)
    linear = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=False).requires_grad_(False)
    weight = linear.weight.normal_(generator=generator)
    if method.weights == "zeroed":
        zero(weight, method.sparsity, generator)
    elif method.weights == "pruned":
        prune(weight, method.sparsity)
    weight /= weight.square().mean().sqrt()
    return linear


def zero(weight: Tensor, share: float, generator: torch.Generator) -> None:
    """Set entries to 0, each with the probability `share`."""
    weight *= torch.rand(weight.shape, generator=generator) >= share


def prune(weight: Tensor, share: float) -> None:
    """Set a share of the entries to 0, those that are smallest in size."""
    count = round(share * weight.numel())
    weight *= weight.abs() > weight.abs().flatten().kthvalue(count).values


def weight_bits(linear: nn.Module) -> tuple[int, int]:
    """Bits of a layer's weights, packed as in memory and coded as in a file."""
    ternary = isinstance(linear, TernaryLinear)
    mask = (linear.dense() if ternary else linear.weight).numpy() != 0
    kept, value = int(mask.sum()), 1 if ternary else FLOAT
    scale = FLOAT * linear.scale.numel() if ternary else 0
    if mask.all():
        packed = coded = value * kept
    else:
        flags = np.packbits(mask).tobytes()
        packed, coded = mask.size + value * kept, 8 * len(huffman(flags)) + value * kept
    return (8 * linear.weight.numel() if ternary else packed) + scale, min(packed, coded) + scale


def huffman(content: bytes) -> bytes:
    """The bytes in Huffman code, in which more frequent values have shorter code words."""
    coder = zlib.compressobj(strategy=zlib.Z_HUFFMAN_ONLY)
    return coder.compress(content) + coder.flush()


def value_bits(activation: nn.Module) -> int:
    """Bits of one value of an activation."""
    if isinstance(activation, StepActivation):
        return (len(activation.heights.unique()) - 1).bit_length()
    return FLOAT
