"""Parts of one model compressed in different ways, one call after the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig
from transformers import BertForSequenceClassification as Classifier

import hf_rmt
from hf_rmt import RMTConfig, SpikedLinear, TernaryLinear
from hf_rmt.report import CompressionReport
from tests.huggingface.models import WIDTH

BODY, HEAD = RMTConfig(noise="int4"), RMTConfig(method="ntk")
TOKENS = torch.arange(50)[None]


def classifier() -> Classifier:
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 4}
    return Classifier(BertConfig(**sizes, intermediate_size=100, vocab_size=50)).eval()


def body(model: Classifier) -> CompressionReport:
    return hf_rmt.compress(model, BODY)


def head(model: Classifier) -> CompressionReport:
    generator = torch.Generator().manual_seed(1)
    batches = [{"input_ids": torch.randint(50, (8, 7), generator=generator)} for _ in range(2)]
    return hf_rmt.compress(model, HEAD, calibration=batches)


@torch.no_grad()
def logits(model: Classifier) -> torch.Tensor:
    return model(TOKENS).logits


def reload(model: Classifier, folder: Path) -> Classifier:
    model.save_pretrained(folder)
    return AutoModelForSequenceClassification.from_pretrained(folder).eval()


@pytest.mark.parametrize("between", [False, True], ids=["at once", "saved between"])
@pytest.mark.parametrize("steps", [(body, head), (head, body)], ids=["body first", "head first"])
def test_body_and_head_are_compressed_and_come_back(
    steps: tuple[Callable[[Classifier], CompressionReport], ...], between: bool, tmp_path: Path
) -> None:
    model = classifier()
    first = steps[0](model)
    if between:
        model = reload(model, tmp_path / "between")
    second = steps[1](model)
    assert {len(first.plan), len(second.plan)} == {6, 2}
    recorded = model.config.quantization_config.layers
    order = [name for name, _ in model.named_modules() if name in recorded]
    assert list(recorded) == order
    assert len(order) == 8
    kinds = [type(model.get_submodule(name)) for name in order]
    assert kinds == [SpikedLinear] * 6 + [TernaryLinear] * 2
    assert [layer.name for layer in model.compression_report.plan] == order
    again = reload(model, tmp_path)
    assert torch.equal(logits(again), logits(model))
    card = (tmp_path / "README.md").read_text()
    assert "8 of 8 layers" in card
    assert "4-bit integers" in card
    assert "The weights of 2 layers are -1, 0 and 1" in card
    assert (tmp_path / "spectrum.png").exists()


@pytest.mark.parametrize("config", [RMTConfig(), RMTConfig(target_modules=["key", "pooler.dense"])])
def test_a_layer_is_compressed_once(config: RMTConfig, tmp_path: Path) -> None:
    model = classifier()
    body(model)
    before = dict(model.named_modules())
    with pytest.raises(ValueError, match=r"self\.(query|key)' is quantized already with 'rmt'"):
        hf_rmt.compress(model, config)
    assert dict(model.named_modules()) == before


def test_a_dry_run_of_the_second_call_changes_nothing() -> None:
    model = classifier()
    body(model)
    before = dict(model.named_modules())
    names = ["pooler.dense", "classifier"]
    report = hf_rmt.compress(model, RMTConfig(target_modules=names, min_size=2), dry_run=True)
    assert [layer.name for layer in report.plan] == ["bert.pooler.dense", "classifier"]
    assert dict(model.named_modules()) == before
    assert len(model.config.quantization_config.layers) == 6


def test_both_spectra_are_kept_and_the_base_model_as_well(tmp_path: Path) -> None:
    classifier().save_pretrained(tmp_path / "base")
    model = Classifier.from_pretrained(tmp_path / "base")
    body(model)
    model.hf_quantizer.quantization_config.base_model = "org/base"
    hf_rmt.compress(model, RMTConfig(target_modules=["pooler.dense"]))
    names = [layer.name for layer in model.compression_report.spectra]
    assert len(names) == 7
    assert names[-1] == "bert.pooler.dense"
    assert model.config.quantization_config.base_model == "org/base"


def test_what_another_library_quantized_is_refused() -> None:
    model = classifier()
    body(model)
    model.hf_quantizer = type("Other", (), {"quantization_config": BODY})()
    with pytest.raises(ValueError, match="BertForSequenceClassification is quantized already"):
        hf_rmt.compress(model, RMTConfig(target_modules=["pooler.dense"]))


def test_a_model_that_was_made_dense_records_the_second_compression_alone(tmp_path: Path) -> None:
    model = classifier()
    hf_rmt.compress(model, RMTConfig(target_modules=["query"]))
    model.dequantize()
    assert not hasattr(model, "compression_report")
    hf_rmt.compress(model, RMTConfig(target_modules=["key"]))
    assert [layer.name.rpartition(".")[2] for layer in model.compression_report.plan] == ["key"]
    again = reload(model, tmp_path)
    assert torch.equal(logits(again), logits(model))
