"""Runs with `RMTCallback` that were killed and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from hf_rmt import RMTConfig
from hf_rmt.huggingface.training.filter_callback import RMTCallback
from hf_rmt.huggingface.training.start_weights import START_FILE
from tests.huggingface.training.training import classifier, fine_tune

RUN_TIMES = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss")


class Power(TrainerCallback):
    """Cuts the power after a checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def comparable(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{key: log[key] for key in log if key not in RUN_TIMES} for log in history]


@pytest.mark.parametrize("schedule", ["epoch", 3])
@pytest.mark.parametrize("of", ["weights", "update"])
@pytest.mark.parametrize("killed_at", [5, 8])
def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(
    tmp_path: Path, schedule: Any, of: Any, killed_at: int
) -> None:
    config = RMTConfig(noise="drop", noise_removal=0.5)
    saving = {"save_strategy": "steps", "save_steps": killed_at, "num_train_epochs": 3}

    def callback() -> RMTCallback:
        return RMTCallback(config, schedule=schedule, target=of)

    whole = fine_tune(tmp_path / "whole", callback(), **saving)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(tmp_path / "killed", callback(), Power(killed_at), **saving)
    checkpoint = str(tmp_path / "killed" / f"checkpoint-{killed_at}")
    saving["restore_callback_states_from_checkpoint"] = killed_at == 8
    resumed = fine_tune(
        tmp_path / "killed", callback(), model=classifier(), resume=checkpoint, **saving
    )
    found, expected = resumed.model.state_dict(), whole.model.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in found)
    assert comparable(resumed.state.log_history) == comparable(whole.state.log_history)


def test_the_start_of_a_resumed_run_must_be_the_one_it_had(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 5}
    fine_tune(tmp_path, RMTCallback(target="update"), **saving)
    checkpoint = str(tmp_path / "checkpoint-5")
    other = tmp_path / "other"
    fine_tune(other, RMTCallback(target="update"), model=classifier(1), save_strategy="epoch")
    start = tmp_path / START_FILE
    start.write_bytes((tmp_path / "checkpoint-5" / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="holds others"):
        fine_tune(tmp_path, RMTCallback(target="update"), resume=checkpoint, **saving)
    start.unlink()
    with pytest.raises(FileNotFoundError, match="put it back beside the checkpoints"):
        fine_tune(tmp_path, RMTCallback(target="update"), resume=checkpoint, **saving)
