"""A training whose noise falls, killed at any step, goes on as if it had not been."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hf_rmt.huggingface.training.annealed_filter import PROBES_FILE
from hf_rmt.huggingface.training.filter_callback import RMTCallback
from hf_rmt.huggingface.training.moment_windows import MOMENTS_FILE
from tests.huggingface.training.resuming import assert_goes_on
from tests.huggingface.training.training import (
    fine_tune,
)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("killed_at", [3, 5, 6, 8, 10, 14])
def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(
    tmp_path: Path, killed_at: int, accumulation: int
) -> None:
    """While the moments of each of the three choices are gathered, at a choice, after the last."""
    saving = {
        "save_strategy": "steps",
        "save_steps": killed_at,
        "num_train_epochs": 2 * accumulation,
        "gradient_accumulation_steps": accumulation,
    }

    def callback() -> RMTCallback:
        return RMTCallback(size=0.4, anneal=(6, 12))

    assert_goes_on(tmp_path, callback, killed_at, saving)


@pytest.mark.parametrize("step", [8, 12])
def test_a_run_goes_on_in_another_folder(
    step: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """While the moments are gathered, and after the choice."""
    saving = {"save_strategy": "steps", "save_steps": step}
    whole = fine_tune(tmp_path / "one", RMTCallback(size=0.4), **saving)
    checkpoint = tmp_path / "one" / f"checkpoint-{step}"
    resume = {"resume": str(checkpoint), **saving}
    resumed = fine_tune(tmp_path / "two", RMTCallback(size=0.4), **resume)
    states = resumed.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])
    probes = PROBES_FILE.format(step=12)  # the second of three choices
    assert (tmp_path / "two" / probes).is_file()
    if step == 8:
        (checkpoint / MOMENTS_FILE.format(process=0)).unlink()
        fine_tune(tmp_path / "three", RMTCallback(size=0.4), **resume)
        assert "only the batches after the checkpoint decide" in caplog.text
        return
    for folder in ("one", "two"):
        (tmp_path / folder / probes).unlink()
    with pytest.raises(FileNotFoundError, match="put it back beside the checkpoints"):
        fine_tune(tmp_path / "two", RMTCallback(size=0.4), **resume)
