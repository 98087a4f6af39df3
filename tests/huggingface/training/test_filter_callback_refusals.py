"""What `RMTCallback` refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from transformers import Trainer

from hf_rmt import RMTConfig, compress
from hf_rmt.huggingface.training.filter_callback import RMTCallback
from tests.huggingface.training.training import arguments, classifier, fine_tune


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"schedule": "day"}, ValueError, "schedule must be 'epoch', 'end' or at least 1 step"),
        ({"schedule": 0}, ValueError, "at least 1 step, got 0"),
        ({"schedule": True}, TypeError, "a number of steps, got True"),
        ({"of": "noise"}, ValueError, "of must be 'weights' or 'update', got 'noise'"),
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
        Sharded(classifier(), arguments(tmp_path), callbacks=[RMTCallback()])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # in PEFT
def test_a_compressed_model_and_an_adapter_are_refused(tmp_path: Path) -> None:
    model = classifier()
    compress(model, RMTConfig())
    with pytest.raises(ValueError, match="quantized already"):
        fine_tune(tmp_path, RMTCallback(), model=model)
    adapted = get_peft_model(classifier(), LoraConfig(target_modules=["query"]))
    with pytest.raises(ValueError, match="frozen beneath an adapter"):
        fine_tune(tmp_path, RMTCallback(), model=adapted)
