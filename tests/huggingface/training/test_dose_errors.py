"""What a dose leaves of a model after errors, scores of nan and layers that were frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from hf_rmt import RMTCallback, filter_update
from hf_rmt.huggingface.training import scheduled_filter
from hf_rmt.huggingface.training.dose import UNCHANGED, worse
from tests.huggingface.training.training import (
    QUERY,
    Watcher,
    arguments,
    classifier,
    fine_tune,
    sentences,
)


def moved(seed: int = 1) -> Any:
    """The classifier after a training."""
    model = classifier()
    generator = torch.Generator().manual_seed(seed)
    for part in model.parameters():
        part.data += 0.01 * torch.randn(part.shape, generator=generator)
    return model


def failing(number: int, value: Any) -> Any:
    """A score that is an error, or no number, from the given call on."""
    calls = iter(range(100))

    def evaluate(_: Any) -> Any:
        if next(calls) < number:
            return 0.5
        if isinstance(value, BaseException):
            raise value
        return value

    return evaluate


@pytest.mark.parametrize(
    ("number", "value", "error", "words"),
    [
        (5, MemoryError("no room"), MemoryError, "no room"),
        (5, KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
        (3, None, TypeError, "evaluate must return a number"),
        (0, {"accuracy": 1.0}, TypeError, "evaluate must return a number"),
        (0, float("nan"), ValueError, "evaluate gave no finite score at 12 doses"),
    ],
)
def test_after_an_error_the_model_is_as_it_was_tuned(
    number: int, value: Any, error: Any, words: str
) -> None:
    tuned = moved()
    before = {name: part.clone() for name, part in tuned.state_dict().items()}
    with pytest.raises(error, match=words):
        filter_update(classifier(), tuned, dose="auto", evaluate=failing(number, value))
    assert all(torch.equal(part, before[name]) for name, part in tuned.state_dict().items())


def test_a_diverged_model_is_refused_by_the_name_of_its_layer() -> None:
    tuned = moved()
    tuned.get_submodule(QUERY).weight.data[0, 0] = torch.nan
    for told in ({"evaluate": lambda _: 1.0}, {"early": moved(2)}):
        with pytest.raises(ValueError, match=rf"'{QUERY}' in the tuned model holds nan or inf"):
            filter_update(classifier(), tuned, dose="auto", **told)


def test_a_layer_without_early_directions_keeps_its_update(
    caplog: pytest.LogCaptureFixture,
) -> None:
    base, early, tuned = classifier(), moved(2), moved()
    late, broken = (QUERY.replace("query", part) for part in ("key", "value"))
    early.get_submodule(late).load_state_dict(base.get_submodule(late).state_dict())
    early.get_submodule(broken).weight.data[0, 0] = torch.inf
    before = {name: tuned.get_submodule(name).weight.clone() for name in (late, broken, QUERY)}
    report = filter_update(base, tuned, dose="auto", early=early)
    stay = {
        name: torch.equal(tuned.get_submodule(name).weight, weight)
        for name, weight in before.items()
    }
    assert stay == {late: True, broken: True, QUERY: False}
    assert {plan.name for plan in report.plan if plan.reason == UNCHANGED} == {late, broken}
    assert f"{late}, {broken}: no early directions" in caplog.text
    with pytest.raises(ValueError, match="base and early are equal"):
        filter_update(base, tuned, dose="auto", early=classifier())


def test_a_score_that_is_no_number_is_worse_than_any() -> None:
    assert worse(0.9, float("nan"))
    assert worse(0.9, 0.8)
    assert not worse(0.8, 0.8)


@pytest.mark.parametrize(
    ("scores", "stays"),
    [("0.9 nan", False), ("nan", True), ("0.9 error", False)],
)
def test_a_dose_is_undone_if_its_score_is_nan_or_fails(
    scores: str,
    stays: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = iter(scores.split())

    def score() -> float:
        value = next(told)
        if value == "error":
            raise ConnectionError("metric server is down")
        return float(value)

    monkeypatch.setattr(scheduled_filter, "held_out_score", lambda args, state: score)
    watcher = Watcher()
    callback, model = RMTCallback(target="update", dose="auto"), classifier()
    try:
        fine_tune(tmp_path, callback, watcher, model=model)
    except ConnectionError:
        assert "error" in scores
    else:
        assert "error" not in scores
    last = watcher.weights[max(watcher.weights)]
    assert torch.equal(model.get_submodule(QUERY).weight, last) is not stays


def test_a_training_that_diverged_ends_without_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Diverges(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            return model(**inputs).loss * float("nan")

    callbacks = [RMTCallback(target="update", dose="auto")]
    told: dict[str, Any] = {"train_dataset": sentences(), "callbacks": callbacks}
    Diverges(classifier(), arguments(tmp_path), **told).train()
    assert "no early directions" in caplog.text
