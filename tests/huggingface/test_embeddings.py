"""A compressed output embedding cannot be resized or tied, and nothing changes when one tries."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import hf_rmt
from hf_rmt import RMTConfig

TOKENS = torch.arange(3, 9)[None]


def compressed(*targets: str) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 1}
    config = LlamaConfig(**sizes, num_attention_heads=4, vocab_size=60, pad_token_id=0)
    model: Any = LlamaForCausalLM(config).eval()
    hf_rmt.compress(model, RMTConfig(target_modules=list(targets)))
    return model


def tie(model: Any) -> None:
    model.config.tie_word_embeddings = True
    try:
        model.tie_weights()
    finally:
        model.config.tie_word_embeddings = False


CHANGES = {
    "resize": lambda model: model.resize_token_embeddings(70),
    "pad": lambda model: model.resize_token_embeddings(pad_to_multiple_of=64),
    "tie": tie,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("way", ["compressed", "loaded", "copied"])
def test_the_change_is_refused_before_anything_changes(
    change: str, way: str, tmp_path: Path
) -> None:
    model = compressed("lm_head", "q_proj")
    if way == "loaded":
        model.save_pretrained(tmp_path)
        model = LlamaForCausalLM.from_pretrained(tmp_path)
    model = copy.deepcopy(model) if way == "copied" else model
    before = model(TOKENS).logits
    with pytest.raises(ValueError, match=r"'lm_head' is compressed.*make it dense first"):
        CHANGES[change](model)
    assert torch.equal(model(TOKENS).logits, before)
    assert (model.config.vocab_size, len(model.get_input_embeddings().weight)) == (60, 60)


def test_the_remedy_helps_and_the_model_can_be_saved(tmp_path: Path) -> None:
    model = compressed("lm_head", "q_proj")
    model.set_submodule("lm_head", model.lm_head.to_dense())
    model.resize_token_embeddings(70)
    model.save_pretrained(tmp_path)
    again: Any = LlamaForCausalLM.from_pretrained(tmp_path)
    assert again.lm_head.weight.shape == (70, 48)
    assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)


def test_a_size_that_is_there_already_is_no_change() -> None:
    model = compressed("lm_head")
    for size in (None, 60):
        assert model.resize_token_embeddings(size) is model.get_input_embeddings()


def test_dense_embeddings_are_resized_as_ever_and_dequantize_gives_the_methods_back() -> None:
    model = compressed("q_proj")
    model.resize_token_embeddings(70)
    assert model.lm_head.weight.shape == (70, 48)
    model = compressed("lm_head").dequantize()
    assert not {"resize_token_embeddings", "tie_weights"} & set(vars(model))
    model.resize_token_embeddings(70)
    assert model.lm_head.weight.shape == (70, 48)
