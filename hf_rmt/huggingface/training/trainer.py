"""What callbacks ask of the Trainer that calls them."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback

from hf_rmt.huggingface.compat import calling_trainer


def check_alone(callback: TrainerCallback) -> None:
    """Refuse a second callback of the same class: both would compress the same layers.

    Raises:
        ValueError: If the Trainer has one.
    """
    trainer, kind = calling_trainer(), type(callback)
    others = trainer.callback_handler.callbacks if trainer is not None else []
    if sum(isinstance(other, kind) for other in others) > 1:
        raise ValueError(
            f"a Trainer takes one {kind.__name__}, got several, which would undo each other's "
            "work; keep one, or train twice"
        )


def check_whole_weights(callback: TrainerCallback, args: Any, model: nn.Module) -> None:
    """Refuse training that shards the weights, or keeps a copy of its own.

    Raises:
        ValueError: For FSDP, DeepSpeed and tensor parallelism.
    """
    trainer = calling_trainer()
    kinds = {
        "FSDP": args.fsdp or getattr(trainer, "is_fsdp_enabled", False),
        "DeepSpeed": args.deepspeed or getattr(trainer, "is_deepspeed_enabled", False),
        "tensor parallelism": any(hasattr(weight, "device_mesh") for weight in model.parameters()),
    }
    for kind in (kind for kind, used in kinds.items() if used):
        raise ValueError(
            f"{type(callback).__name__} needs whole weights on every process, and {kind} shards "
            "them or keeps a copy of its own, which would undo each change; train with DDP, or "
            "without the callback and call hf_rmt.compress on the saved model"
        )
