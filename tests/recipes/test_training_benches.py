"""`bench_training.py` and `bench_wrong_labels.py` on images and a T5; `--embedded` runs texts."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

SIDE = 8
SIZE = {"height": SIDE, "width": SIDE}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 40 and 10 random images as MNIST and CIFAR-10 have them, and a small ViT."""
    folder, generator = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    (folder / "mnist").mkdir()
    (folder / "cifar10").mkdir()
    arrays = {}
    for part, split, count in (("train", "train", 40), ("t10k", "test", 10)):
        images = generator.integers(0, 256, (count, SIDE, SIDE), dtype=np.uint8)
        labels = (np.arange(count) % 3).astype(np.uint8)
        for kind, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
            head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
            (folder / "mnist" / f"{part}-{kind}").write_bytes(head + array.tobytes())
        arrays |= {f"{split}_x": np.stack([images] * 3, -1), f"{split}_y": labels}
    np.savez(folder / "cifar10" / "few.npz", **arrays)
    config = ViTConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=SIDE,
        patch_size=4,
    )
    ViTForImageClassification(config).vit.save_pretrained(folder / "vit")
    ViTImageProcessorPil(size=SIZE).save_pretrained(folder / "vit")
    config.num_labels = 3
    ViTForImageClassification(config).save_pretrained(folder / "tuned")
    ViTImageProcessorPil(size=SIZE).save_pretrained(folder / "tuned")
    return folder


def run(name: str, data: Path, *options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = ["--data_dir", data, "--image_model", data / "vit", "--image_size", SIDE]
    told += ["--task", "mnist", "cifar10", "--max_steps", 4, "--batch_size", 8, *options]
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, told)])
    importlib.import_module(name).main()


def test_cures_for_wrong_labels_are_judged_on_images(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ("--max_train_samples", "24", "--selection_samples", "8", "--output_dir", str(tmp_path))
    told += ("--max_steps", "8")  # the first step has a learning rate of 0, so a quarter must be 2
    run("bench_wrong_labels", data, *told, monkeypatch=monkeypatch)
    shown = capsys.readouterr().out
    for task in ("mnist", "cifar10"):
        rows = json.loads((tmp_path / f"{task}-noise0.4" / "0.json").read_text())
        assert {"tuned", "half", "scaled-0.5", "rank-4", "filter", "dose", "callback"} <= set(rows)
        assert all(len(row["correct"]) == 10 for row in rows.values())
        assert f"{task}-noise0.4" in shown


def test_rows_are_kept_back_without_a_change_of_the_others(data: Path) -> None:
    problems = importlib.import_module("workbench.training.problems")
    told = {"data_dir": str(data), "image_model": str(data / "vit"), "label_noise": 0.5}
    for task in ("mnist", "cifar10"):
        few, more, all_rows = (
            problems.problem_of(
                problems.ProblemArguments(**told, image_size=SIDE, **sizes), task, seed=0
            )
            for sizes in (
                {"max_train_samples": 24, "selection_samples": 0},
                {"max_train_samples": 24, "selection_samples": 8},
                {},
            )
        )
        assert few.kept is None
        assert all_rows.kept is None
        assert (len(more.train), len(more.kept), len(all_rows.train)) == (24, 8, 40)
        labels = [[row["labels"] for row in problem.train] for problem in (few, more)]
        assert labels[0] == labels[1]


def test_the_callback_is_judged_on_images(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("plain", "annealed-0.5", "int4-calibrated")
    run(
        *("bench_training", data, "--rows", *names, "--output_dir", str(tmp_path)),
        monkeypatch=monkeypatch,
    )
    for task in ("mnist", "cifar10"):
        plain, ours, stored = (
            json.loads((tmp_path / task / f"{row}-0.json").read_text()) for row in names
        )
        assert (plain["share"], plain["steps"]) == (1.0, 4)
        assert 0.3 < ours["share"] <= 0.5
        assert 4 / 32 < stored["share"] < 0.5
        assert len(ours["correct"]) == len(stored["correct"]) == 10


def test_a_model_of_images_is_healed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = ["heal.py", "--task", "cifar10", "--data_dir", data, "--image_model", data / "tuned"]
    told += ["--image_size", SIDE, "--size", 0.5, "--steps", 2, "--batch_size", 8, "--use_cpu"]
    monkeypatch.setattr(sys, "argv", [*map(str, told), "--output_dir", str(tmp_path)])
    importlib.import_module("heal").main()
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["reload_difference"] == 0
    assert 0.3 < results["parameters_kept"] <= 0.5
    assert list(results["splits"]) == ["test"]
    assert (tmp_path / "preprocessor_config.json").is_file()


@pytest.mark.parametrize("told", [["mnist"], ["t5"], ["sst2", "mrpc"], ["cifar10"]])
def test_what_cannot_be_healed_is_refused(told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["heal.py", "--use_cpu", "--task", *told])
    with pytest.raises(SystemExit, match=r"--task takes one of|needs .* --image_model"):
        importlib.import_module("heal").main()


def test_a_small_t5_is_trained_from_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"a {word} film number {n}\t{n % 2}" for n, word in enumerate(["dull", "fine"] * 20)]
    for name in ("train", "dev"):
        text = "\n".join(["sentence\tlabel", *lines])
        (tmp_path / f"{name}.tsv").write_text(text, encoding="utf-8")
    told = ["bench_training.py", "--task", "t5", "--data_dir", str(tmp_path), "--max_steps", "4"]
    told += ["--rows", "plain", "annealed-0.5", "--output_dir", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", told)
    importlib.import_module("bench_training").main()
    plain, ours = (
        json.loads((tmp_path / "out" / "t5" / f"{row}-0.json").read_text())
        for row in ("plain", "annealed-0.5")
    )
    assert len(plain["correct"]) == len(ours["correct"]) == 40
    assert (plain["share"], ours["steps"]) == (1.0, 4)
    assert 0.3 < ours["share"] <= 0.5


def test_a_task_without_files_or_name_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for task, words in (("cifar10", "which has none"), ("digits", "mnist")):
        told = ["--task", task, "--data_dir", str(tmp_path), "--output_dir", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", ["bench_training.py", *told])
        with pytest.raises(SystemExit, match=words):
            importlib.import_module("bench_training").main()
