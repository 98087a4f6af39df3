"""Adapters from the difference of two models: ranks, budgets, files, the command line."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

from hf_rmt import extract_adapter
from hf_rmt.cli import main
from tests.huggingface.lora.adapters import tiny, tune

IDS = torch.arange(3, 10)[None]


def test_paths_and_loaded_models_give_the_same_adapter(pair: tuple[str, str]) -> None:
    paths = extract_adapter(*pair, size=0.2)
    models = [BertForSequenceClassification.from_pretrained(path) for path in pair]
    before = [copy.deepcopy(model.state_dict()) for model in models]
    loaded = extract_adapter(*models, size=0.2)
    assert paths.ranks == loaded.ranks
    for model, state in zip(models, before, strict=True):
        assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("size", [0.05, 0.2, 0.5])
def test_the_budget_is_kept_and_used(size: float, pair: tuple[str, str]) -> None:
    adapter = extract_adapter(*pair, size=size)
    assert adapter.size <= size
    missing = size * sum(update.dense_parameters for update in adapter.updates) - adapter.parameters
    assert missing < min(sum(update.shape) for update in adapter.updates if update.rank)


def test_a_fixed_rank_is_the_same_everywhere(pair: tuple[str, str]) -> None:
    assert set(extract_adapter(*pair, rank=3).ranks.values()) == {3}


def test_targets_are_the_only_ones_with_factors(pair: tuple[str, str]) -> None:
    adapter = extract_adapter(*pair, size=0.3, target_modules=["query", "key"])
    assert {name.rsplit(".", 1)[1] for name in adapter.ranks} == {"query", "key"}
    assert "bert.embeddings.word_embeddings" in adapter.modules_to_save
    blocks = extract_adapter(*pair, size=0.3, target_modules=r".*layer\.1\..*")
    assert all(".layer.1." in name for name in blocks.ranks)


def test_an_embedding_competes_in_units_of_its_own_entries() -> None:
    """LayerNorm follows: a hundred times the embedding and its update are worth the same."""
    base, scaled = tiny("bert"), tiny("bert")
    tuned = tune(base)
    scaled_tuned = copy.deepcopy(tuned)
    for model in (scaled, scaled_tuned):
        model.bert.embeddings.word_embeddings.weight.data *= 100
    assert (
        extract_adapter(scaled, scaled_tuned, size=0.2).ranks
        == extract_adapter(base, tuned, size=0.2).ranks
    )


def test_every_scale_is_one_and_every_rank_is_told(pair: tuple[str, str], tmp_path: Path) -> None:
    adapter = extract_adapter(*pair, size=0.2)
    adapter.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert config["r"] == config["lora_alpha"] == max(adapter.ranks.values())
    assert sorted(config["rank_pattern"].values()) == sorted(filter(None, adapter.ranks.values()))
    assert config["base_model_name_or_path"] == pair[0]
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    stored = sum(value.numel() for key, value in tensors.items() if "lora_" in key)
    assert stored == adapter.parameters


def test_factors_take_the_dtype_that_is_asked_for(pair: tuple[str, str]) -> None:
    adapter = extract_adapter(*pair, rank=2, dtype=torch.bfloat16)
    assert {update.left.dtype for update in adapter.updates} == {torch.bfloat16}


def test_the_command_line_writes_an_adapter(
    pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["extract-lora", *pair, str(tmp_path / "out"), "--size", "0.1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["size"] <= 0.1
    assert report["parameters"] == sum(layer["parameters"] for layer in report["layers"])
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    assert "rank" in (tmp_path / "out" / "README.md").read_text()
    assert main(["extract-lora", *pair, str(tmp_path / "all"), "--threshold", "0.5"]) == 0
    assert "of the matrices" in capsys.readouterr().out
    assert main(["extract-lora", pair[0], pair[0], str(tmp_path / "no")]) == 1
    assert "no matrix" in capsys.readouterr().err


@pytest.mark.parametrize("held", ["nothing", "a model"])
def test_transformers_loads_the_adapter_that_the_command_line_writes(
    held: str, pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    if held == "a model":
        tiny("bert").save_pretrained(out)
    assert main(["extract-lora", *pair, str(out), "--threshold", "1", "--overwrite"]) == 0
    assert not (out / "config.json").exists()
    loaded = AutoModelForSequenceClassification.from_pretrained(out).eval()
    tuned = AutoModelForSequenceClassification.from_pretrained(pair[1]).eval()
    torch.testing.assert_close(loaded(IDS).logits, tuned(IDS).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("config", [True, False])
def test_an_adapter_is_no_model_also_beside_the_config_of_one(
    config: bool, pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extract_adapter(*pair, rank=2).save_pretrained(tmp_path)
    if config:
        tiny("bert").config.save_pretrained(tmp_path)
    assert main(["compress", str(tmp_path), "--dry-run"]) == 1
    assert "holds an adapter and no model; merge it" in capsys.readouterr().err


def test_a_model_in_the_place_of_an_adapter_is_loaded_as_a_model(
    pair: tuple[str, str], tmp_path: Path
) -> None:
    extract_adapter(*pair, rank=2).save_pretrained(tmp_path)
    assert main(["compress", pair[1], str(tmp_path), "--overwrite", "--quiet"]) == 0
    assert not (tmp_path / "adapter_config.json").exists()
    AutoModelForSequenceClassification.from_pretrained(tmp_path)
