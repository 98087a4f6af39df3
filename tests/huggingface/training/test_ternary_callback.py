"""`TernaryCallback`: ternary heads that train, are packed again, saved and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, Trainer

from hf_rmt import RMTConfig, TernaryCallback, compress
from hf_rmt.nn import LatentTernaryLinear, StepActivation, TernaryLinear
from tests.huggingface.training.training import arguments, classifier, fine_tune, logits, sentences
from tests.ternary.test_head import other

HEAD = ["bert.pooler.dense", "classifier"]
DECODER = "bert.encoder.layer.0.output.dense"


def ternary(dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """A classifier with a ternary head and a matched step."""
    model = classifier().to(dtype)
    batches = [{"input_ids": row["input_ids"][None]} for row in sentences()]
    options = {"activation": "matched", **options}
    compress(model, RMTConfig(method="ntk", **options), calibration=batches)
    return model


def kinds(model: Any) -> list[type]:
    return [type(model.get_submodule(name)) for name in HEAD]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_trains_is_packed_and_reloads(tmp_path: Path, dtype: torch.dtype) -> None:
    model, callback = ternary(dtype), TernaryCallback()
    start, layer = logits(model), model.classifier
    trainer = Trainer(
        model,
        arguments(tmp_path, num_train_epochs=8, learning_rate=5e-3),
        train_dataset=sentences(),
        callbacks=[callback],
    )
    assert kinds(model) == [LatentTernaryLinear] * 2
    assert model.classifier.weight.dtype == torch.float32
    torch.testing.assert_close(
        logits(model), start, rtol=0, atol=1e-5 if dtype.itemsize > 2 else 0.02
    )
    model.train()
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])
    assert kinds(model) == [TernaryLinear] * 2
    assert type(model.bert.pooler.activation) is StepActivation
    now = model.classifier
    assert now.scale.dtype == now.bias.dtype == dtype
    flips = (now.dense().sign() != layer.dense().sign()).float().mean()
    assert callback.flipped == {HEAD[0]: pytest.approx(callback.flipped[HEAD[0]]), HEAD[1]: flips}
    assert 0 < callback.flipped[HEAD[0]] < 0.9
    trainer.save_model(str(tmp_path / "saved"))
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved", dtype="auto")
    assert torch.equal(logits(again), logits(model))
    entry = again.config.quantization_config.layers["classifier"]
    assert entry["nonzero"] == int(now.dense().count_nonzero())


def test_the_packed_layer_is_the_one_that_trained(tmp_path: Path) -> None:
    class Last(TernaryCallback):
        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.latent = logits(kwargs["model"])
            super().on_train_end(args, state, control, **kwargs)

    last = Last()
    trainer = fine_tune(tmp_path, last, model=ternary(), learning_rate=5e-3)
    torch.testing.assert_close(logits(trainer.model), last.latent, rtol=0, atol=1e-5)


def test_a_training_is_resumed_from_its_latent_weights(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 5, "learning_rate": 5e-3}
    whole = fine_tune(tmp_path, TernaryCallback(), model=ternary(), **saving)
    checkpoint = str(tmp_path / "checkpoint-5")
    resumed = fine_tune(tmp_path, TernaryCallback(), model=ternary(), resume=checkpoint, **saving)
    found, expected = resumed.model.state_dict(), whole.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)


def test_the_best_model_is_packed(tmp_path: Path) -> None:
    choosing: dict[str, Any] = {
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
    }
    trainer = fine_tune(
        tmp_path,
        TernaryCallback(),
        model=ternary(),
        learning_rate=0.1,
        num_train_epochs=3,
        **choosing,
    )
    assert kinds(trainer.model) == [TernaryLinear] * 2
    losses = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-5)
    assert max(losses) > 1.01 * min(losses)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("family", "rate"), [("t5", 0.1), ("vit", 5e-3), ("roberta", 5e-3)])
def test_the_head_of_each_family_trains_alone(
    tmp_path: Path, family: str, rate: float, dtype: torch.dtype
) -> None:
    model, inputs, names = other(family)
    model = model.to(dtype)
    inputs = {key: it.to(dtype) if it.is_floating_point() else it for key, it in inputs.items()}
    config = RMTConfig(method="ntk", activation="matched")
    compress(model, config, calibration=[inputs] * 2)
    model.requires_grad_(False)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    rows = [{key: it[k] for key, it in inputs.items()} | {"labels": k % 2} for k in range(16)]
    callback, settings = TernaryCallback(), arguments(tmp_path, learning_rate=rate)
    trainer = Trainer(model, settings, train_dataset=rows, callbacks=[callback])
    trainer.train()
    assert list(callback.flipped) == names
    assert max(callback.flipped.values()) > 0
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    trainer.save_model(str(tmp_path / "saved"))
    again = type(model).from_pretrained(tmp_path / "saved", dtype="auto").eval()
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model.eval()(**inputs).logits)


def test_linears_inside_the_blocks_train_too(tmp_path: Path) -> None:
    model, callback = ternary(target_modules=[DECODER], activation="keep"), TernaryCallback()
    fine_tune(tmp_path, callback, model=model, learning_rate=5e-3)
    assert list(callback.flipped) == [DECODER]
    assert callback.flipped[DECODER] > 0


@pytest.mark.parametrize("first", ["freeze", "compress"])
def test_a_frozen_model_trains_its_ternary_weights_alone(tmp_path: Path, first: str) -> None:
    model, callback = classifier(), TernaryCallback()
    batches = [{"input_ids": row["input_ids"][None]} for row in sentences()]
    model.requires_grad_(first == "compress")
    compress(model, RMTConfig(method="ntk"), calibration=batches)
    model.requires_grad_(False)
    Trainer(model, arguments(tmp_path), train_dataset=sentences(), callbacks=[callback])
    learns = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert learns == {f"{name}.weight" for name in HEAD}


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    class Sharded(Trainer):
        def create_accelerator_and_postprocess(self) -> None:
            super().create_accelerator_and_postprocess()
            self.is_fsdp_enabled = True

    with pytest.raises(ValueError, match=r"no ternary layer to train.*method='ntk'"):
        Trainer(classifier(), arguments(tmp_path), callbacks=[TernaryCallback()])
    with pytest.raises(ValueError, match=r"TernaryCallback needs whole weights.*FSDP shards"):
        Sharded(ternary(), arguments(tmp_path), callbacks=[TernaryCallback()])


def test_two_callbacks_are_refused(tmp_path: Path) -> None:
    callbacks = [TernaryCallback(), TernaryCallback()]
    with pytest.raises(ValueError, match="takes one TernaryCallback, got several"):
        Trainer(ternary(), arguments(tmp_path), train_dataset=sentences(), callbacks=callbacks)


def test_a_callback_that_comes_too_late_says_so(tmp_path: Path) -> None:
    trainer = Trainer(ternary(), arguments(tmp_path), train_dataset=sentences())
    trainer.add_callback(TernaryCallback())
    with pytest.raises(RuntimeError, match="make a new Trainer"):
        trainer.train()
    trainer = fine_tune(tmp_path, TernaryCallback(), model=ternary())
    with pytest.raises(RuntimeError, match="make a new Trainer"):
        trainer.train()
