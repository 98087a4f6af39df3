"""Kinds of classification heads of transformers, small, with what becomes of their activation."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

VOCABULARY, LENGTH, END = 50, 12, 2
ENCODER = {
    "hidden_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
BOTH = {
    "d_model": 48,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
    "eos_token_id": END,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "decoder_start_token_id": 1,
}
T5 = {"d_model": 48, "d_kv": 12, "d_ff": 64, "num_layers": 1, "num_heads": 4, "eos_token_id": END}
T5["decoder_start_token_id"] = 0
DISTIL = {"dim": 48, "n_layers": 1, "n_heads": 4, "hidden_dim": 64}
XLNET = {"d_model": 48, "n_layer": 1, "n_head": 4, "d_inner": 64}
FUNNEL = {"d_model": 48, "n_head": 4, "d_head": 12, "d_inner": 64, "block_sizes": [1]}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
REPLACED: dict[str, dict[str, Any]] = {
    "bert": ENCODER,
    "electra": ENCODER | {"embedding_size": 32},
    "albert": ENCODER | {"embedding_size": 32},
    "squeezebert": ENCODER | {"embedding_size": 48},
    "fnet": ENCODER,
    "modernbert": ENCODER | SPECIAL,
    "xlnet": XLNET,
}
"""Heads whose activation is a module that the step takes the place of."""
CALLED: dict[str, tuple[str, dict[str, Any]]] = {
    "roberta": ("tanh", ENCODER),
    "xlm-roberta": ("tanh", ENCODER),
    "camembert": ("tanh", ENCODER),
    "data2vec-text": ("tanh", ENCODER),
    "esmc": ("tanh", ENCODER),
    "mpnet": ("tanh", ENCODER),
    "longformer": ("tanh", ENCODER | {"attention_window": 8}),
    "bart": ("tanh", BOTH),
    "plbart": ("tanh", BOTH),
    "t5": ("tanh", T5),
    "funnel": ("tanh", FUNNEL),
    "distilbert": ("ReLU", DISTIL),
    "deberta": ("GELUActivation", ENCODER | {"pooler_hidden_size": 48}),
    "deberta-v2": ("GELUActivation", ENCODER | {"pooler_hidden_size": 48}),
    "convbert": ("GELUActivation", ENCODER),
    "roformer": ("GELUActivation", ENCODER),
    "nystromformer": ("NewGELUActivation", ENCODER),
}
"""Heads whose activation forward calls, under the name that it is recorded by."""


def head_type(name: str) -> nn.Module:
    """A classifier with that head and weights that are drawn at random."""
    torch.manual_seed(0)
    sizes = REPLACED[name] if name in REPLACED else CALLED[name][1]
    config = AutoConfig.for_model(name, vocab_size=VOCABULARY, num_labels=3, **sizes)
    return AutoModelForSequenceClassification.from_config(config).eval()


def batches(count: int = 5, size: int = 64, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Tokens at random, each row with one end token at its end."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        tokens = torch.randint(5, VOCABULARY, (size, LENGTH), generator=generator)
        tokens[:, -1] = END
        made.append({"input_ids": tokens})
    return made


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    """What a model gives on rows that it has not been calibrated on."""
    return model(**batches(1, 256, seed=9)[0]).logits


def correlation(found: torch.Tensor, dense: torch.Tensor) -> float:
    """Of two sets of logits about their means."""
    found, dense = found - found.mean(0), dense - dense.mean(0)
    return float((found * dense).sum() / (found.norm() * dense.norm()))
