"""Damaged files: an error names layer, tensor and file, with digests in the record or without."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

import hf_rmt
from hf_rmt import RMTConfig
from hf_rmt.huggingface.saving import card
from tests.huggingface.models import tiny_model

LAYER = "encoder.layer.0.output.dense"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(card, "_drawn", lambda *_: b"")
    model = tiny_model("bert")
    hf_rmt.compress(model, RMTConfig(method="svd", rank=8, noise="ternary"))
    model.save_pretrained(tmp_path)
    return tmp_path


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the record, and forget its digests, as a record of an older version has none."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    record = config["quantization_config"]
    del record["digest"], record["files"]
    change(record)
    path.write_text(json.dumps(config))


TENSORS = {
    "noise.codes": [None, torch.full((1,), 255, dtype=torch.uint8), torch.zeros(3)],
    "noise.coarse": [None, torch.full((1,), 255, dtype=torch.uint8)],
    "noise.fine": [None, torch.zeros(1, dtype=torch.float32)],
    "noise.base": [None, torch.tensor([-1.0]), torch.tensor([float("nan")])],
    "weight": [None, torch.full((1,), float("nan"))],
    "bias": [None, torch.full((1,), float("inf"))],
}


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize(
    ("tensor", "number"), [(key, i) for key, values in TENSORS.items() for i in range(len(values))]
)
def test_a_damaged_tensor_is_named(tensor: str, number: int, recorded: bool, folder: Path) -> None:
    name, value = f"{LAYER}.{tensor}", TENSORS[tensor][number]
    tensors = load_file(folder / "model.safetensors")
    before = tensors.pop(name)
    if value is not None:
        value = value.view(torch.int32) if tensor == "noise.base" else value
        fits = value.numel() == 1 and value.dtype.is_floating_point == before.is_floating_point()
        tensors[name] = (
            value.expand(before.shape).clone()
            if fits
            else value.expand(before.shape if value.numel() == 1 else value.shape).clone()
        )
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    words = "do not come from the same save"
    if not recorded:
        edit(folder, lambda record: None)
        words = f"{LAYER}'.*{tensor}|{tensor}.*{LAYER}"
    with pytest.raises(ValueError, match=words) as caught:
        AutoModel.from_pretrained(folder)
    assert "model.safetensors" in str(caught.value)


@pytest.mark.parametrize("key", ["mine", "noise.mine"])
def test_a_tensor_that_no_layer_takes_is_named(key: str, folder: Path) -> None:
    name = f"{LAYER}.{key}"
    tensors = load_file(folder / "model.safetensors") | {name: torch.ones(2)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    edit(folder, lambda record: None)
    with pytest.raises(ValueError, match=rf"{LAYER}.*model\.safetensors holds '{name}'"):
        AutoModel.from_pretrained(folder)


STEP = {"module": "dropout", "thresholds": [0.0], "heights": [0.0, 1.0]}
BEFORE = {
    **{"function": "tanh", "thresholds": [0.0], "heights": [-1.0, 1.0]},
    **{"values": [-0.76, 0.76], "slopes": [0.42, 0.42], "gain": 1.0},
}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shape", [48]),
        ("shape", [48, -1]),
        ("shape", [3, 3]),
        ("shape", None),
        ("rank", "8"),
        ("rank", 10**6),
        ("rank", 2**70),
        ("rank", True),
        ("noise", "pink"),
        ("noise", 3),
        ("kind", "wavelet"),
        ("kind", []),
        ("outcome", "eaten"),
        ("cause", 7),
        ("bits", "many"),
        ("step", STEP),
        ("step", {**STEP, "module": "nobody"}),
        ("step", {**STEP, "module": "dense"}),
        ("step", {**STEP, "thresholds": [1e30]}),
        ("step", {**STEP, "thresholds": [0.0] * 100}),
        ("step", {**STEP, "heights": [float("nan"), 1.0]}),
        ("step", {"module": "dense"}),
        ("step", BEFORE),
        ("step", {**BEFORE, "slopes": [0.42, 0.0]}),
        ("step", {**BEFORE, "values": [0.76]}),
        ("step", {**BEFORE, "gain": 2}),
        ("step", {**BEFORE, "function": ""}),
        ("step", {**BEFORE, "module": "dense"}),
        ("step", {**STEP, "heights": "ab"}),
        ("surprise", 1),
    ],
)
def test_a_wrong_field_of_the_record_is_named(field: str, value: object, folder: Path) -> None:
    edit(folder, lambda record: record["layers"][LAYER].update({field: value}))
    with pytest.raises(ValueError, match=rf"config\.json, layer '{LAYER}'"):
        AutoModel.from_pretrained(folder)


@pytest.mark.parametrize("field", ["shape", "outcome"])
def test_a_missing_field_is_named(field: str, folder: Path) -> None:
    edit(folder, lambda record: record["layers"][LAYER].pop(field))
    with pytest.raises(
        ValueError, match=rf"config\.json, layer '{LAYER}', field '{field}' is miss"
    ):
        AutoModel.from_pretrained(folder)


def test_a_record_that_was_changed_is_refused(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["layers"][LAYER]["n_spikes"] += 1
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="its digest differs"):
        AutoModel.from_pretrained(folder)


def test_config_and_weights_of_two_saves_are_refused(folder: Path) -> None:
    other = tiny_model("bert")
    hf_rmt.compress(other, RMTConfig(method="svd", rank=5))
    old = (folder / "config.json").read_bytes()
    other.save_pretrained(folder)
    (folder / "config.json").write_bytes(old)
    with pytest.raises(ValueError, match="do not come from the same save"):
        AutoModel.from_pretrained(folder)
