"""What callbacks ask of their Trainer, and of the run that they resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer

from hf_rmt import RMTConfig
from hf_rmt.huggingface.training.callback_arguments import check_same
from hf_rmt.huggingface.training.filter_callback import RMTCallback
from tests.huggingface.training.training import arguments, classifier, fine_tune

ONE = "takes one RMTCallback, got several.*keep one"


def test_a_second_callback_is_refused_when_the_trainer_is_made(tmp_path: Path) -> None:
    both = [RMTCallback(schedule="epoch"), RMTCallback(target="update")]
    with pytest.raises(ValueError, match=ONE):
        Trainer(classifier(), arguments(tmp_path), callbacks=both)


def test_a_callback_that_comes_later_is_refused_before_training(tmp_path: Path) -> None:
    trainer = Trainer(classifier(), arguments(tmp_path), callbacks=[RMTCallback(schedule="epoch")])
    trainer.add_callback(RMTCallback(target="update"))
    trainer.train_dataset = [{"input_ids": [3], "labels": 0}]
    with pytest.raises(ValueError, match=ONE):
        trainer.train()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run with half of the noise of its weights removed, and a checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    config = RMTConfig(noise="drop", noise_removal=0.5, target_modules=("query", "key"))
    fine_tune(folder, RMTCallback(config, schedule="epoch"), save_strategy="steps", save_steps=5)
    return folder


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target": "update"}, "target must stay 'weights', .* got 'update'; pass that"),
        ({"noise_removal": 0.7}, "noise_removal must stay 0.5, .* got 0.7"),
        ({"target_modules": ["query"]}, r"target_modules must stay \['query', 'key'\], .* got"),
    ],
)
def test_a_run_is_resumed_under_the_settings_it_began_with(
    run: Path, change: dict[str, Any], words: str
) -> None:
    settings = {"noise_removal": 0.5, "target_modules": ["query", "key"]} | change
    target = settings.pop("target", "weights")
    callback = RMTCallback(RMTConfig(noise="drop", **settings), target=target, schedule="epoch")
    with pytest.raises(ValueError, match=words):
        fine_tune(run, callback, resume=str(run / "checkpoint-5"))


@pytest.mark.parametrize(
    "change", [{"size": 0.3}, {"anneal": (0.1, 0.5)}, {"config": RMTConfig(noise="drop")}]
)
def test_what_an_annealed_run_began_with_must_stay(change: dict[str, Any]) -> None:
    began, goes_on = RMTCallback().state()["args"], RMTCallback(**change).state()["args"]
    check_same(began, began)
    with pytest.raises(ValueError, match=rf"({next(iter(change))}|size) must stay"):
        check_same(goes_on, began)


def test_schedule_and_log_may_change_on_the_way(run: Path, tmp_path: Path) -> None:
    config = RMTConfig(noise="drop", noise_removal=0.5, target_modules=["query", "key"])
    callback = RMTCallback(config, schedule="end", log=False)
    trainer = fine_tune(tmp_path, callback, resume=str(run / "checkpoint-5"))
    assert trainer.state.global_step == 16
