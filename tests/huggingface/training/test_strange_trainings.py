"""Trainings that are compiled, interrupted, joined late, or whose optimizer keeps copies."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, Trainer, TrainerCallback

import hf_rmt
from hf_rmt import RMTConfig, TernaryCallback
from hf_rmt.huggingface.training.filter_callback import RMTCallback
from hf_rmt.nn import LatentTernaryLinear, TernaryLinear
from tests.huggingface.test_quantizer import spiked_layers
from tests.huggingface.training.training import QUERY, arguments, classifier, fine_tune, sentences

SIX = 6
"""Layers of the classifier's blocks."""


class Interrupt(TrainerCallback):
    """Ctrl-C in a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("by", ["model", "arguments"])
def test_a_compiled_model_is_measured(by: str, tmp_path: Path) -> None:
    plain = fine_tune(tmp_path / "plain", RMTCallback(size=0.4))
    torch._dynamo.reset()
    if by == "model":
        model = torch.compile(classifier(), backend="eager")
        told: dict[str, Any] = {"remove_unused_columns": False}
    else:
        model, told = classifier(), {"torch_compile": True, "torch_compile_backend": "eager"}
    trainer = fine_tune(tmp_path, RMTCallback(size=0.4), model=model, **told)
    ranks = {
        name.removeprefix("_orig_mod."): layer.rank
        for name, layer in spiked_layers(trainer.model).items()
    }
    expected = {name: layer.rank for name, layer in spiked_layers(plain.model).items()}
    assert ranks == expected
    assert torch._dynamo.eval_frame._stance.stance == "default"


def test_an_interrupted_training_hinders_nothing_later(tmp_path: Path) -> None:
    model = classifier()
    with pytest.raises(KeyboardInterrupt):
        fine_tune(tmp_path, RMTCallback(size=0.4), Interrupt(5), model=model)
    file = io.BytesIO()
    torch.save(model, file)  # the hooks that are left can be pickled
    file.seek(0)
    copy = torch.load(file, weights_only=False)
    copy(input_ids=torch.ones(1, 4, dtype=torch.long)).logits.sum().backward()
    callback = RMTCallback(size=0.4)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(tmp_path, callback, Interrupt(5), model=model)
    trainer = fine_tune(tmp_path, callback, model=model)
    assert len(spiked_layers(trainer.model)) == SIX


@pytest.mark.parametrize(("step", "saves"), [(4, "steps"), (12, "no"), (15, "no")])
def test_a_callback_may_join_when_a_plain_run_is_resumed(
    step: int, saves: str, tmp_path: Path
) -> None:
    fine_tune(tmp_path, save_strategy="steps", save_steps=1)
    resume = str(tmp_path / f"checkpoint-{step}")
    told = {"resume": resume, "save_strategy": saves, "save_steps": 2}
    trainer = fine_tune(tmp_path, RMTCallback(size=0.4), **told)
    assert len(spiked_layers(trainer.model)) == SIX


def test_a_run_that_was_joined_is_resumed_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    saves = {"save_strategy": "steps", "save_steps": 1}
    fine_tune(tmp_path, **saves)
    whole, resumed = (
        fine_tune(
            tmp_path, RMTCallback(size=0.4), resume=str(tmp_path / f"checkpoint-{step}"), **saves
        )
        for step in (12, 14)
    )
    for name, layer in spiked_layers(whole.model).items():
        assert torch.equal(resumed.model.get_submodule(name).dense(), layer.dense())


class WithCopies(torch.optim.SGD):
    """Keeps a copy of the weights and writes it over them after each step."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for part in self.param_groups[0]["params"]:
            own = self.state[part].setdefault("copy", part.detach().clone())
            part.copy_(own.sub_(self.param_groups[0]["lr"] * part.grad))


@pytest.mark.parametrize("optimizer", [WithCopies, torch.optim.SGD])
def test_an_optimizer_that_undoes_the_cuts_is_told_of(
    optimizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Own(Trainer):
        def create_optimizer(self, *args: Any) -> Any:
            self.optimizer = optimizer(self.model.parameters(), lr=1e-3)
            return self.optimizer

    told = {"train_dataset": sentences(), "callbacks": [RMTCallback(size=0.3, anneal=(2, 8))]}
    Own(classifier(), arguments(tmp_path), **told).train()
    assert ("the noise came back" in caplog.text) is (optimizer is WithCopies)


def ternary() -> Any:
    model = classifier()
    batch = {"input_ids": torch.stack([row["input_ids"] for row in sentences()])}
    hf_rmt.compress(model, RMTConfig(method="ntk"), calibration=[batch])
    return model


def kinds(model: nn.Module) -> list[type]:
    known = (TernaryLinear, LatentTernaryLinear)
    return [type(part) for part in model.modules() if isinstance(part, known)]


def test_an_interrupted_ternary_training_goes_on_or_is_packed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, batch = ternary(), {"input_ids": torch.stack([sentences(8)[0]["input_ids"]])}
    with pytest.raises(KeyboardInterrupt):
        fine_tune(tmp_path, TernaryCallback(), Interrupt(5), model=model)
    model.eval().save_pretrained(tmp_path / "latent")
    assert "call TernaryCallback.pack(model)" in caplog.text
    latent = model(**batch).logits
    TernaryCallback.pack(model)
    assert set(kinds(model)) == {TernaryLinear}
    torch.testing.assert_close(model(**batch).logits, latent)
    model.save_pretrained(tmp_path / "packed")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "packed")
    assert torch.equal(again(**batch).logits, model(**batch).logits)

    other, callback = ternary(), TernaryCallback()
    with pytest.raises(KeyboardInterrupt):
        fine_tune(tmp_path, TernaryCallback(), Interrupt(5), model=other)
    fine_tune(tmp_path, callback, model=other)
    assert set(kinds(other)) == {TernaryLinear}
    assert set(callback.flipped) == {"bert.pooler.dense", "classifier"}


def test_checkpoints_of_a_ternary_training_warn_of_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = {"save_strategy": "steps", "save_steps": 5}
    fine_tune(tmp_path, TernaryCallback(), model=ternary(), **told)
    assert "TernaryCallback.pack" not in caplog.text


def test_a_training_without_dropout_is_measured(tmp_path: Path) -> None:
    class InEvalMode(Trainer):
        def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
            with_dropout, model.train = model.train, lambda mode=True: model  # type: ignore[method-assign]
            model.eval()
            loss = super().training_step(model, *args, **kwargs)
            model.train = with_dropout  # type: ignore[method-assign]
            return loss

    told = {"train_dataset": sentences(), "callbacks": [RMTCallback(size=0.4)]}
    trainer = InEvalMode(classifier(), arguments(tmp_path), **told)
    trainer.train()
    assert len(spiked_layers(trainer.model)) == SIX
    assert QUERY in spiked_layers(trainer.model)
