"""Runs that are killed and resumed, and what must be equal then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from hf_rmt.huggingface.training.filter_callback import RMTCallback
from tests.huggingface.training.training import classifier, fine_tune

RUN_TIMES = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss")


class Power(TrainerCallback):
    """Cuts the power after a checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def assert_goes_on(
    folder: Path, callback: Callable[[], RMTCallback], killed_at: int, saving: dict[str, Any]
) -> None:
    """A run that is killed after a step and resumed ends, and logs, like one that is not."""
    whole = fine_tune(folder / "whole", callback(), **saving)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(folder / "killed", callback(), Power(killed_at), **saving)
    checkpoint = str(folder / "killed" / f"checkpoint-{killed_at}")
    restore = {"restore_callback_states_from_checkpoint": killed_at == 8}
    resumed = fine_tune(
        folder / "killed", callback(), model=classifier(), resume=checkpoint, **saving, **restore
    )
    found, expected = resumed.model.state_dict(), whole.model.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in found)
    assert comparable(resumed.state.log_history) == comparable(whole.state.log_history)


def comparable(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{key: log[key] for key in log if key not in RUN_TIMES} for log in history]
