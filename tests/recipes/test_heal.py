from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
)

import hf_rmt  # noqa: F401 - the healed model is a compressed one
from tests.huggingface.models import tiny_model
from tests.processes import RECIPES, succeed

OPTIONS = [
    *("--embedded", "--use_cpu", "--calibration_samples", "32", "--size", "0.3"),
    *("--tuning_steps", "4", "--steps", "3", "--batch_size", "8"),
]


@pytest.fixture(scope="module")
def healed(tmp_path_factory: pytest.TempPathFactory, trained_bert: Path) -> tuple[Path, Any]:
    """Folder and results of the recipe, run in a process of its own."""
    folder = tmp_path_factory.mktemp("healed")
    succeed(RECIPES / "heal.py", *OPTIONS, "--output_dir", folder)
    return folder, json.loads((folder / "results.json").read_text())


def test_one_command_compresses_heals_and_saves(healed: tuple[Path, Any]) -> None:
    folder, results = healed
    assert 0.29 < results["parameters_kept"] <= 0.3
    assert list(results["splits"]["dev"]) == ["original", "compressed", "healed"]
    original = results["splits"]["dev"]["original"]
    assert original["of_original"] == original["alike"] == 1
    assert results["reload_difference"] == 0
    assert (folder / "healing.png").stat().st_size > 1000
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert type(model.bert.encoder.layer[0].attention.self.query).__name__ == "SpikedLinear"


def test_a_ternary_head_is_trained_as_such(tmp_path: Path, trained_bert: Path) -> None:
    options = ["--method", "ntk", "--learning_rate", "1e-2"]
    succeed(RECIPES / "heal.py", *OPTIONS, *options, "--output_dir", tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["layers"]) == {"bert.pooler.dense", "classifier"}
    assert 1.6 < results["bits_per_weight"] < 1.7
    assert results["reload_difference"] == 0
    assert set(results["flipped"]) == set(results["layers"])
    assert results["flipped"]["bert.pooler.dense"] > 0
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(model.classifier).__name__ == "TernaryLinear"


def test_the_loss_is_that_of_the_soft_targets_and_the_hidden_states(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(RECIPES)
    heal = importlib.import_module("heal")

    class Said(nn.Module):
        def __init__(self, logits: list[float], hidden: float) -> None:
            super().__init__()
            self.said = SimpleNamespace(
                logits=torch.tensor([logits]),
                hidden_states=(
                    torch.zeros(1, 3, 2),
                    torch.tensor([[[1.0, hidden]] * 2 + [[9, 9]]]),
                ),
            )

        def forward(self, **inputs: Any) -> Any:
            assert set(inputs) == {"input_ids", "attention_mask", "output_hidden_states"}
            return self.said

    trainer = heal.DistillationTrainer.__new__(heal.DistillationTrainer)
    trainer.teacher, trainer.temperature, trainer.hidden_weight = Said([1.0, 3.0], -1.0), 2.0, 0.5
    mask = torch.tensor([[1, 1, 0]])
    inputs = {"input_ids": mask, "attention_mask": mask, "labels": torch.tensor([0])}
    found = trainer.compute_loss(Said([0.0, 0.0], 0.0), inputs)
    wanted = torch.softmax(torch.tensor([0.5, 1.5]), 0)
    divergence = 4 * (wanted * (wanted / 0.5).log()).sum()
    # two tokens (1, 0) and twice (1, -1): mean square 1/2, the teacher's variance 4/3
    assert float(found) == pytest.approx(float(divergence) + 0.5 * 0.5 / (4 / 3), rel=1e-5)


def test_a_model_without_a_head_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(RECIPES)
    tiny_model("bert").save_pretrained(tmp_path)
    heal = importlib.import_module("heal")
    with pytest.raises(SystemExit, match=r"saved as BertModel, without the head of a classifier"):
        heal.check_tuned(SimpleNamespace(name_or_path=str(tmp_path)))
    small = BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
    BertForSequenceClassification(small).save_pretrained(tmp_path)
    heal.check_tuned(SimpleNamespace(name_or_path=str(tmp_path)))
