"""Each argument that `save_pretrained` accepts does what transformers says it does."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoModel, PreTrainedModel

import hf_rmt
from hf_rmt import RMTConfig
from hf_rmt.huggingface.saving import card, save
from tests.huggingface.models import outputs, tiny_model


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "_drawn", lambda *_: b"")


@pytest.fixture
def model() -> Any:
    model = tiny_model("bert")
    hf_rmt.compress(model, RMTConfig(method="svd", rank=8))
    return model


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _main_process(model: Any, folder: Path, _: Any) -> None:
    model.save_pretrained(folder, is_main_process=False)
    assert not folder.exists()


def _state_dict(model: Any, folder: Path, _: Any) -> None:
    zeros = {k: v * 0 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=zeros)
    saved = load_file(folder / "model.safetensors")
    assert all(not value.any() for value in saved.values() if value.is_floating_point())
    assert model.embeddings.word_embeddings.weight.any()
    model.save_pretrained(folder)
    assert load_file(folder / "model.safetensors")["embeddings.word_embeddings.weight"].any()


def _push(model: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed = []
    monkeypatch.setattr(save, "_push_to_hub", lambda *a, **k: pushed.append((a[1:], k)))
    model.save_pretrained(folder, push_to_hub=True, repo_id="me/it", private=True, variant="x")
    ((repo,), options) = pushed.pop()
    assert repo == "me/it"
    assert options["private"] is True
    assert options["save_options"]["variant"] == "x"
    assert options["save_options"]["state_dict"] is None


def _shards(model: Any, folder: Path, _: Any) -> None:
    model.save_pretrained(folder, max_shard_size="30KB")
    assert "model.safetensors.index.json" in names(folder)
    recorded = json.loads((folder / "config.json").read_text())["quantization_config"]["files"]
    assert set(recorded) == {name for name in names(folder) if name.endswith(".safetensors")}
    before = outputs(AutoModel.from_pretrained(folder), "bert")
    model.save_pretrained(folder)  # the shards and their index must go
    assert {name for name in names(folder) if "model" in name} == {"model.safetensors"}
    assert torch.equal(outputs(AutoModel.from_pretrained(folder), "bert"), before)
    model.save_pretrained(folder, max_shard_size="30KB")  # and so must the whole file
    assert "model.safetensors" not in names(folder)


def _variant(model: Any, folder: Path, _: Any) -> None:
    model.save_pretrained(folder)
    model.save_pretrained(folder, variant="half")
    for variant in (None, "half"):
        found = AutoModel.from_pretrained(folder, variant=variant)
        assert torch.equal(outputs(found, "bert"), outputs(model, "bert"))


def _token(model: Any, folder: Path, _: Any) -> None:
    model.save_pretrained(folder, token="hf_unused")
    assert "config.json" in names(folder)


def _peft_format(model: Any, folder: Path, _: Any) -> None:
    model.add_adapter(LoraConfig(r=4, **hf_rmt.lora_targets(model)))
    for told in (True, False):
        model.save_pretrained(folder, save_peft_format=told)
        assert names(folder) == {"adapter_config.json", "adapter_model.safetensors"}
        keys = load_file(folder / "adapter_model.safetensors")
        assert all(key.startswith("base_model.model.") == told for key in keys)
        assert all("lora_" in key for key in keys)


def _original_format(model: Any, folder: Path, _: Any) -> None:
    for told in (True, False):
        model.save_pretrained(folder, save_original_format=told)
        assert torch.equal(
            outputs(AutoModel.from_pretrained(folder), "bert"), outputs(model, "bert")
        )


def _distributed(model: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", lambda *a, **k: given.append((a[1], k)))
    model.save_pretrained(folder, distributed_checkpoint=True)
    ((where, options),) = given
    assert where == folder  # every process writes there, so nothing is written aside
    assert options["distributed_checkpoint"] is True


TRIED: dict[str, Callable[[Any, Path, Any], None]] = {
    "is_main_process": _main_process,
    "state_dict": _state_dict,
    "push_to_hub": _push,
    "max_shard_size": _shards,
    "variant": _variant,
    "token": _token,
    "save_peft_format": _peft_format,
    "save_original_format": _original_format,
    "distributed_checkpoint": _distributed,
}


def test_no_argument_of_transformers_is_forgotten() -> None:
    accepted = set(inspect.signature(PreTrainedModel.save_pretrained).parameters)
    assert accepted - {"self", "save_directory", "kwargs"} == set(TRIED)


@pytest.mark.parametrize("argument", TRIED)
def test_an_argument_is_honoured(
    argument: str, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    TRIED[argument](model, tmp_path / "saved", monkeypatch)


def test_the_picture_is_drawn_once_for_a_report_and_never_at_a_checkpoint(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr(card, "_drawn", lambda *_: drawn.append(1) or b"picture")
    for step in (1, 2):
        model.save_pretrained(tmp_path / f"checkpoint-{step}")
    assert not drawn
    for _ in range(3):
        model.save_pretrained(tmp_path / "end")
    assert len(drawn) == 1
    assert (tmp_path / "end" / card.PICTURE).read_bytes() == b"picture"
    hf_rmt.compress(tiny_model("bert"), RMTConfig(method="svd", rank=4))
    model.compression_report = type(model.compression_report)(model.compression_report.plan)
    model.save_pretrained(tmp_path / "end")
    assert len(drawn) == 2


@pytest.mark.parametrize(
    "content", [b"---\n{: [\n---\nmine", b"\x89PNG\xff\xfe\x00", b"---\n- 1\n---\n"]
)
def test_a_readme_that_is_no_card_is_left_alone(
    content: bytes, model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "README.md").write_bytes(content)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_bytes() == content
    assert torch.equal(outputs(AutoModel.from_pretrained(tmp_path), "bert"), outputs(model, "bert"))


def test_an_error_of_the_card_does_not_lose_the_model(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setattr("hf_rmt.huggingface.saving.companions.card_of", fail)
    model.save_pretrained(tmp_path)
    assert "no ink" in caplog.text
    assert AutoModel.from_pretrained(tmp_path) is not None
