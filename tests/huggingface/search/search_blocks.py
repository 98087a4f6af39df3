"""Layers with spikes of different strength, a metric of what they lost, and its values."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn

from hf_rmt import RMTConfig, SpikedLinear, compress

SIZE, LAYERS = 64, 4
GRID = (0.5, 0.75, 1.0)
CONFIG = RMTConfig(noise="drop", method="svd", rank=1)
"""A method whose fit takes no time; the noise is what lies beyond the largest direction."""


class Blocks(nn.Module):
    """Linear layers with spikes, the last of noise only, of different strength."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(SIZE, 2 * SIZE)) for _ in range(LAYERS))
        for index, block in enumerate(self.blocks):
            weight = torch.randn(2 * SIZE, SIZE, generator=generator) / SIZE**0.5
            spike = torch.outer(
                torch.randn(2 * SIZE, generator=generator), torch.randn(SIZE, generator=generator)
            )
            strength = (4.0 + 2 * index) if index < LAYERS - 1 else 0.0
            block[0].weight.data = weight + strength * spike / spike.norm()


class Metric:
    """Minus the weighted sum of what the weights of the layers lost; it counts its calls."""

    def __init__(self, model: nn.Module, prices: tuple[float, ...] = (1.0,) * LAYERS) -> None:
        self.prices, self.calls = prices, 0
        self.start = [weight.clone() for weight in weights(model)]

    def __call__(self, model: nn.Module) -> float:
        self.calls += 1
        pairs = zip(self.prices, weights(model), self.start, strict=True)
        return 1.0 - sum(price * float((new - old).norm()) for price, new, old in pairs)


def weights(model: nn.Module) -> list[torch.Tensor]:
    layers = [block[0] for block in model.blocks]
    return [
        (layer.dense() if isinstance(layer, SpikedLinear) else layer.weight).detach()
        for layer in layers
    ]


@cache
def losses() -> dict[float, list[float]]:
    """What each layer loses at each fraction, by compress itself."""
    start = weights(Blocks())
    result = {}
    for fraction in GRID:
        other = Blocks()
        compress(other, CONFIG.replace(noise_removal=fraction))
        pairs = zip(weights(other), start, strict=True)
        result[fraction] = [float((new - old).norm()) for new, old in pairs]
    return result
