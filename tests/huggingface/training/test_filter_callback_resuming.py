"""Runs with `RMTCallback` that were killed and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hf_rmt import RMTConfig
from hf_rmt.huggingface.training.filter_callback import RMTCallback
from hf_rmt.huggingface.training.start_weights import START_FILE
from tests.huggingface.training.resuming import assert_goes_on
from tests.huggingface.training.training import classifier, fine_tune


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

    assert_goes_on(tmp_path, callback, killed_at, saving)


def test_the_start_of_a_resumed_run_must_be_the_one_it_had(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 5}
    fine_tune(tmp_path, RMTCallback(target="update"), **saving)
    checkpoint = str(tmp_path / "checkpoint-5")
    other = tmp_path / "other"
    fine_tune(other, RMTCallback(target="update"), model=classifier(1), save_strategy="epoch")
    start = tmp_path / START_FILE
    start.write_bytes((tmp_path / "checkpoint-5" / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="holds other tensors"):
        fine_tune(tmp_path, RMTCallback(target="update"), resume=checkpoint, **saving)
    start.unlink()
    with pytest.raises(FileNotFoundError, match="put it back beside the checkpoints"):
        fine_tune(tmp_path, RMTCallback(target="update"), resume=checkpoint, **saving)
