from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

import hf_rmt  # noqa: F401 - the best model may be a compressed one
from tests.processes import RECIPES, TIMEOUT, succeed

OPTIONS = [
    "--embedded",
    "--use_cpu",
    "--seeds",
    "0",
    "--max_steps",
    "40",
    "--fractions",
    "0.4",
    "1",
]


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(RECIPES)
    return importlib.import_module("image_classification")


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(RECIPES)
    return importlib.import_module("workbench.data.images")


def launch(folder: Path, *methods: str, processes: int = 1) -> dict[str, Any]:
    """Run the recipe in processes of its own; its rows."""
    options = [*OPTIONS, "--methods", *methods, "--output_dir", folder]
    succeed(RECIPES / "image_classification.py", *options, processes=processes)
    return json.loads((folder / "digits" / "seed-0" / "rows.json").read_text())


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("images")
    return folder, launch(folder, "update", "pdb", "svd")


def test_one_command_fills_every_row_and_saves_everything(one_process: Any) -> None:
    folder, rows = one_process
    assert list(rows) == ["base", "update", "pdb", "svd"]
    assert [point[0] for point in rows["pdb"]["curve"]] == [0.4, 1.0]
    assert all(len(row["splits"]["test"]) == 450 for row in rows.values())
    table = (folder / "digits" / "results" / "results.md").read_text()
    assert f"{np.mean(rows['pdb']['splits']['test']):.4f}" in table
    assert (folder / "digits" / "results" / "results.json").exists()
    assert list((folder / "digits" / "results").glob("curve-*.png"))
    assert "base_model" not in (folder / "digits" / "best" / "README.md").read_text()
    logs = json.loads((folder / "digits" / "seed-0" / "training.json").read_text())
    assert any("rmt/spikes" in entry for entry in logs)
    assert any("eval_accuracy" in entry for entry in logs)


def test_the_best_filtered_model_reloads_with_its_accuracy(one_process: Any, data: Any) -> None:
    folder, rows = one_process
    best = max(
        (method for method in rows if method != "base"),
        key=lambda method: (dict(rows[method]["curve"])[rows[method]["removed"]], method),
    )
    model = AutoModelForImageClassification.from_pretrained(folder / "digits" / "best").eval()
    processor = AutoImageProcessor.from_pretrained(folder / "digits" / "best")
    test = data.splits_of(data.DataArguments(embedded=True))["test"]
    batch = data.pixels(test, processor)[:]
    with torch.no_grad():
        found = model(torch.as_tensor(batch["pixel_values"])).logits.argmax(-1)
    correct = (found == torch.tensor(batch["labels"])).int().tolist()
    assert np.mean(np.array(correct) != rows[best]["splits"]["test"]) <= 1 / 450  # a tie may turn


@pytest.mark.skipif(torch.accelerator.is_available(), reason="two processes of a CPU")
def test_two_processes_of_accelerate_find_what_one_does(one_process: Any, tmp_path: Path) -> None:
    _, alone = one_process
    options = [name for name in OPTIONS if name != "--use_cpu"]  # found out by the recipe itself
    options += ["--methods", "update", "--output_dir", str(tmp_path)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--main_process_port", port, str(RECIPES / "image_classification.py")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(RECIPES.parent)}
    done = subprocess.run(
        [sys.executable, *launcher, *options],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((tmp_path / "digits" / "seed-0" / "rows.json").read_text())
    # gradients are averaged in another order, which rounds otherwise
    for method in ("base", "update"):
        first, second = (np.array(part[method]["splits"]["test"]) for part in (alone, rows))
        assert np.mean(first != second) <= 3 / 450
        assert rows[method]["removed"] == alone[method]["removed"]


def test_without_the_hub_the_message_names_what_works(
    recipe: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["recipe", "--task", "dtd", "--output_dir", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"tanganke/dtd(.|\n)*--embedded(.|\n)*--data_dir"):
        recipe.main()
    monkeypatch.setattr(sys, "argv", ["recipe", "--task", "digit"])
    with pytest.raises(SystemExit, match="--task must be one of dtd, sun397, cifar10, cifar100"):
        recipe.main()


def test_arrays_and_image_folders_are_the_same_images(data: Any, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (15, 6, 6, 3), dtype=np.uint8)
    labels = np.arange(15) % 2
    x, y = {"train": images[:10], "test": images[10:]}, {"train": labels[:10], "test": labels[10:]}
    arrays = tmp_path / "images.npz"
    np.savez(arrays, train_x=x["train"], train_y=y["train"], test_x=x["test"], test_y=y["test"])
    for split in ("train", "test"):
        for number, (image, label) in enumerate(zip(x[split], y[split], strict=True)):
            folder = tmp_path / "folder" / split / f"class {label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number:02}.png")
    for source in (arrays, tmp_path / "folder"):
        found = data.read_images(data.DataArguments(data_dir=str(source)))
        for split in ("train", "test"):
            pairs = {(np.array(row["image"]).tobytes(), row["label"]) for row in found[split]}
            expected = zip((image.tobytes() for image in x[split]), y[split], strict=True)
            assert pairs == set(expected)
        assert len(found["train"].features["label"].names) == 2


def test_selection_is_taken_from_the_training_images(data: Any) -> None:
    splits = data.splits_of(
        data.DataArguments(embedded=True, selection_samples=100, max_train_samples=50)
    )
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 50,
        "selection": 100,
        "test": 450,
    }
    pictures = {
        name: {np.array(image).tobytes() for image in rows["image"]}
        for name, rows in splits.items()
    }
    everything = data.read_images(data.DataArguments(embedded=True))["train"]
    known = {np.array(image).tobytes() for image in everything["image"]}
    assert pictures["train"] | pictures["selection"] <= known
    assert not pictures["train"] & pictures["selection"]


@pytest.mark.parametrize("kind", [ViTImageProcessorPil, BitImageProcessorPil])
def test_images_take_the_size_that_is_asked_for(
    recipe: Any, data: Any, kind: Any, tmp_path: Path
) -> None:
    kind().save_pretrained(tmp_path)
    options = {"model": str(tmp_path), "embedded": False}
    rows = data.from_arrays(*data.digits())["train"].select(range(2))
    for side, expected in ((14, 14), (None, 224)):
        processor = recipe.processor_of(recipe.Arguments(**options, image_size=side))
        shape = data.pixels(rows, processor)[:]["pixel_values"][0].shape
        assert tuple(shape) == (3, expected, expected)
        # one that crops must not squeeze a wide image into a square first
        crops = processor.to_dict()["size"].get("shortest_edge") is not None
        assert crops == (kind is BitImageProcessorPil)


def test_position_embeddings_are_interpolated_where_the_model_must_be_told(data: Any) -> None:
    def told(pixel_values: Any, interpolate_pos_encoding: bool = False) -> None: ...

    def silent(pixel_values: Any) -> None: ...

    rows = [{"pixel_values": torch.zeros(3, 2, 2), "labels": label} for label in (1, 0)]
    for forward, expected in ((told, True), (silent, None)):
        batch = data.collator_of(type("Model", (), {"forward": staticmethod(forward)})())(rows)
        assert batch.get("interpolate_pos_encoding") is expected
        assert batch["labels"].tolist() == [1, 0]
