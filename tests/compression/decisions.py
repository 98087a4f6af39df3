"""Decisions on one weight."""

from __future__ import annotations

from typing import Any

import torch

from hf_rmt.compression.weight import compress_weight
from hf_rmt.settings import CompressionSettings

SPIKES = (60.0, 40.0, 25.0)


def decide(weight: torch.Tensor, **settings: Any) -> Any:
    return compress_weight("layer", weight, CompressionSettings(**settings))
