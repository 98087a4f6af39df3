from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
)

import hf_rmt
from hf_rmt import RMTConfig
from hf_rmt.huggingface.saving.alarm import ALARM
from hf_rmt.huggingface.saving.card import PICTURE, auto_class
from hf_rmt.report.tables import size_text
from tests.huggingface.models import WIDTH, outputs, tiny_model


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    folder = tmp_path / "dense"
    tiny_model("bert").save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\nThe original.\n")
    return folder


def compressed(dense: Path) -> AutoModel:
    return AutoModel.from_pretrained(dense, quantization_config=RMTConfig())


def test_the_licence_is_carried_over_and_a_local_path_is_not(dense: Path, tmp_path: Path) -> None:
    compressed(dense).save_pretrained(tmp_path / "small")
    card = ModelCard.load(tmp_path / "small" / "README.md")
    assert card.data.license == "cc-by-4.0"
    for name in ("README.md", "config.json"):
        assert str(tmp_path) not in (tmp_path / "small" / name).read_text()


def test_the_card_counts_the_bytes_that_were_written(dense: Path, tmp_path: Path) -> None:
    compressed(dense).save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    for folder in (dense, tmp_path):
        tensors = load_file(folder / "model.safetensors").values()
        assert size_text(sum(tensor.nbytes for tensor in tensors)) in text
    assert f"({PICTURE})" in text
    assert (tmp_path / PICTURE).stat().st_size > 10_000


def test_the_alarm_is_on_disk_and_not_in_the_loaded_model(dense: Path, tmp_path: Path) -> None:
    compressed(dense).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["attn_implementation"] == ALARM
    model = AutoModel.from_pretrained(tmp_path)
    assert model.config._attn_implementation != ALARM
    eager = AutoModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert eager.config._attn_implementation == "eager"


def test_a_generated_card_is_written_again_when_the_model_is(dense: Path, tmp_path: Path) -> None:
    compressed(dense).save_pretrained(tmp_path)
    first = (tmp_path / "README.md").read_text()
    other = AutoModel.from_pretrained(dense, quantization_config=RMTConfig(noise="int4"))
    other.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() != first


def test_a_copy_saves_itself(dense: Path, tmp_path: Path) -> None:
    model = compressed(dense)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.embeddings.word_embeddings.weight.zero_()
    twin.save_pretrained(tmp_path)
    assert torch.equal(outputs(AutoModel.from_pretrained(tmp_path), "bert"), outputs(twin, "bert"))
    assert not torch.equal(outputs(model, "bert"), outputs(twin, "bert"))


def test_the_config_of_a_loaded_model_loads_it_again(dense: Path, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(dense, quantization_config=RMTConfig())
    model.save_pretrained(tmp_path)
    first = AutoModel.from_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path, config=first.config)
    states = again.state_dict(), first.state_dict()
    assert all(torch.equal(states[0][key], tensor) for key, tensor in states[1].items())
    again.save_pretrained(tmp_path / "again")
    AutoModel.from_pretrained(tmp_path / "again")


def test_a_pickled_model_acts_and_saves_as_before(dense: Path, tmp_path: Path) -> None:
    model, file = compressed(dense), tmp_path / "model.pt"
    torch.save(model, file)
    twin = torch.load(file, weights_only=False)
    twin.save_pretrained(tmp_path / "saved")
    assert torch.equal(outputs(twin, "bert"), outputs(model, "bert"))
    assert (tmp_path / "saved" / "hf_rmt_remote.py").exists()


def test_a_dense_export_leaves_no_trace(dense: Path, tmp_path: Path) -> None:
    model = compressed(dense)
    before = outputs(model, "bert")
    exported = hf_rmt.export_dense(model)
    exported.save_pretrained(tmp_path / "export")
    names = {path.name for path in (tmp_path / "export").iterdir()}
    assert names == {"config.json", "model.safetensors"}
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    assert not {"quantization_config", "auto_map", "attn_implementation"} & set(config)
    assert torch.equal(outputs(model, "bert"), before)


@pytest.mark.parametrize("reloaded", [False, True])
def test_a_model_made_dense_saves_as_a_plain_one(
    dense: Path, tmp_path: Path, reloaded: bool
) -> None:
    model = compressed(dense)
    if reloaded:
        model.save_pretrained(tmp_path / "small")
        model = AutoModel.from_pretrained(tmp_path / "small")
    model.dequantize()
    model.save_pretrained(tmp_path / "plain")
    names = {path.name for path in (tmp_path / "plain").iterdir()}
    assert names == {"config.json", "model.safetensors"}
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert not {"quantization_config", "auto_map", "attn_implementation"} & set(config)
    assert torch.equal(
        outputs(AutoModel.from_pretrained(tmp_path / "plain"), "bert"), outputs(model, "bert")
    )


def test_a_model_that_cannot_be_made_dense_saves_as_before(tmp_path: Path) -> None:
    model = ternary_classifier("matched")
    with pytest.raises(ValueError, match="step activation"):
        model.dequantize()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "hf_rmt_remote.py").exists()


TINY = BertConfig(
    hidden_size=WIDTH,
    num_hidden_layers=1,
    num_attention_heads=4,
    intermediate_size=100,
    vocab_size=50,
)


def ternary_classifier(activation: str) -> BertForSequenceClassification:
    torch.manual_seed(0)
    model = BertForSequenceClassification(TINY).eval()
    batches = [{"input_ids": torch.randint(50, (8, 7))} for _ in range(2)]
    hf_rmt.compress(model, RMTConfig(method="ntk", activation=activation), calibration=batches)
    return model


def test_the_card_of_a_ternary_head_tells_what_it_is(tmp_path: Path) -> None:
    (tmp_path / PICTURE).write_text("of the model that was here before")
    ternary_classifier("keep").save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    settings = json.loads(text.split("```json\n")[1].split("```")[0])
    expected = {"quant_method": "rmt", "method": "ntk", "weights": "trained", "activation": "keep"}
    assert settings == {**expected, "seed": 0}
    assert not (tmp_path / PICTURE).exists()
    assert PICTURE not in text
    assert text.count("AutoModelForSequenceClassification.from_pretrained") == 2
    assert "AutoModel.from_pretrained" not in text
    assert "What was lost" not in text


def test_the_card_of_a_spectral_method_leaves_ternary_settings_out(
    dense: Path, tmp_path: Path
) -> None:
    compressed(dense).save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    settings = json.loads(text.split("```json\n")[1].split("```")[0])
    assert {"noise", "noise_removal", "min_size"} <= set(settings)
    assert not {"weights", "activation", "sparsity", "layers"} & set(settings)


class Unknown(BertModel):
    pass


@pytest.mark.parametrize(
    ("model_class", "expected"),
    [
        (BertModel, "AutoModel"),
        (BertForMaskedLM, "AutoModelForMaskedLM"),
        (BertForSequenceClassification, "AutoModelForSequenceClassification"),
        (BertForPreTraining, "AutoModelForPreTraining"),
        (Unknown, "AutoModel"),
    ],
)
def test_the_auto_class_keeps_the_head(model_class: type, expected: str) -> None:
    with torch.device("meta"):
        assert auto_class(model_class(TINY)) == expected


def test_the_auto_class_is_that_of_the_task_before_that_of_pretraining() -> None:
    assert auto_class(tiny_model("t5")) == "AutoModelForSeq2SeqLM"
