"""The alarm in config.json: loud without the package, nothing to anybody who has it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextModel,
    CLIPVisionModel,
    PreTrainedConfig,
    PreTrainedModel,
    T5EncoderModel,
)

import hf_rmt
from hf_rmt import RMTConfig
from hf_rmt.huggingface.saving.alarm import ALARM, ALARMS, without_alarm
from hf_rmt.nn.counterparts import compressed_layers
from tests.huggingface.models import tiny_model

LOW = RMTConfig(method="svd", rank=8)
SIDE = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 1}


def save(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    hf_rmt.compress(model, LOW)
    model.save_pretrained(folder)
    return model


def clip() -> CLIPModel:
    torch.manual_seed(0)
    text = {**SIDE, "num_attention_heads": 4, "vocab_size": 50, "max_position_embeddings": 16}
    vision = {**SIDE, "num_attention_heads": 4, "image_size": 32, "patch_size": 16}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32))


def same_below(whole: Any, prefix: str, part: Any) -> bool:
    """Whether the tensors of a part are those of a whole, up to a prefix of their names."""
    known = whole.state_dict()
    names = {key: f"{prefix}{key}" for key in part.state_dict()}
    return all(torch.equal(known[names[key]], value) for key, value in part.state_dict().items())


@pytest.mark.parametrize("alarm", ALARMS)
def test_every_config_reads_the_alarm_as_no_choice(alarm: str) -> None:
    assert BertConfig(attn_implementation=alarm)._attn_implementation is None
    config = BertConfig()
    config._attn_implementation = alarm
    assert config._attn_implementation is None
    config._attn_implementation = "eager"
    assert config._attn_implementation == "eager"
    assert without_alarm({"": alarm, "text_config": "sdpa"}) == {"": None, "text_config": "sdpa"}
    both = CLIPConfig(attn_implementation=alarm)
    assert both.vision_config._attn_implementation is None


def test_transformers_keeps_the_implementation_in_a_property_that_can_be_set() -> None:
    attention = PreTrainedConfig.__dict__["_attn_implementation"]
    assert isinstance(attention, property)
    assert attention.fset is not None


def test_the_alarm_is_no_name_of_a_kernel() -> None:
    assert "/" not in ALARM


@pytest.mark.parametrize("build", [AutoModel.from_config, BertModel])
def test_a_model_built_anew_from_the_config_is_a_plain_one(build: Any, tmp_path: Path) -> None:
    save(tiny_model("bert"), tmp_path / "small")
    config = AutoConfig.from_pretrained(tmp_path / "small")
    fresh = build(config)
    fresh.save_pretrained(tmp_path / "fresh")
    saved = json.loads((tmp_path / "fresh" / "config.json").read_text())
    assert not {"quantization_config", "auto_map", "attn_implementation"} & set(saved)
    again = AutoModel.from_pretrained(tmp_path / "fresh")
    assert same_below(fresh, "", again)
    assert "layers" in config.quantization_config
    assert compressed_layers(AutoModel.from_pretrained(tmp_path / "small"))


@pytest.mark.parametrize("ignore", [False, True])
def test_parts_of_a_composite_load_alone(ignore: bool, tmp_path: Path) -> None:
    model = save(clip(), tmp_path)
    for kind, whole in ((CLIPVisionModel, model.vision_model), (CLIPTextModel, model.text_model)):
        part = kind.from_pretrained(tmp_path, ignore_mismatched_sizes=ignore)
        assert len(compressed_layers(part)) == len(compressed_layers(whole)) == 6
        own = part.state_dict()
        inner = (
            "" if own.keys() == whole.state_dict().keys() else next(iter(own)).split(".")[0] + "."
        )
        assert all(torch.equal(own[f"{inner}{k}"], v) for k, v in whole.state_dict().items())


def test_the_encoder_of_a_compressed_t5_loads_alone(tmp_path: Path) -> None:
    model = save(tiny_model("t5"), tmp_path)
    encoder = T5EncoderModel.from_pretrained(tmp_path)
    assert same_below(model, "", encoder)


def test_an_inner_part_saves_the_record_of_its_own_layers(tmp_path: Path) -> None:
    model = save(BertForSequenceClassification(tiny_model("bert").config), tmp_path / "whole")
    model.bert.save_pretrained(tmp_path / "part")
    assert same_below(model.bert, "", BertModel.from_pretrained(tmp_path / "part"))
    assert model.bert.config is model.config
    assert not hasattr(model.bert, "hf_quantizer")
    model.save_pretrained(tmp_path / "again")
    assert same_below(model, "", BertForSequenceClassification.from_pretrained(tmp_path / "again"))


def test_a_composite_made_dense_leaves_no_record_in_its_parts(tmp_path: Path) -> None:
    save(clip(), tmp_path / "small")
    model = CLIPModel.from_pretrained(tmp_path / "small")
    model.dequantize()
    model.save_pretrained(tmp_path / "plain")
    assert "quantization_config" not in (tmp_path / "plain" / "config.json").read_text()


def test_a_dense_class_in_place_of_compressed_layers_never_gets_random_weights(
    tmp_path: Path,
) -> None:
    save(tiny_model("bert"), tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    layers = config["quantization_config"]["layers"]
    layers.popitem()
    del config["quantization_config"]["digest"]
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="belongs to a compressed layer"):
        AutoModel.from_pretrained(tmp_path, ignore_mismatched_sizes=True)


WITHOUT = """
import sys
from transformers import AutoModel, CLIPVisionModel
for load in (AutoModel, CLIPVisionModel):
    for ignore in (False, True):
        try:
            load.from_pretrained(sys.argv[1], ignore_mismatched_sizes=ignore)
            print("loaded")
        except ValueError as error:
            print(str(error))
"""


def test_plain_transformers_shows_the_sentence_for_the_whole_and_for_parts(tmp_path: Path) -> None:
    save(clip(), tmp_path)
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(tmp_path)], capture_output=True, text=True, check=True
    )
    lines = run.stdout.splitlines()
    assert len(lines) == 4
    assert all(ALARM in line for line in lines)
