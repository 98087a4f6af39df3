"""How much of an update is kept."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerState

from hf_rmt import RMTCallback, filter_update
from hf_rmt.compression.shrinkage import participation_ratio
from hf_rmt.huggingface.training import scheduled_filter
from hf_rmt.huggingface.training.dose import SCALES
from hf_rmt.huggingface.training.trainer import held_out_score
from tests.huggingface.training.resuming import Power
from tests.huggingface.training.test_update import blocks, trained, tuned_blocks
from tests.huggingface.training.training import (
    QUERY,
    Watcher,
    arguments,
    classifier,
    fine_tune,
    rank,
    sentences,
)


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
        ({"dose": "auto"}, ValueError, "needs exactly one of early and evaluate, .* with neither"),
        (
            {"dose": 0.5, "evaluate": len},
            ValueError,
            "no other dose takes them; got dose=0.5 with ev",
        ),
        ({"dose": "auto", "evaluate": len, "early": "x"}, ValueError, "early and evaluate"),
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


def test_the_callback_keeps_what_lies_in_the_directions_of_the_early_update(
    tmp_path: Path,
) -> None:
    watcher, start = Watcher(), classifier().get_submodule(QUERY).weight.detach()
    trainer = trainer_of(tmp_path, watcher, RMTCallback(target="update", dose="auto"))
    trainer.train()
    early, late = watcher.weights[2] - start, watcher.weights[8] - start
    u, s, v = torch.linalg.svd(early.double())
    count = round(participation_ratio(s))
    left, right = u[:, :count], v[:count]
    expected = left @ (left.T @ late.double() @ right.T) @ right
    update = trainer.model.get_submodule(QUERY).weight.detach() - start
    torch.testing.assert_close(update, expected.float(), rtol=1e-3, atol=1e-6)
    assert rank(update) == count
    assert not trainer.model.classifier.weight.equal(classifier().classifier.weight)


def test_the_function_does_so_with_a_checkpoint(tmp_path: Path) -> None:
    settings = arguments(tmp_path, num_train_epochs=1, save_strategy="steps", save_steps=2)
    plain = Trainer(classifier(), settings, train_dataset=sentences())
    plain.train()
    report = filter_update(classifier(), plain.model, dose="auto", early=tmp_path / "checkpoint-2")
    expected = trainer_of(tmp_path, RMTCallback(target="update", dose="auto"))
    expected.train()
    for ours, theirs in zip(plain.model.parameters(), expected.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    reasons = [re.fullmatch(r"along (\d+) early directions", plan.reason) for plan in report.plan]
    assert all(found is not None and int(found[1]) > 1 for found in reasons)
    assert all(0 < plan.dropped_energy < 1 for plan in report.plan)


@pytest.mark.parametrize("killed_at", [1, 3])
@pytest.mark.parametrize("dose", ["auto", 0.5])
def test_a_dosed_run_that_was_killed_goes_on_as_if_it_had_not_been(
    tmp_path: Path, killed_at: int, dose: Any
) -> None:
    saving = {"save_strategy": "steps", "save_steps": killed_at, "num_train_epochs": 1}

    def callback() -> RMTCallback:
        return RMTCallback(target="update", dose=dose)

    whole = fine_tune(tmp_path / "whole", callback(), **saving)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(tmp_path / "killed", callback(), Power(killed_at), **saving)
    checkpoint = str(tmp_path / "killed" / f"checkpoint-{killed_at}")
    for folder in ("killed", "other"):
        resumed = fine_tune(tmp_path / folder, callback(), resume=checkpoint, **saving)
        found, expected = resumed.model.state_dict(), whole.model.state_dict()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_training_that_ends_before_a_quarter_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = True

    watcher = Watcher()
    trainer = trainer_of(tmp_path, RMTCallback(target="update", dose="auto"), watcher, Stop())
    trainer.train()
    assert torch.equal(trainer.model.get_submodule(QUERY).weight, watcher.weights[1])
    assert "has no early directions" in caplog.text


@pytest.mark.parametrize("classes", [True, False])
def test_evaluation_rows_give_an_accuracy_or_a_loss(classes: bool, tmp_path: Path) -> None:
    seen: list[float] = []

    class Scores(RMTCallback):
        def on_train_end(self, args: Any, state: Any, *others: Any, **kwargs: Any) -> None:
            score = held_out_score(args, state)
            assert score is not None
            seen.append(score())

    rows, model = sentences(), classifier()
    if not classes:  # labels of several classes at once are no integers
        rows = [{**row, "labels": torch.eye(2)[row["labels"]]} for row in rows]
        model.config.problem_type = "multi_label_classification"
    settings = arguments(tmp_path, num_train_epochs=1)
    told: dict[str, Any] = {"train_dataset": rows, "eval_dataset": rows}
    trainer = Trainer(model, settings, callbacks=[Scores(size=0.4)], **told)
    trainer.train()
    found = trainer.predict(rows)
    expected = -found.metrics["test_loss"]
    if classes:
        expected = float((found.predictions.argmax(-1) == found.label_ids).mean())
    assert seen == [pytest.approx(expected, rel=1e-4)]
    assert held_out_score(settings, TrainerState()) is None  # no Trainer holds this one


@pytest.mark.parametrize(
    ("rows", "change", "words"),
    [
        (None, {}, "has no evaluation rows"),
        ("none", {}, "has no evaluation rows"),
        ("several", {}, "has several sets of evaluation rows"),
        ("one", {"bf16_full_eval": True}, "bf16_full_eval converts the model"),
        ("one", {}, ""),
    ],
)
def test_a_dose_that_nothing_judges_says_so(
    rows: str | None,
    change: dict[str, Any],
    words: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    judged = {"one": sentences(), "several": {"a": sentences()}, "none": []}.get(rows or "")
    settings = arguments(tmp_path, num_train_epochs=1, **change)
    callback = RMTCallback(target="update", dose="auto")
    told: dict[str, Any] = {"train_dataset": sentences(), "eval_dataset": judged}
    Trainer(classifier(), settings, callbacks=[callback], **told).train()
    assert ("is not compared with the trained one" in caplog.text) is bool(words)
    assert words in caplog.text


@pytest.mark.parametrize(("scores", "stays"), [((0.9, 0.8), False), ((0.8, 0.9), True)])
def test_a_score_says_whether_the_dose_stays(
    scores: tuple[float, float],
    stays: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain = trainer_of(tmp_path)
    plain.train()
    told = iter(scores)
    monkeypatch.setattr(scheduled_filter, "held_out_score", lambda args, state: lambda: next(told))
    callback = RMTCallback(target="update", dose="auto")
    trainer = trainer_of(tmp_path, callback, rows=sentences())
    trainer.train()
    pickle.dumps(callback)
    ours, theirs = (each.model.get_submodule(QUERY).weight for each in (trainer, plain))
    assert torch.equal(ours, theirs) is not stays
    assert ("lowers the score on the evaluation rows" in caplog.text) is not stays
