"""What `RMTCallback` refuses."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer

from hf_rmt import RMTConfig, compress
from hf_rmt.huggingface.training.filter_callback import RMTCallback
from tests.huggingface.test_quantizer import spiked_layers
from tests.huggingface.training.training import QUERY, arguments, classifier, fine_tune, sentences


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"schedule": "day"}, ValueError, "schedule must be 'epoch', 'end' or at least 1 step"),
        ({"schedule": 0}, ValueError, "at least 1 step, got 0"),
        ({"schedule": True}, TypeError, "a number of steps, got True"),
        ({"target": "noise"}, ValueError, "target must be one of weights, update, got 'noise'"),
        ({"size": 0}, ValueError, "size must lie in"),
        ({"size": "small"}, ValueError, "must be one of auto, got 'small'"),
        (
            {"size": 0.3, "schedule": "end"},
            ValueError,
            "cannot be used with schedule='end'",
        ),
        ({"anneal": (0, 1), "schedule": 3}, ValueError, "anneal=.* cannot be used with schedule=3"),
        ({"size": 0.3, "target": "update"}, ValueError, "cannot be used with target='update'"),
        ({"size": 0.3, "config": RMTConfig()}, ValueError, "cannot be used with noise='int8'"),
        ({"anneal": 0.5}, TypeError, r"anneal must be \(start, stop\)"),
        ({"anneal": (0.8, 0.2)}, ValueError, "0 <= start <= stop"),
        ({"log": "all"}, ValueError, "log must be True, False or 'layers', got 'all'"),
        ({"config": "drop"}, TypeError, "config must be an RMTConfig, got 'drop'"),
    ],
)
def test_bad_arguments_are_refused(change: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        RMTCallback(**change)


@pytest.mark.parametrize("kind", ["fsdp", "deepspeed"])
def test_sharded_training_is_refused_when_the_trainer_is_made(tmp_path: Path, kind: str) -> None:
    class Sharded(Trainer):
        def create_accelerator_and_postprocess(self) -> None:
            super().create_accelerator_and_postprocess()
            setattr(self, f"is_{kind}_enabled", True)

    with pytest.raises(ValueError, match=f"(?i){kind} shards them.*train with DDP"):
        Sharded(classifier(), arguments(tmp_path), callbacks=[RMTCallback(schedule="epoch")])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # in PEFT
def test_a_compressed_model_and_an_adapter_are_refused(tmp_path: Path) -> None:
    model = classifier()
    compress(model, RMTConfig())
    with pytest.raises(ValueError, match="quantized already"):
        fine_tune(tmp_path, RMTCallback(schedule="epoch"), model=model)
    adapted = get_peft_model(classifier(), LoraConfig(target_modules=["query"]))
    with pytest.raises(ValueError, match="frozen below an adapter"):
        fine_tune(tmp_path, RMTCallback(schedule="epoch"), model=adapted)


def test_a_trainer_trains_its_model_to_a_compact_one_once(tmp_path: Path) -> None:
    trainer = fine_tune(tmp_path, RMTCallback(size=0.4))
    pickle.loads(pickle.dumps(trainer.callback_handler.callbacks[-1]))
    with pytest.raises(RuntimeError, match="make a new Trainer without RMTCallback"):
        trainer.train()
    again = Trainer(trainer.model, arguments(tmp_path), train_dataset=sentences())
    before = spiked_layers(again.model)[QUERY].weight.detach().clone()
    again.train()
    assert not torch.equal(spiked_layers(again.model)[QUERY].weight, before)
