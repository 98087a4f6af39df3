"""A small classifier with spikes in its weights, sentences to train it on, and what to watch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from tests.huggingface.models import tiny_model

QUERY = "bert.encoder.layer.0.attention.self.query"


def classifier(seed: int = 0) -> BertForSequenceClassification:
    bert = tiny_model("bert")
    set_seed(seed)
    model = BertForSequenceClassification(bert.config)
    model.bert.load_state_dict(bert.state_dict(), strict=False)
    return model


def sentences(count: int = 64) -> list[dict[str, Any]]:
    tokens = torch.randint(3, 50, (count, 7), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": int(row[1] > 25)} for row in tokens]


def arguments(folder: Any, **changes: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return TrainingArguments(str(folder), **(settings | changes))


class Watcher(TrainerCallback):
    """Weights of one layer after every step, and what reports are given."""

    def __init__(self) -> None:
        self.weights: dict[int, torch.Tensor] = {}
        self.logs: list[dict[str, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        self.weights[state.global_step] = model.get_submodule(QUERY).weight.detach().clone()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any, **kwargs: Any) -> None:
        self.logs.append({**logs, "step": state.global_step})


def fine_tune(
    folder: Path, *callbacks: TrainerCallback, model: Any = None, resume: Any = None, **changes: Any
) -> Trainer:
    trainer = Trainer(
        classifier() if model is None else model,
        arguments(folder, **changes),
        train_dataset=sentences(),
        eval_dataset=sentences(16),
        callbacks=list(callbacks),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def rank(matrix: torch.Tensor) -> int:
    values = torch.linalg.svdvals(matrix.double())
    return int((values > 1e-6 * values[0]).sum())


def logits(model: Any) -> torch.Tensor:
    batch = torch.stack([entry["input_ids"] for entry in sentences(8)])
    with torch.no_grad():
        return model.eval()(batch).logits


def spectra(trainer: Trainer) -> list[dict[str, float]]:
    return [log for log in trainer.state.log_history if "rmt/spikes" in log]
