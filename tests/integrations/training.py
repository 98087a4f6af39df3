"""A small classifier with spikes in its weights, and sentences to train it on."""

from __future__ import annotations

from typing import Any

import torch
from transformers import BertForSequenceClassification, TrainingArguments, set_seed

from tests.integrations.models import tiny_model


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
