"""Small models of the three families with spikes in their weights, and inputs for them."""

from __future__ import annotations

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

FAMILIES = ("bert", "t5", "vit")
WIDTH = 48


def tiny_model(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if family == "bert":
        sizes = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 4}
        model = BertModel(BertConfig(**sizes, intermediate_size=100, vocab_size=50))
    elif family == "t5":
        sizes = {"d_model": WIDTH, "d_kv": 12, "d_ff": 100, "num_layers": 1, "num_heads": 4}
        model = T5ForConditionalGeneration(T5Config(**sizes, vocab_size=50))
    else:
        sizes = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 4}
        model = ViTModel(ViTConfig(**sizes, intermediate_size=100, image_size=32, patch_size=16))
    _add_spikes(model)
    return model.eval()


def inputs(family: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    if family == "vit":
        return {"pixel_values": torch.randn(2, 3, 32, 32, generator=generator)}
    tokens = torch.randint(3, 50, (2, 7), generator=generator)
    return (
        {"input_ids": tokens, "decoder_input_ids": tokens}
        if family == "t5"
        else {"input_ids": tokens}
    )


@torch.no_grad()
def outputs(model: nn.Module, family: str) -> torch.Tensor:
    batch = {
        key: value.to(model.dtype) if value.is_floating_point() else value
        for key, value in inputs(family).items()
    }
    result = model(**batch)
    return result.logits if family == "t5" else result.last_hidden_state


@torch.no_grad()
def _add_spikes(model: nn.Module) -> None:
    """Two strong directions in every linear layer: random weights have none."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.weight.shape[1] >= WIDTH:
            rows, columns = module.weight.shape
            size = module.weight.norm() / module.weight.shape[1] ** 0.5
            for strength in (3.0, 2.0):
                direction = torch.outer(torch.randn(rows), torch.randn(columns))
                module.weight += strength * size * direction / direction.norm()
