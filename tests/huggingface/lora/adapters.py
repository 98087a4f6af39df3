"""Tiny models of the families that adapters are made for, and what fine-tuning makes of them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

WIDTH, VOCABULARY = 24, 40
FAMILIES = ("bert", "roberta", "t5", "vit", "llama")


def tiny(family: str) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 40}
    text = {"vocab_size": VOCABULARY, "max_position_embeddings": 20}
    if family == "bert":
        return BertForSequenceClassification(BertConfig(**sizes, **text)).eval()
    if family == "roberta":
        return RobertaForSequenceClassification(RobertaConfig(**sizes, **text)).eval()
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**sizes, **text, tie_word_embeddings=True)).eval()
    if family == "vit":
        return ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4)).eval()
    size = {"d_model": WIDTH, "d_kv": 12, "d_ff": 40, "num_layers": 1, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(**size, vocab_size=VOCABULARY)).eval()


@torch.no_grad()
def tune(model: nn.Module, *, strength: float = 0.03) -> Any:
    """A copy in which every parameter was changed, matrices most of all in a few directions."""
    tuned, generator = copy.deepcopy(model), torch.Generator().manual_seed(1)
    for parameter in tuned.parameters():
        parameter += strength * torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 2:
            for size in (9.0, 6.0, 4.0):
                left, right = (torch.randn(n, generator=generator) for n in parameter.shape)
                parameter += strength * size * torch.outer(left / left.norm(), right)
    return tuned.eval()


def inputs(family: str, seed: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    if family == "vit":
        return {"pixel_values": torch.randn(3, 3, 8, 8, generator=generator)}
    tokens = torch.randint(3, VOCABULARY, (3, 7), generator=generator)
    return {"input_ids": tokens} | ({"decoder_input_ids": tokens} if family == "t5" else {})


@torch.no_grad()
def logits(model: nn.Module, family: str) -> Tensor:
    return model(**inputs(family)).logits


@torch.no_grad()
def rebuilt(base: nn.Module, tuned: nn.Module, adapter: Any) -> Any:
    """The dense model that the adapter stands for: tuned, its updates replaced by the factors."""
    dense = copy.deepcopy(tuned)
    for update in adapter.updates:
        weight = base.get_submodule(update.name).weight + update.left @ update.right
        dense.get_submodule(update.name).weight = nn.Parameter(weight)
    return dense
