"""What an adapter carries whole, and what takes factors."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from transformers import (
    BertForSequenceClassification,
    BertModel,
    LlamaModel,
    ViTForImageClassification,
    ViTModel,
)

from hf_rmt import extract_adapter
from tests.huggingface.lora.adapters import WIDTH, tiny, tune


def test_embeddings_take_factors_and_tiny_ones_are_carried(pair: tuple[str, str]) -> None:
    adapter = extract_adapter(*pair, threshold=1)
    assert adapter.ranks["bert.embeddings.word_embeddings"] == WIDTH
    assert "bert.embeddings.token_type_embeddings" in adapter.modules_to_save


def test_a_head_that_the_base_lacks_is_carried_whole(tmp_path: Path) -> None:
    torch.manual_seed(0)
    BertModel(tiny("bert").config).save_pretrained(tmp_path / "base")
    start = BertForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    tuned = tune(start)
    for base in (tmp_path / "base", BertModel.from_pretrained(tmp_path / "base")):
        adapter = extract_adapter(base, tuned, threshold=1)
        assert "classifier" in adapter.modules_to_save
        carried = adapter.carried["base_model.model.classifier.weight"]
        assert torch.equal(carried, tuned.classifier.weight)
        assert "bert.encoder.layer.0.output.dense" in adapter.ranks


def test_a_head_that_no_rule_of_peft_names_is_known_by_the_files_that_lack_it(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    ViTModel(tiny("vit").config).save_pretrained(tmp_path)
    start = ViTForImageClassification.from_pretrained(tmp_path, num_labels=3)
    tuned = tune(start)
    assert "classifier" in extract_adapter(tmp_path, tuned, threshold=1).modules_to_save
    assert "classifier" in extract_adapter(start, tuned, threshold=1).ranks


def test_modules_that_peft_would_also_take_by_their_ending_are_carried() -> None:
    torch.manual_seed(0)
    base = LlamaModel(tiny("llama").config)
    tuned = copy.deepcopy(base)
    tuned.norm.weight.data += 1
    tuned.layers[0].self_attn.q_proj.weight.data += torch.randn(WIDTH, WIDTH)
    adapter = extract_adapter(base, tuned, rank=1)
    assert "layers.1.input_layernorm" in adapter.modules_to_save
    assert "base_model.model.layers.1.input_layernorm.weight" in adapter.carried
    assert list(adapter.ranks) == ["layers.0.self_attn.q_proj"]


def test_a_linear_of_which_only_the_bias_changed_carries_that_alone() -> None:
    base = tiny("bert")
    tuned = copy.deepcopy(base)
    layer = tuned.bert.encoder.layer[0].attention.self
    layer.query.weight.data += torch.randn(WIDTH, WIDTH)
    layer.key.bias.data += 1
    adapter = extract_adapter(base, tuned, rank=1)
    assert adapter.modules_to_save == ("classifier",)
    name = "base_model.model.bert.encoder.layer.0.attention.self.key.bias"
    assert set(adapter.carried) - {name} == {
        "base_model.model.classifier.weight",
        "base_model.model.classifier.bias",
    }
