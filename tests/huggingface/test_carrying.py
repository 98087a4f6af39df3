"""What a user has put on layers of a transformers model, on every way that replaces them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from transformers import (
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    TrainerCallback,
)

from hf_rmt import RMTCallback, RMTConfig, SpikedLinear, compress
from hf_rmt.plan import Cause
from tests.huggingface.training.training import classifier, fine_tune
from tests.nn.unmovable import patch_forward

LOW = RMTConfig(method="svd", rank=8, noise="drop")
LAYER = "bert.encoder.layer.0.intermediate.dense"
IDS = torch.arange(3, 10)[None]


class Patched(BertForSequenceClassification):
    """A model that changes what one of its layers does."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        patch_forward(self.get_submodule(LAYER))


class Extended(BertForSequenceClassification):
    """A model that keeps a tensor of its own on one of its layers."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.get_submodule(LAYER).register_buffer("gain", torch.ones(1))


@pytest.mark.parametrize("kind", [Patched, Extended])
def test_on_the_fly_a_layer_that_carries_more_stays_dense_and_reloads(
    kind: Any, tmp_path: Path
) -> None:
    model = classifier()
    model.save_pretrained(tmp_path / "dense")
    model = kind.from_pretrained(tmp_path / "dense", quantization_config=LOW)
    causes = {plan.name: plan.cause for plan in model.compression_report.plan}
    assert causes[LAYER] is Cause.CARRIES
    assert list(causes.values()).count(Cause.CARRIES) == 1
    assert type(model.get_submodule(LAYER)) is nn.Linear
    model.save_pretrained(tmp_path / "compact")
    again = kind.from_pretrained(tmp_path / "compact")
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits)
    again.dequantize()
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits)


def test_dequantize_refuses_a_pruned_compressed_layer_and_changes_nothing() -> None:
    model: Any = classifier().eval()
    compress(model, LOW)
    prune.l1_unstructured(model.get_submodule(LAYER), "weight", 0.5)
    before = model(IDS).logits
    with pytest.raises(ValueError, match=rf"'{LAYER}' cannot be replaced: .*call prune\.remove"):
        model.dequantize()
    assert torch.equal(model(IDS).logits, before)
    prune.remove(model.get_submodule(LAYER), "weight")
    model.dequantize()
    torch.testing.assert_close(model(IDS).logits, before)


class PatchesLate(TrainerCallback):
    """Changes a layer when the training has begun."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            patch_forward(model.get_submodule(LAYER))


def test_a_layer_that_is_patched_while_training_stays_dense_at_its_end(tmp_path: Path) -> None:
    callback = RMTCallback(RMTConfig(noise="drop"), size=0.5)
    model: Any = fine_tune(tmp_path, callback, PatchesLate()).model
    plans = {plan.name: plan for plan in model.compression_report.plan}
    assert plans[LAYER].cause is Cause.CARRIES
    assert "its method 'forward' was replaced" in plans[LAYER].reason
    assert type(model.get_submodule(LAYER)) is nn.Linear
    assert any(isinstance(part, SpikedLinear) for part in model.modules())


def test_loading_in_inference_mode_gives_the_same_model(tmp_path: Path) -> None:
    classifier().save_pretrained(tmp_path)
    with torch.inference_mode():
        model: Any = AutoModelForSequenceClassification.from_pretrained(
            tmp_path, quantization_config=LOW
        )
    same = AutoModelForSequenceClassification.from_pretrained(tmp_path, quantization_config=LOW)
    assert model.compression_report.plan.compressed
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, same(IDS).logits)
        model.dequantize()
        torch.testing.assert_close(model(IDS).logits, same(IDS).logits)


@pytest.mark.parametrize("method", [LOW, RMTConfig(method="magnitude", fraction=0.5, noise="drop")])
def test_a_model_that_was_made_in_inference_mode_is_compressed(method: RMTConfig) -> None:
    with torch.inference_mode():
        model: Any = classifier()
    compress(model, method)
    layer = model.get_submodule(LAYER)
    assert not any(parameter.is_inference() for parameter in layer.parameters())
    assert all(parameter.requires_grad for parameter in layer.parameters())
    with torch.no_grad():
        model(IDS)


def test_a_model_that_was_made_in_inference_mode_is_not_calibrated() -> None:
    with torch.inference_mode():
        model = classifier()
    with pytest.raises(ValueError, match=r"was made in inference mode, .*outside of torch\.inf"):
        compress(model, LOW, calibration=[{"input_ids": IDS}])
