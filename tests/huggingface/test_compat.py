"""Contracts with what transformers and peft do not document."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import Dinov2Config, Dinov2Model, MambaConfig, MambaModel

from hf_rmt.huggingface.compat import (
    converted_parameters,
    refused_by_peft,
    teach_peft,
)
from hf_rmt.nn import TernaryLinear


def test_conversions_of_checkpoints_are_known() -> None:
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    with torch.device("meta"):
        model = Dinov2Model(Dinov2Config(use_swiglu_ffn=True, **sizes))
    found = converted_parameters(model)
    layers = {name.rpartition(".mlp.")[2] for name in found}
    assert layers == {"gate_proj.weight", "gate_proj.bias", "up_proj.weight", "up_proj.bias"}
    assert set(found.values()) == {"Chunk"}


def test_peft_looks_its_last_dispatcher_up_by_name() -> None:
    lora = pytest.importorskip("peft.tuners.lora.model")
    assert lora.dispatch_default.knows_compressed
    before = lora.dispatch_default
    teach_peft(lora)  # a second time does nothing
    assert lora.dispatch_default is before
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2)
    layer = TernaryLinear.from_linear(nn.Linear(4, 4))
    made = lora.LoraModel._create_new_module(config, "default", layer, r=2, lora_alpha=2)
    assert type(made).__name__ == "CompressedLoraLinear"


def test_peft_names_what_it_refuses_of_mamba() -> None:
    pytest.importorskip("peft")
    with torch.device("meta"):
        model = MambaModel(MambaConfig(hidden_size=8, num_hidden_layers=1, vocab_size=10))
    assert refused_by_peft(model, "layers.0.mixer.out_proj")
    assert not refused_by_peft(model, "layers.0.mixer.in_proj")
