"""How much of an update is kept."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer

from hf_rmt import RMTCallback, filter_update
from hf_rmt.huggingface.training.dose import SCALES
from tests.huggingface.training.test_update import blocks, trained, tuned_blocks
from tests.huggingface.training.training import QUERY, Watcher, arguments, classifier, sentences


def distance_to(target: nn.Module) -> Any:
    """The score of a model that ought to be another one."""
    wanted = [part.detach().clone() for part in target.parameters()]

    def score(model: nn.Module) -> float:
        pairs = zip(model.parameters(), wanted, strict=True)
        return -sum(float((ours - theirs).detach().square().sum()) for ours, theirs in pairs)

    return score


def between(base: nn.Module, tuned: nn.Module, scale: float) -> nn.Module:
    made = copy.deepcopy(base)
    with torch.no_grad():
        pairs = zip(made.parameters(), tuned.parameters(), strict=True)
        for ours, theirs in pairs:
            ours += scale * (theirs - ours)
    return made


@pytest.mark.parametrize("scale", SCALES)
def test_the_scale_with_the_best_score_is_found(scale: float) -> None:
    base = blocks()
    tuned, _, _ = tuned_blocks(base)
    tuned[0][0].bias.data += 1
    target = between(base, tuned, scale)
    report = filter_update(base, tuned, dose="auto", evaluate=distance_to(target))
    for ours, theirs in zip(tuned.parameters(), target.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert all(plan.reason == f"update scaled by {scale:g}" for plan in report.plan)
    assert all(plan.dropped_energy == pytest.approx((1 - scale) ** 2) for plan in report.plan)


def test_spikes_alone_are_kept_where_they_are_better() -> None:
    base = blocks()
    tuned, signal, noise = tuned_blocks(base)
    target = copy.deepcopy(base)
    target[0][0].weight.data += signal
    report = filter_update(base, tuned, dose="auto", evaluate=distance_to(target))
    assert "shrunk spikes only" in report.plan.layers[0].reason
    left = tuned[0][0].weight.detach() - target[0][0].weight.detach()
    assert left.norm() < 0.5 * noise.norm()


def test_a_number_interpolates_all_that_the_base_has(tmp_path: Path) -> None:
    tuned, base = trained(tmp_path), classifier().bert
    before = copy.deepcopy(tuned)
    filter_update(base, tuned, dose=0.5)
    expected = {f"bert.{name}": part for name, part in base.named_parameters()}
    for name, part in tuned.named_parameters():
        after = before.get_parameter(name)
        wanted = (expected[name] + after) / 2 if name in expected else after
        torch.testing.assert_close(part, wanted)
    assert torch.equal(tuned.classifier.weight, before.classifier.weight)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"dose": "auto"}, ValueError, "dose='auto' and evaluate go together"),
        ({"dose": 0.5, "evaluate": len}, ValueError, "dose='auto' and evaluate go together"),
        ({"dose": "much"}, ValueError, "dose must be 'auto', a number"),
        ({"dose": 0.0}, ValueError, "dose must lie in"),
    ],
)
def test_bad_doses_are_refused(options: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        filter_update(blocks(), blocks(), **options)


@pytest.mark.parametrize("options", [{"target": "weights"}, {"schedule": 3}])
def test_a_callback_takes_a_dose_of_an_update_when_training_ends(options: Any) -> None:
    with pytest.raises(ValueError, match="pass target='update' and no schedule"):
        RMTCallback(**{"target": "update", "dose": 0.5, **options})


def trainer_of(folder: Path, *callbacks: Any, rows: Any = None) -> Trainer:
    return Trainer(
        classifier(),
        arguments(folder, num_train_epochs=1),
        train_dataset=sentences(),
        eval_dataset=rows,
        callbacks=list(callbacks),
    )


def test_the_callback_does_what_the_function_does(tmp_path: Path) -> None:
    plain = trainer_of(tmp_path)
    plain.train()
    filter_update(classifier(), plain.model, dose=0.5)
    dosed = trainer_of(tmp_path, RMTCallback(target="update", dose=0.5))
    dosed.train()
    for ours, theirs in zip(dosed.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_callback_chooses_by_the_loss_on_rows_kept_back(tmp_path: Path) -> None:
    callback, watcher = RMTCallback(target="update", dose="auto"), Watcher()
    trainer = trainer_of(tmp_path, callback, watcher, rows=sentences(16))
    trainer.train()
    dose = callback.chosen_dose
    assert dose is not None
    assert len(dose.scores) == 2 * len(SCALES)
    key = f"{dose.scale}{' spikes' if dose.spikes else ''}"
    assert dose.scores[key] == max(dose.scores.values())
    assert trainer.evaluate()["eval_loss"] == pytest.approx(-dose.scores[key], rel=1e-5)
    if (dose.scale, dose.spikes) != (1.0, False):
        assert not torch.equal(trainer.model.get_submodule(QUERY).weight, watcher.weights[8])
    with pytest.raises(ValueError, match="chooses by the loss on eval_dataset"):
        trainer_of(tmp_path, RMTCallback(target="update", dose="auto"))
