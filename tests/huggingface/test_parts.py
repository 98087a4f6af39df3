"""A model that is saved whole after a part of it was compressed by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertLMHeadModel,
    BertModel,
    CLIPConfig,
    CLIPModel,
    EncoderDecoderModel,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

import hf_rmt
from hf_rmt import RMTConfig
from hf_rmt.nn.counterparts import compressed_layers
from tests.families.entries import CLIP_PARTS, T5, TEXT_BODY

SVD = RMTConfig(method="svd", rank=4, noise="int8")
IDS = torch.arange(14).view(2, 7) + 3


def bert(kind: Any = BertForSequenceClassification, **options: Any) -> Any:
    torch.manual_seed(0)
    return kind(BertConfig(**{**TEXT_BODY, **options})).eval()


def pair(folder: Path) -> Any:
    """An encoder and a decoder that were compressed and saved each by itself."""
    decodes = {"is_decoder": True, "add_cross_attention": True}
    for name, model in (("a", bert(BertModel)), ("b", bert(BertLMHeadModel, **decodes))):
        hf_rmt.compress(model, SVD)
        model.save_pretrained(folder / name)
    whole: Any = EncoderDecoderModel.from_encoder_decoder_pretrained(folder / "a", folder / "b")
    whole.config.decoder_start_token_id = whole.config.pad_token_id = 0
    return whole.eval()


def body(folder: Path) -> Any:
    model = bert()
    hf_rmt.compress(model.bert, SVD)
    return model


def plain_part(folder: Path) -> Any:
    model = bert()
    hf_rmt.compress(model.bert.encoder, SVD)
    return model


def assigned(folder: Path) -> Any:
    model, other = bert(), bert(BertModel, num_hidden_layers=1)
    hf_rmt.compress(other, SVD)
    model.bert = other
    return model


def one_part_then_another(folder: Path) -> Any:
    model = bert()
    hf_rmt.compress(model.bert, SVD.replace(target_modules=["query"]))
    hf_rmt.compress(model, SVD.replace(target_modules=["key", "classifier"], rank=1))
    return model


def another_part_later(folder: Path) -> Any:
    model = bert()
    hf_rmt.compress(model, SVD.replace(target_modules=["key"]))
    hf_rmt.compress(model.bert, SVD.replace(target_modules=["query"]))
    return model


def t5_encoder(folder: Path) -> Any:
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(**T5)).eval()
    hf_rmt.compress(model.encoder, SVD)
    return model


def clip_text(folder: Path) -> Any:
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(**CLIP_PARTS)).eval()
    hf_rmt.compress(model.text_model, SVD)
    return model


MAKERS = [body, plain_part, assigned, one_part_then_another, another_part_later]
MAKERS += [t5_encoder, clip_text, pair]


def outputs(model: Any) -> torch.Tensor:
    arguments: dict[str, Any] = {"input_ids": IDS}
    if isinstance(model, T5ForConditionalGeneration | EncoderDecoderModel):
        arguments["decoder_input_ids"] = IDS
    if isinstance(model, CLIPModel):
        arguments["pixel_values"] = torch.ones(2, 3, 32, 32)
    with torch.no_grad():
        found = model(**arguments)
    return found.logits_per_text if isinstance(model, CLIPModel) else found.logits


@pytest.mark.parametrize("make", MAKERS)
def test_the_whole_saves_and_reloads(make: Callable[[Path], Any], tmp_path: Path) -> None:
    model = make(tmp_path)
    expected, state = outputs(model), model.state_dict()
    model.save_pretrained(tmp_path / "whole")
    again = type(model).from_pretrained(tmp_path / "whole").eval()
    assert {name: type(part) for name, part in again.named_modules()} == {
        name: type(part) for name, part in model.named_modules()
    }
    assert all(torch.equal(tensor, state[key]) for key, tensor in again.state_dict().items())
    torch.testing.assert_close(outputs(again), expected, rtol=0, atol=1e-6)
    assert len(model.compression_report.plan) == len(again.compression_report.plan)


@pytest.mark.parametrize("make", MAKERS)
def test_the_whole_becomes_dense(make: Callable[[Path], Any], tmp_path: Path) -> None:
    model = make(tmp_path)
    dense: Any = hf_rmt.export_dense(model)
    torch.testing.assert_close(outputs(dense), outputs(model), rtol=1e-4, atol=1e-4)
    dense.save_pretrained(tmp_path / "dense")
    assert not hasattr(
        type(model).from_pretrained(tmp_path / "dense").config, "quantization_config"
    )


def test_a_part_can_still_be_saved_by_itself(tmp_path: Path) -> None:
    model = body(tmp_path)
    model.save_pretrained(tmp_path / "whole")
    model.bert.save_pretrained(tmp_path / "part")
    again: Any = BertModel.from_pretrained(tmp_path / "part").eval()
    with torch.no_grad():
        ours, theirs = again(IDS)[0], model.bert(IDS)[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_layers_without_a_record_are_not_saved(tmp_path: Path) -> None:
    model, other = bert(), body(tmp_path)
    model.bert.encoder.layer[0].output.dense = other.bert.encoder.layer[0].output.dense
    with pytest.raises(
        ValueError, match=r"layer\.0\.output\.dense.*compressed as layers of another"
    ):
        model.save_pretrained(tmp_path / "whole")
    assert not (tmp_path / "whole").exists()


def test_a_compressed_part_is_not_compressed_again(tmp_path: Path) -> None:
    model = body(tmp_path)
    assert isinstance(model, PreTrainedModel)
    with pytest.raises(ValueError, match="is quantized already with 'rmt'"):
        hf_rmt.compress(model, SVD)
    assert isinstance(model.classifier, nn.Linear)


def test_layers_that_were_dropped_since_are_not_recorded(tmp_path: Path) -> None:
    model = bert(num_hidden_layers=2)
    hf_rmt.compress(model.bert, SVD)
    model.bert.encoder.layer = model.bert.encoder.layer[:1]
    model.config.num_hidden_layers = 1
    model.save_pretrained(tmp_path / "whole")
    again = BertForSequenceClassification.from_pretrained(tmp_path / "whole").eval()
    torch.testing.assert_close(outputs(again), outputs(model), rtol=0, atol=1e-6)
    assert "layer.1" not in str([plan.name for plan in again.compression_report.plan])


def test_a_config_that_compressed_nothing_is_said_when_the_model_is_saved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bert(BertModel).save_pretrained(tmp_path / "a")
    given: Any = {"quantization_config": RMTConfig()}
    load: Any = EncoderDecoderModel.from_encoder_decoder_pretrained
    whole = load(tmp_path / "a", tmp_path / "a", **given)
    whole.save_pretrained(tmp_path / "whole")
    assert "EncoderDecoderModel is saved dense: its config holds an RMTConfig" in caplog.text
    caplog.clear()
    with_prefix = {f"{part}_{key}": value for key, value in given.items() for part in PREFIXES}
    whole = load(tmp_path / "a", tmp_path / "a", **with_prefix)
    assert {name.split(".")[0] for name in compressed_layers(whole)} == set(PREFIXES)
    whole.save_pretrained(tmp_path / "compressed")
    again: Any = EncoderDecoderModel.from_pretrained(tmp_path / "whole")
    again.save_pretrained(tmp_path / "again")
    assert "is saved dense" not in caplog.text


PREFIXES = ("encoder", "decoder")


def test_the_base_of_a_model_with_a_compressed_head_loads_and_is_dense(tmp_path: Path) -> None:
    whole = bert(num_labels=40)
    hf_rmt.compress(whole, RMTConfig(target_modules=["classifier"]))
    whole.save_pretrained(tmp_path / "whole")
    base: Any = BertModel.from_pretrained(tmp_path / "whole")
    assert not compressed_layers(base)
    found, wanted = base.state_dict(), whole.bert.state_dict()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    base.save_pretrained(tmp_path / "base")
    assert "quantization_config" not in (tmp_path / "base" / "config.json").read_text()


def test_another_number_of_labels_says_what_differs(tmp_path: Path) -> None:
    whole = bert(num_labels=40)
    hf_rmt.compress(whole, RMTConfig(target_modules=["classifier"]))
    whole.save_pretrained(tmp_path)
    other: Any = {"num_labels": 44, "ignore_mismatched_sizes": True}
    with pytest.raises(ValueError, match=r"\(40, \d+\).*\(44, \d+\).*such as num_labels"):
        BertForSequenceClassification.from_pretrained(tmp_path, **other)
