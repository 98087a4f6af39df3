"""A model that was changed after its compression is saved as it is now, or is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

import hf_rmt
from hf_rmt import RMTConfig, SpikedLinear
from hf_rmt.huggingface.saving import card
from hf_rmt.nn.layers.step_activation import StepActivation
from hf_rmt.nn.stores.noise_store import NoiseStore
from tests.huggingface.saving.unsavable import CHANGES, pruned

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
LOW = RMTConfig(method="svd", rank=8)
IDS = torch.arange(14).view(2, 7) + 3
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "vocab_size": 50}


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "_drawn", lambda *_: b"")


def tiny(layers: int = 3) -> Any:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**SIZES, num_hidden_layers=layers)).eval()


def compressed(config: RMTConfig = LOW) -> Any:
    model = tiny()
    hf_rmt.compress(model, config)
    return model


def block(model: Any, index: int = 0) -> Any:
    return model.bert.encoder.layer[index]


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(IDS).logits


def plans(model: Any) -> dict[str, Any]:
    return {plan.name: plan for plan in model.compression_report.plan}


def reloaded(model: Any, folder: Path) -> Any:
    """The model from its files, which must act as it does, tensor for tensor."""
    model.save_pretrained(folder)
    again = BertForSequenceClassification.from_pretrained(folder)
    state = again.state_dict()
    assert set(state) == set(model.state_dict())
    assert all(torch.equal(state[key], tensor) for key, tensor in model.state_dict().items())
    assert torch.equal(logits(again), logits(model))
    return again


def first_layers(model: Any) -> None:
    model.bert.encoder.layer = model.bert.encoder.layer[:2]


def last_layers(model: Any) -> None:
    model.bert.encoder.layer = model.bert.encoder.layer[1:]


def pop(model: Any) -> None:
    model.bert.encoder.layer.pop(2)


def delete(model: Any) -> None:
    del model.bert.encoder.layer[0]


CUTS = [first_layers, last_layers, pop, delete]


@pytest.mark.parametrize("cut", CUTS)
def test_layers_are_cut_off(
    cut: Callable[[Any], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = compressed()
    before = hf_rmt.lora_targets(model)["target_parameters"]
    cut(model)
    model.config.num_hidden_layers = 2
    left = hf_rmt.lora_targets(model)["target_parameters"]
    assert left == [name for name in before if ".layer.2." not in name]
    again = reloaded(model, tmp_path)
    assert "no longer a layer of this" in caplog.text
    assert "layer.2" in caplog.text
    assert not any("layer.2" in name for name in plans(again))
    assert hf_rmt.lora_targets(again) == hf_rmt.lora_targets(model)


def test_a_layer_that_moved_to_the_place_of_a_dense_one_is_read_off(tmp_path: Path) -> None:
    names = r"bert\.encoder\.layer\.(1|2)\..*|bert\.encoder\.layer\.0\.output\.dense"
    model = compressed(LOW.replace(target_modules=names))
    other = LOW.replace(target_modules=r".*layer\.0\.attention\.self\.query", noise="int4", rank=4)
    hf_rmt.compress(model, other)
    last_layers(model)
    model.config.num_hidden_layers = 2
    again = reloaded(model, tmp_path)
    moved = plans(again)["bert.encoder.layer.0.attention.self.query"]
    assert (moved.rank, moved.noise) == (8, block(model).attention.self.query.noise.kind)


def test_a_part_is_taken_away(tmp_path: Path) -> None:
    model = tiny()
    hf_rmt.compress(model, LOW.replace(target_modules="all-linear", min_size=2))
    assert isinstance(model.bert.pooler.dense, SpikedLinear)
    model.bert.pooler = None
    hf_rmt.lora_targets(model)
    model.save_pretrained(tmp_path)
    recorded = model.config.quantization_config.layers
    assert "bert.pooler.dense" not in recorded
    assert "bert.encoder.layer.0.output.dense" in recorded


def undone(model: Any) -> None:
    block(model).output.dense = block(model).output.dense.to_dense()


def another_linear(model: Any) -> None:
    block(model).intermediate.dense = nn.Linear(64, 96)


def all_undone(model: Any) -> None:
    for name, part in list(model.named_modules()):
        if isinstance(part, SpikedLinear):
            model.set_submodule(name, part.to_dense())


def undone_by_a_copy(model: Any) -> None:
    block(model).output.dense = copy.deepcopy(tiny().bert.encoder.layer[1].output.dense)


@pytest.mark.parametrize("change", [undone, another_linear, all_undone, undone_by_a_copy])
def test_a_layer_that_was_made_dense_is_recorded_as_dense(
    change: Callable[[Any], None], tmp_path: Path
) -> None:
    model = compressed()
    change(model)
    again = reloaded(model, tmp_path)
    dense = [plan for plan in plans(again).values() if "made dense" in plan.reason]
    kept = [name for name, part in again.named_modules() if isinstance(part, SpikedLinear)]
    assert len(dense) == (18 if change is all_undone else 1)
    assert len(kept) + len(dense) == 18
    assert all(plan.bits == plan.dense_bits for plan in dense)


def test_a_layer_that_was_put_back_is_recorded_again(tmp_path: Path) -> None:
    model = compressed()
    layer = block(model).output.dense
    undone(model)
    model.save_pretrained(tmp_path)
    block(model).output.dense = layer
    again = reloaded(model, tmp_path)
    assert all(plan.compressed for plan in plans(again).values())


def other_noise(layer: Any) -> None:
    layer.noise = NoiseStore("drop", layer.out_features, layer.in_features)


def fewer_directions(layer: Any) -> None:
    layer.weight = nn.Parameter(layer.weight.detach()[:5])
    layer.rank = 5


@pytest.mark.parametrize("change", [other_noise, fewer_directions])
def test_a_compressed_layer_is_recorded_as_it_is(
    change: Callable[[Any], None], tmp_path: Path
) -> None:
    model = compressed()
    change(block(model).output.dense)
    reloaded(model, tmp_path)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("change", CHANGES)
def test_tensors_that_no_load_would_take_are_refused(change: Any, tmp_path: Path) -> None:
    model = compressed()
    undo = change(block(model).output.dense)
    message = rf"layer\.0\.output\.dense' cannot be saved.*{CHANGES[change]}"
    for save in (model.save_pretrained, model.push_to_hub):
        with pytest.raises(ValueError, match=message):
            save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    undo()
    logits(model)
    reloaded(model, tmp_path / "saved")


@pytest.mark.parametrize("config", [LOW, RMTConfig(method="svd", rank=8, noise="int8")])
def test_a_bias_that_was_added_is_refused(config: RMTConfig, tmp_path: Path) -> None:
    model = tiny()
    layer = "bert.encoder.layer.0.output.dense"
    model.get_submodule(layer).bias = None
    hf_rmt.compress(model, config)
    model.get_submodule(layer).bias = nn.Parameter(torch.ones(64))
    with pytest.raises(ValueError, match=r"cannot be saved.*bias; .*added bias cannot be saved"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_tensors_that_are_given_are_looked_at_in_place_of_those_of_the_model(
    tmp_path: Path,
) -> None:
    model = compressed()
    plain = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    pruned(block(model).output.dense)
    model.save_pretrained(tmp_path / "plain", state_dict=plain)
    again = BertForSequenceClassification.from_pretrained(tmp_path / "plain")
    assert torch.equal(logits(again), logits(compressed()))
    with pytest.raises(ValueError, match=r"weight_orig, weight_mask.*prune\.remove"):
        model.save_pretrained(tmp_path / "pruned", state_dict=model.state_dict())
    dense = hf_rmt.export_dense(compressed()).state_dict()
    with pytest.raises(
        ValueError, match=r"differs in weight; pass the tensors of model\.state_dict"
    ):
        compressed().save_pretrained(tmp_path / "plain", state_dict=dense)
    again = BertForSequenceClassification.from_pretrained(tmp_path / "plain")
    assert torch.equal(logits(again), logits(compressed()))


def test_a_step_that_was_taken_away_is_not_put_back(tmp_path: Path) -> None:
    model = tiny(1)
    batches = [{"input_ids": torch.randint(50, (8, 7))} for _ in range(2)]
    hf_rmt.compress(model, RMTConfig(method="ntk", activation="matched"), calibration=batches)
    assert any(isinstance(part, StepActivation) for part in model.modules())
    model.bert.pooler.activation = nn.Tanh()
    again = reloaded(model, tmp_path)
    assert not any(isinstance(part, StepActivation) for part in again.modules())
