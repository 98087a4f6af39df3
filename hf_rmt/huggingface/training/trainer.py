"""Functions with which a callback checks the options of its Trainer, and scores the model.

Transformers passes a `TrainerState` to a callback, but not the Trainer. So the Trainer is found as
the object that holds this state.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import TrainerCallback

from hf_rmt.huggingface.compat import trainer_holding

logger = logging.getLogger(__name__)


def check_alone(callback: TrainerCallback, state: Any) -> None:
    """Refuse a second callback of the same class, because both would compress the same layers.

    Raises:
        ValueError: If the Trainer has a second callback of the class.
    """
    trainer, kind = trainer_holding(state), type(callback)
    others = trainer.callback_handler.callbacks if trainer is not None else []
    if sum(isinstance(other, kind) for other in others) > 1:
        raise ValueError(
            f"a Trainer takes one {kind.__name__}, got several, which would undo each other's "
            "work; keep one, or train once with each"
        )


def check_whole_weights(callback: TrainerCallback, args: Any, state: Any, model: nn.Module) -> None:
    """Refuse a training that shards the weights or keeps its own copy of them.

    Raises:
        ValueError: If the training uses FSDP, DeepSpeed or tensor parallelism.
    """
    trainer = trainer_holding(state)
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


def is_compiled(args: Any, model: nn.Module) -> bool:
    """Whether a training runs the compiled graph of its model.

    Args:
        args: `TrainingArguments`.
        model: The model that is trained.
    """
    parts = list(model.modules())
    called = any(part._compiled_call_impl is not None for part in parts)  # model.compile()
    return called or bool(args.torch_compile) or any(hasattr(part, "_orig_mod") for part in parts)


def held_out_score(args: Any, state: Any) -> Callable[[], float] | None:
    """A function that scores the model on the Trainer's evaluation rows; higher is better.

    The score of a classifier is its accuracy. Other models get minus the loss. Some evaluation rows
    may have wrong labels. If these are equally frequent in all classes, they lower the accuracy,
    but do not change which of two models is better.

    Args:
        args: `TrainingArguments`.
        state: The Trainer's state.

    Returns:
        A function that gives the same score on all processes. None, with a warning, if the Trainer
        has no evaluation rows, has several sets of them, or would convert the model to another
        dtype to evaluate it.
    """
    trainer = trainer_holding(state)
    rows = None if trainer is None else trainer.eval_dataset
    reasons = {
        "the Trainer has no evaluation rows": rows is None or not _count(rows),
        "the Trainer has several sets of evaluation rows": isinstance(rows, dict),
        "fp16_full_eval converts the model": args.fp16_full_eval,
        "bf16_full_eval converts the model": args.bf16_full_eval,
    }
    for why in (why for why, holds in reasons.items() if holds):
        warn_unjudged(why)
        return None

    def score() -> float:
        loader = trainer.get_eval_dataloader()
        labels = next(iter(loader)).get("labels")
        single = labels is not None and labels.ndim == 1 and not labels.is_floating_point()
        found = trainer.evaluation_loop(
            loader, "Judging the dose", prediction_loss_only=None if single else True
        )
        if single and getattr(found.predictions, "ndim", 0) == 2:
            return float((found.predictions.argmax(-1) == found.label_ids).mean())
        return -float(found.metrics.get("eval_loss", math.nan))

    return score


def _count(rows: Any) -> int:
    """The number of rows of a data set; 1 if it has no length."""
    return len(rows) if hasattr(rows, "__len__") else 1


def warn_unjudged(why: str) -> None:
    """Warn that nothing checks whether removing noise from the weights made the model worse.

    Args:
        why: The reason, as the words that follow "because" in the warning.
    """
    logger.warning(
        "the filtered model is not compared with the trained one, because %s. So the filter stays "
        "even if it harms: pass one eval_dataset, and evaluate in the dtype of the training",
        why,
    )
