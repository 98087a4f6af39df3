"""A dozen classes, those that once broke among them; the command of `table` tries them all."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_rmt.compression.targets.left_dense import read_by_parent
from hf_rmt.compression.targets.selection import compressible_layers
from hf_rmt.settings import CompressionSettings
from tests.families.entries import BY_NAME, FAMILIES
from tests.families.family import Family
from tests.families.steps import tensors, tried

SAMPLE = (
    "BertForSequenceClassification",
    "DebertaForSequenceClassification",
    "GPT2LMHeadModel",
    "FalconForCausalLM",
    "MixtralForCausalLM",
    "MambaForCausalLM",
    "T5ForConditionalGeneration",
    "Dinov2Model (SwiGLU)",
    "ViTMAEForPreTraining",
    "CLIPModel",
    "DetrForObjectDetection",
    "ResNetModel",
)
"""Quick ones, and members of each kind of trouble."""
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", SAMPLE)
def test_every_step_works_or_is_refused_with_its_reason(name: str) -> None:
    result = tried(BY_NAME[name])
    assert result.works, result.outcome
    assert result.share > 0 or result.why


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_layers_that_nobody_calls_are_among_those_whose_weight_is_read(family: Family) -> None:
    model, called = family.model(), set()
    linears = {name: part for name, part in model.named_modules() if type(part) is nn.Linear}
    for name, part in linears.items():
        part.register_forward_pre_hook(lambda *_, name=name: called.add(name))
    read = _used_without_a_call(model, family, linears, called)
    assert read <= read_by_parent(model).keys(), read - read_by_parent(model).keys()


def _used_without_a_call(
    model: nn.Module, family: Family, linears: dict[str, nn.Linear], called: set[str]
) -> set[str]:
    """Linears that no forward calls though the outputs depend on their weight."""
    parts = [part for part in tensors(model(**family.inputs())) if part.requires_grad]
    torch.stack([part.float().square().sum() for part in parts]).sum().backward()
    used = {name for name, part in linears.items() if part.weight.grad is not None}
    return used - called


def test_a_decoder_outside_of_the_base_model_is_compressed() -> None:
    model = BY_NAME["ViTMAEForPreTraining"].model()
    names = compressible_layers(model, CompressionSettings())
    assert any(name.startswith("decoder.decoder_layers.") for name in names)


def test_a_head_that_is_registered_before_the_body_is_found() -> None:
    model = BY_NAME["XLMRobertaForTokenClassification"].model()
    assert compressible_layers(model, CompressionSettings(method="ntk")) == ["classifier"]
