from __future__ import annotations

import torch

from hf_rmt.nn import NoiseStore


def filled(kind: str, weight: torch.Tensor) -> NoiseStore:
    """A store that holds a weight."""
    store = NoiseStore(kind, *weight.shape, dtype=weight.dtype)
    store.store(weight)
    return store


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    """The same normal numbers for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
