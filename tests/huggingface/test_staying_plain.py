"""Models in which nothing was replaced: they stay plain, in memory and on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, PreTrainedModel

import hf_rmt
from hf_rmt import RMTConfig
from tests.huggingface.models import outputs, tiny_model

UNTOUCHED = RMTConfig(min_size=49)
IN_PLACE = RMTConfig(method="magnitude", fraction=0.3, noise="drop")


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    folder = tmp_path / "dense"
    tiny_model("bert").save_pretrained(folder)
    return folder


def is_plain(model: PreTrainedModel, folder: Path) -> bool:
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    marks = {"quantization_config", "auto_map", "attn_implementation"} & set(config)
    files = {path.name for path in folder.iterdir()}
    return not (
        marks
        or files != {"config.json", "model.safetensors"}
        or hasattr(model, "hf_quantizer")
        or getattr(model, "is_quantized", False)
    )


@pytest.mark.parametrize(
    ("config", "why"), [(UNTOUCHED, "min_size=49"), (IN_PLACE, "zeros save no memory")]
)
@pytest.mark.parametrize("streamed", [False, True], ids=["in memory", "while loading"])
def test_it_saves_as_a_plain_model_and_says_why(
    dense: Path,
    tmp_path: Path,
    config: RMTConfig,
    why: str,
    streamed: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if streamed:
        model = AutoModel.from_pretrained(dense, quantization_config=config)
        report = model.compression_report
    else:
        model = AutoModel.from_pretrained(dense)
        report = hf_rmt.compress(model, config)
    assert len(report.plan) == 6
    assert not report.plan.compressed
    (said,) = [text for text in caplog.messages if "stays a plain model" in text]
    assert "none of the 6 layers" in said
    assert f"for 6: {'smaller side 48 below ' if config is UNTOUCHED else ''}" in said
    assert why in said
    assert is_plain(model, tmp_path / "saved")
    again = AutoModel.from_pretrained(tmp_path / "saved")
    assert torch.equal(outputs(again, "bert"), outputs(model, "bert"))


def test_a_model_that_stayed_plain_can_be_compressed_in_another_way(dense: Path) -> None:
    model = AutoModel.from_pretrained(dense, quantization_config=UNTOUCHED)
    assert len(hf_rmt.compress(model, RMTConfig()).plan.compressed) == 6


def test_what_records_no_replaced_layer_loads_as_a_plain_model(dense: Path, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(dense, quantization_config=RMTConfig())
    model.save_pretrained(tmp_path / "small")
    saved = json.loads((tmp_path / "small" / "config.json").read_text())
    for entry in saved["quantization_config"]["layers"].values():
        entry["outcome"] = "kept"
    for digest in ("digest", "files"):  # the change is meant
        del saved["quantization_config"][digest]
    (dense / "config.json").write_text(json.dumps(saved))
    loaded = AutoModel.from_pretrained(dense)
    assert torch.equal(outputs(loaded, "bert"), outputs(tiny_model("bert"), "bert"))
    assert is_plain(loaded, tmp_path / "again")
