from __future__ import annotations

import copy
import importlib
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.huggingface.training.training import classifier
from tests.processes import RECIPES, run_python

OPTIONS = ["--embedded", "--use_cpu", "--seeds", "0", "--fractions", "0.5", "--max_steps", "2"]


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(RECIPES)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return importlib.import_module("glue_rte")


@pytest.fixture
def rows_module(recipe: Any) -> Any:
    return importlib.import_module("workbench.report.method_rows")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, trained_bert: Path) -> Path:
    """Folder of the recipe's results, run in a process of its own."""
    folder = tmp_path_factory.mktemp("glue")
    process = run(folder, "--methods", "update", "ntk")
    assert process.returncode == 0, process.stderr[-3000:]
    return folder


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    script = RECIPES / "glue_rte.py"
    return run_python(script, *OPTIONS, *options, "--output_dir", folder)


def test_one_command_trains_filters_and_reports(results: Path) -> None:
    rows = json.loads((results / "embedded" / "seed-0" / "rows.json").read_text())
    assert list(rows) == ["base", "update", "ntk"]
    assert rows["ntk"]["curve"][0][0] == rows["ntk"]["removed"] == 0.0
    assert 1.6 / 32 < rows["ntk"]["kept"] < 1.7 / 32
    assert {tuple(row["splits"]) for row in rows.values()} == {("dev",)}
    table = json.loads((results / "results" / "results.json").read_text())
    reached = {cell["method"]: cell["values"] for cell in table["results"]}
    assert reached["base (fine-tuned)"] == [np.mean(rows["base"]["splits"]["dev"])]
    logs = json.loads((results / "embedded" / "seed-0" / "training.json").read_text())
    assert any("rmt/spikes" in entry for entry in logs)
    assert (results / "results" / "curve-embedded.svg").stat().st_size > 1000


def test_the_best_model_reloads_with_its_card(results: Path) -> None:
    best = results / "embedded" / "best"
    model = AutoModelForSequenceClassification.from_pretrained(best)
    text = AutoTokenizer.from_pretrained(best)("A baker hid a saw.", return_tensors="pt")
    assert torch.isfinite(model(**text).logits).all()
    assert model.config.id2label == {0: "entailment", 1: "not_entailment"}
    assert "| filtered update, PDB |" in (best / "README.md").read_text()


def test_what_is_finished_is_not_done_again(results: Path, trained_bert: Path) -> None:
    seed = results / "embedded" / "seed-0"
    before = {path: path.stat().st_mtime_ns for path in seed.rglob("*.*")}
    rows = json.loads((seed / "rows.json").read_text())
    process = run(results, "--methods", "update", "svd")
    assert process.returncode == 0, process.stderr[-3000:]
    changed = {path.name for path in before if path.stat().st_mtime_ns != before[path]}
    assert changed == {"rows.json"}
    assert "filtered update, PDB, 50%" not in process.stdout
    again = json.loads((seed / "rows.json").read_text())
    assert again.items() >= rows.items()
    assert list(again) == ["base", "update", "ntk", "svd"]


def test_a_folder_of_another_setting_is_refused(recipe: Any, tmp_path: Path) -> None:
    recipe.check_settings(tmp_path, recipe.Arguments(epochs=2))
    recipe.check_settings(tmp_path, recipe.Arguments(epochs=2, seeds=[5], methods=["svd"]))
    with pytest.raises(SystemExit, match="with another epochs; pass another --output_dir"):
        recipe.check_settings(tmp_path, recipe.Arguments(epochs=3))


def write_mrpc(folder: Path, rows: int = 100) -> None:
    lines = [f"{k % 2}\t{k}\t{k}\tfirst {k}\tsecond {k}" for k in range(rows)]
    header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
    for name in ("train", "dev"):
        text = "\n".join([header, *lines]) + "\n"
        (folder / f"{name}.tsv").write_text(text, encoding="utf-8-sig")


def test_splits_of_a_file_do_not_meet_and_only_training_rows_are_noisy(
    recipe: Any, tmp_path: Path
) -> None:
    write_mrpc(tmp_path)
    told = {"task": ["mrpc"], "data_dir": str(tmp_path), "label_noise": 1.0}
    arguments = recipe.Arguments(**told, heldout_samples=20, max_train_samples=50)
    splits, labels = recipe.splits_of(arguments, "mrpc", 0)
    assert labels == ["0", "1"]
    assert {name: len(rows) for name, rows in splits.items()} == {
        **{"selection": 10, "heldout": 20, "train": 50},
        "dev": 100,
    }
    assert splits["dev"][3] == {"text": "first 3", "text2": "second 3", "label": 1}
    texts = {name: set(splits[name]["text"]) for name in ("selection", "heldout", "train")}
    assert len(set.union(*texts.values())) == 80

    def wrong(name: str) -> int:
        return sum(int(row["text"].split()[1]) % 2 != row["label"] for row in splits[name])

    assert wrong("dev") == wrong("heldout") == 0
    assert wrong("train") > 5  # of 50 shuffled labels half change; 5 or fewer with p < 1e-8
    other, _ = recipe.splits_of(arguments, "mrpc", 1)
    assert list(other["train"]["text"]) == list(splits["train"]["text"])
    assert list(other["train"]["label"]) != list(splits["train"]["label"])


def test_unknown_tasks_and_columns_are_named(recipe: Any, tmp_path: Path) -> None:
    write_mrpc(tmp_path)
    with pytest.raises(SystemExit, match=r"--task must be one of rte, .*, got 'rt'"):
        recipe.splits_of(recipe.Arguments(), "rt", 0)
    with pytest.raises(SystemExit, match=r"the data lack the columns \['sentence'\]"):
        recipe.splits_of(recipe.Arguments(data_dir=str(tmp_path)), "sst2", 0)


def test_several_processes_see_the_batches_of_one(recipe: Any) -> None:
    generator = np.random.default_rng(0)
    rows = Dataset.from_dict({"input_ids": [[0] * int(k) for k in generator.integers(1, 30, 200)]})

    def order(size: int, processes: int) -> list[int]:
        settings = SimpleNamespace(train_batch_size=size, world_size=processes, seed=0)
        trainer = SimpleNamespace(args=settings, train_dataset=rows)
        return list(recipe.OneOrderTrainer._get_train_sampler(trainer))

    assert order(8, 1) == order(4, 2) == order(2, 4)
    assert order(8, 1) != order(1, 1)


def test_the_largest_share_wins_among_equals(rows_module: Any) -> None:
    assert rows_module.choice([[0.1, 0.8], [0.4, 0.9], [0.6, 0.9], [1.0, 0.5]]) == 0.6


@pytest.mark.parametrize("method", ["update", "ranks", "pdb", "svd"])
def test_filtering_leaves_the_tuned_model_and_removes_directions(
    rows_module: Any, method: str
) -> None:
    base, tuned = classifier(), classifier()
    generator = torch.Generator().manual_seed(1)
    for weight in tuned.parameters():
        weight.data += 0.05 * torch.randn(weight.shape, generator=generator)
    before = copy.deepcopy(tuned.state_dict())
    model, kept, _ = importlib.import_module("workbench.models.filters").filtered(
        tuned, base, method, 0.75
    )
    assert all(torch.equal(value, before[name]) for name, value in tuned.state_dict().items())
    assert 0 < kept < 1
    name = "bert.encoder.layer.0.intermediate.dense"
    part = model.get_submodule(name)
    weight = (part.dense() if hasattr(part, "dense") else part.weight).detach()
    if method in ("update", "ranks"):
        weight = weight - base.get_submodule(name).weight.detach()
        assert torch.equal(model.classifier.weight, tuned.classifier.weight)
    assert torch.linalg.matrix_rank(weight, rtol=1e-4) < min(weight.shape)


def test_rows_are_chosen_on_the_selection_split_and_kept(rows_module: Any, tmp_path: Path) -> None:
    base, tuned = classifier(), classifier()
    seen: list[str] = []

    def evaluate(model: Any, split: str) -> np.ndarray:
        seen.append(split)
        return np.array([True, len(seen) == 3])  # the first fraction is the best

    told = {"splits": ["dev"], "methods": ["svd"], "fractions": [0.2, 0.5, 0.8]}
    file = tmp_path / "rows.json"
    rows = rows_module.method_rows(file, tuned, base, evaluate, **told)
    assert seen == ["selection", "dev", *["selection"] * 3, "dev"]
    assert rows["svd"]["curve"] == [[0.2, 1.0], [0.5, 0.5], [0.8, 0.5]]
    assert (rows["svd"]["removed"], rows["svd"]["splits"]) == (0.2, {"dev": [1, 0]})
    assert rows_module.method_rows(file, tuned, base, evaluate, **told) == rows
    assert len(seen) == 6
