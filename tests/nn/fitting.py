"""A short training of one layer."""

from __future__ import annotations

import torch
from torch import nn


def losses_of(
    layer: nn.Module, x: torch.Tensor, target: torch.Tensor, *, lr: float, steps: int
) -> list[float]:
    """Train a layer by SGD to give `target` for `x`; returns the loss before each step."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=lr)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (layer(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
