from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModel

import hf_rmt
from hf_rmt import RMTConfig
from hf_rmt.integrations.loader import ALARM
from hf_rmt.integrations.saving import PICTURE
from tests.integrations.models import outputs, tiny_model


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
    after = (tmp_path / "model.safetensors").stat().st_size
    before = (dense / "model.safetensors").stat().st_size
    assert f"{after / 1e6:,.1f} MB" in text
    assert f"{before / 1e6:,.1f} MB" in text
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
