"""Finds which of the selected layers are trained; `RMTCallback` filters only these."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import nn

from hf_rmt.compression.targets.names import some

logger = logging.getLogger(__name__)


def is_trained(layer: Any) -> bool:
    """Whether the weight of a layer is trained."""
    return bool(layer.weight.requires_grad)


def trained_layers(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Those of the layers `names` that are trained. A warning lists the others, which are frozen.

    Raises:
        ValueError: If all layers are frozen.
    """
    trained = [name for name in names if is_trained(model.get_submodule(name))]
    frozen = [name for name in names if name not in trained]
    if not trained:
        raise ValueError(
            f"RMTCallback filters weights that are trained, but all {len(names)} selected layers "
            f"of this {type(model).__name__} are frozen; train some of them, or compress the model "
            "with hf_rmt.compress"
        )
    if frozen:
        logger.warning(
            "%s: frozen, so RMTCallback leaves these layers as they are; hf_rmt.compress can "
            "compress them",
            some(frozen),
        )
    return trained


def refuse_adapter(model: nn.Module) -> None:
    """Refuse a model with a PEFT adapter, because the weights of such a model are frozen.

    Raises:
        ValueError: If the model has an adapter.
    """
    if hasattr(model, "peft_config"):
        raise ValueError(
            "RMTCallback filters weights that are trained, but the weights of this "
            f"{type(model).__name__} are frozen below an adapter; train the model that "
            "model.merge_and_unload().requires_grad_(True) returns, "
            "or compress the base model and train an adapter on it: see hf_rmt.lora_targets"
        )
