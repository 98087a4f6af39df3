"""LoRA around compressed layers: PEFT's own names, its files, merging and its reverse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForSequenceClassification

import hf_rmt
from hf_rmt import RMTConfig, SpikedLinear, compress
from hf_rmt.nn import TernaryLinear
from tests.huggingface.training.training import classifier

NAMES = ["query", "value"]
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
TOKENS = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])


def adapted(model: Any, seed: int = 0, **options: Any) -> Any:
    """The model with a LoRA that changes its outputs."""
    peft: Any = get_peft_model(model, LoraConfig(r=3, target_modules=NAMES, **options)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return peft


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=TOKENS).logits


def compressed(noise: str = "int8") -> Any:
    model = classifier().eval()
    compress(model, RMTConfig(noise=noise))
    return model


@pytest.mark.parametrize("noise", ["int8", "drop"])
def test_names_of_layers_reach_compressed_layers_and_only_the_adapter_trains(noise: str) -> None:
    model = compressed(noise)
    before = logits(model)
    peft: Any = get_peft_model(model, LoraConfig(r=3, target_modules=NAMES)).eval()
    torch.testing.assert_close(logits(peft), before)
    trained = [name for name, part in peft.named_parameters() if part.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    peft.train()(input_ids=TOKENS, labels=torch.tensor([0, 1])).loss.backward()
    assert all(part.grad is not None for name, part in peft.named_parameters() if "lora_B" in name)


def test_a_lora_of_the_dense_base_loads_onto_the_compressed_one(tmp_path: Path) -> None:
    dense = classifier().eval()
    adapted(dense).save_pretrained(tmp_path)
    model = compressed()
    loaded = PeftModel.from_pretrained(model, tmp_path).eval()
    layer: Any = loaded.get_submodule("base_model.model.bert.encoder.layer.0.attention.self.query")
    x = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(0))
    delta = layer.scaling["default"] * (
        layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    )
    weight = layer.base_layer.dense() + delta
    torch.testing.assert_close(layer(x), nn.functional.linear(x, weight, layer.base_layer.bias))
    assert float(delta.abs().max()) > 0


@pytest.mark.parametrize("noise", ["int8", "drop"])
def test_merging_grows_the_signal_and_unmerging_takes_it_off(noise: str) -> None:
    peft = adapted(compressed(noise))
    before = logits(peft)
    layer = peft.get_submodule("base_model.model.bert.encoder.layer.0.attention.self.query")
    factors = layer.base_layer.weight.detach().clone()
    peft.merge_adapter()
    assert layer.base_layer.rank == len(factors) + 3
    torch.testing.assert_close(logits(peft), before, rtol=1e-4, atol=1e-5)
    peft.unmerge_adapter()
    assert torch.equal(layer.base_layer.weight, factors)


def test_a_merged_model_is_saved_and_loaded(tmp_path: Path) -> None:
    merged = adapted(compressed()).merge_and_unload()
    assert not any("lora" in name for name, _ in merged.named_modules())
    merged.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert any(isinstance(part, SpikedLinear) for part in again.modules())
    torch.testing.assert_close(logits(again), logits(merged), rtol=1e-6, atol=1e-6)


def test_a_ternary_layer_takes_an_adapter_and_refuses_to_merge_it() -> None:
    model = nn.Sequential(TernaryLinear.from_linear(nn.Linear(8, 8)))
    peft: Any = get_peft_model(model, LoraConfig(r=2, target_modules=["0"]))
    assert peft(torch.ones(1, 8)).shape == (1, 8)
    with pytest.raises(ValueError, match=r"no signal .*export_dense"):
        peft.merge_adapter()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"init_lora_weights": "pissa"}, "export_dense"),
        ({"use_dora": True}, "use_dora=True .*export_dense"),
    ],
)
def test_what_needs_the_dense_weight_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        get_peft_model(compressed(), LoraConfig(r=2, target_modules=NAMES, **options))


def test_a_model_with_adapters_is_refused_with_what_to_pass() -> None:
    with pytest.raises(ValueError, match=r"merge_and_unload\(\)"):
        compress(adapted(classifier()), RMTConfig())


def test_a_compressed_model_is_no_source_of_an_adapter() -> None:
    with pytest.raises(ValueError, match=r"export_dense\(tuned\)"):
        hf_rmt.extract_adapter(classifier(), compressed())


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_targets_are_the_same_for_a_model_that_has_an_adapter() -> None:
    model = compressed()
    wanted = hf_rmt.lora_targets(model)
    model.add_adapter(LoraConfig(r=2, **wanted))
    assert hf_rmt.lora_targets(model) == wanted
    model.add_adapter(LoraConfig(r=2, **wanted), "second")
    other = compressed()
    assert hf_rmt.lora_targets(get_peft_model(other, LoraConfig(r=2, **wanted))) == wanted


def widened(model: Any, rank: int, seed: int = 0) -> Any:
    """The model with a LoRA of a rank, whose entries are drawn."""
    peft: Any = get_peft_model(model, LoraConfig(r=rank, target_modules=NAMES)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return peft


def spiked(model: Any) -> list[SpikedLinear]:
    return [part for part in model.modules() if isinstance(part, SpikedLinear)]


@pytest.mark.parametrize("noise", ["int8", "drop"])
@pytest.mark.parametrize("ranks", [[64], [16] * 4, [3, 64, 3]])
def test_no_row_of_merges_leaves_a_rank_that_cannot_be_loaded(
    ranks: list[int], noise: str, tmp_path: Path
) -> None:
    model = compressed(noise)
    for seed, rank in enumerate(ranks):
        peft = widened(model, rank, seed)
        before = logits(peft)
        model = peft.merge_and_unload()
        torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)
    assert all(
        len(part.weight) == part.rank <= min(part.in_features, part.out_features)
        for part in spiked(model)
    )
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again), logits(model))


def test_an_adapter_that_was_not_trained_adds_no_direction() -> None:
    model = compressed()
    ranks = [part.rank for part in spiked(model)]
    before = logits(model)
    merged: Any = get_peft_model(model, LoraConfig(r=3, target_modules=NAMES)).merge_and_unload()
    assert [part.rank for part in spiked(merged)] == ranks
    torch.testing.assert_close(logits(merged), before, rtol=1e-4, atol=1e-5)


def merged_twice(model: Any, ranks: tuple[int, int]) -> Any:
    peft = widened(model, ranks[0])
    peft.add_adapter("second", LoraConfig(r=ranks[1], target_modules=NAMES))
    for name, parameter in peft.named_parameters():
        if "lora_B.second" in name:
            nn.init.normal_(parameter, std=0.1)
    peft.merge_adapter(["default", "second"])
    return peft


RANKS = [(3, 64), (64, 3), (64, 64)]


@pytest.mark.parametrize("ranks", RANKS)
def test_unmerging_brings_back_a_signal_that_was_rewritten(ranks: tuple[int, int]) -> None:
    model = compressed()
    before = [part.weight.detach().clone() for part in spiked(model)]
    merged_twice(model, ranks).unmerge_adapter()
    for part, factors in zip(spiked(model), before, strict=True):
        assert torch.equal(part.weight, factors)


@pytest.mark.parametrize("ranks", RANKS)
def test_unmerging_keeps_what_was_trained_since_the_merge(ranks: tuple[int, int]) -> None:
    model = compressed()
    start = [part.dense().detach() for part in spiked(model)]
    peft = merged_twice(model, ranks)
    added = [
        part.dense().detach() - dense for part, dense in zip(spiked(model), start, strict=True)
    ]
    for part in spiked(model):
        part.weight.data *= 1.5  # which no counter of torch sees
    expected = [part.dense().detach() - a for part, a in zip(spiked(model), added, strict=True)]
    peft.unmerge_adapter()
    for part, dense in zip(spiked(model), expected, strict=True):
        assert part.rank <= min(part.in_features, part.out_features)
        torch.testing.assert_close(part.dense().detach(), dense, rtol=1e-4, atol=1e-5)


def test_a_broken_adapter_changes_nothing() -> None:
    model = compressed()
    peft = widened(model, 64)
    before = [part.weight.detach().clone() for part in spiked(model)]
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="nan or infinite values; train it again"):
        peft.merge_adapter()
    assert all(torch.equal(a.weight, b) for a, b in zip(spiked(model), before, strict=True))


class Convolutions(nn.Module):
    """Asks some of its convolutions for more than their output, in several ways."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("called", "asked", "given", "named"):
            setattr(self, name, nn.Conv2d(32, 32, 3, padding=1))

    def forward(self, x: Any) -> Any:
        x = self.called(x) / self.asked.stride[0] / stride(self.given) / stride(layer=self.named)
        return self.named(self.given(self.asked(x)))


def stride(layer: Any) -> Any:
    return layer.stride[0]


def test_convolutions_whose_stride_is_read_get_no_adapter() -> None:
    model: Any = nn.Sequential(Convolutions())
    names = [name for name, _ in model[0].named_children()]
    compress(model, RMTConfig(method="svd", rank=2, target_modules=names))
    targets = hf_rmt.lora_targets(model)
    assert targets == {"target_modules": [], "target_parameters": ["0.called.weight"]}
    peft: Any = get_peft_model(model, LoraConfig(r=2, **targets))
    assert peft(torch.randn(1, 32, 8, 8)).shape == (1, 32, 8, 8)
