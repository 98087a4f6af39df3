"""Small models of several families with spikes in their weights, and inputs for them."""

from __future__ import annotations

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)
from transformers.pytorch_utils import Conv1D

FAMILIES = ("bert", "t5", "vit")
OTHER_WEIGHTS = ("resnet", "gpt2")
"""Families whose weights are convolutions, or lie transposed."""
SHORTCUT = "encoder.stages.1.layers.0.shortcut.convolution"
STRIDED = "encoder.stages.1.layers.0.layer.0.convolution"
"""Convolutions of the tiny ResNet."""
WIDTH = 48


def tiny_model(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if family == "bert":
        sizes = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 4}
        model = BertModel(BertConfig(**sizes, intermediate_size=100, vocab_size=50))
    elif family == "t5":
        sizes = {"d_model": WIDTH, "d_kv": 12, "d_ff": 100, "num_layers": 1, "num_heads": 4}
        model = T5ForConditionalGeneration(T5Config(**sizes, vocab_size=50))
    elif family == "resnet":
        sizes = {"embedding_size": 32, "hidden_sizes": [32, WIDTH], "depths": [1, 1]}
        model = ResNetModel(ResNetConfig(**sizes, layer_type="basic"))
    elif family == "gpt2":
        sizes = {"n_embd": WIDTH, "n_layer": 1, "n_head": 4, "n_positions": 16}
        tokens = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 0}
        model = GPT2Model(GPT2Config(**sizes, **tokens))
    else:
        sizes = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 4}
        model = ViTModel(ViTConfig(**sizes, intermediate_size=100, image_size=32, patch_size=16))
    add_spikes(model, convolutions=family == "resnet")
    return model.eval()


def inputs(family: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    if family in ("vit", "resnet"):
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


def pictures(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((found - expected).norm() / expected.norm()).detach())


@torch.no_grad()
def add_spikes(model: nn.Module, *, convolutions: bool) -> None:
    """Two strong directions in every weight: random ones have none."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            weight = module.weight
        elif isinstance(module, Conv1D):
            weight = module.weight.T
        elif isinstance(module, nn.Conv2d) and convolutions:
            weight = module.weight.flatten(1)
        else:
            continue
        rows, columns = weight.shape
        if columns < WIDTH:
            continue
        size = weight.norm() / columns**0.5
        for strength in (3.0, 2.0):
            direction = torch.outer(torch.randn(rows), torch.randn(columns))
            weight += strength * size * direction / direction.norm()
