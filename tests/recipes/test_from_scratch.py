"""Recipes that train small networks from nothing: `mnist_fcnn.py` and `cifar10_cnn.py`."""

from __future__ import annotations

import gzip
import importlib
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_rmt.compression.targets.selection import select_layers
from hf_rmt.settings import CompressionSettings
from tests.processes import RECIPES, run_python

TINY = ["--embedded", "--use_cpu", "--seeds", "0", "--selection_samples", "50"]
FCNN = ["--epochs", "4", "--methods", "pdb", "svd", "--fractions", "0.5", "1.0"]
CNN = ["--epochs", "1", "--methods", "svd", "--fractions", "0.5", "--max_train_samples", "64"]


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(RECIPES)
    return importlib.import_module


def run(name: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return run_python(RECIPES / name, *TINY, *options, "--output_dir", folder)


def test_one_command_trains_filters_and_reports_and_does_nothing_twice(tmp_path: Path) -> None:
    process = run("mnist_fcnn.py", tmp_path, *FCNN)
    assert process.returncode == 0, process.stderr[-3000:]
    rows = json.loads((tmp_path / "seed-0" / "rows.json").read_text())
    assert list(rows) == ["base", "pdb", "svd"]
    assert np.mean(rows["base"]["splits"]["test"]) > 0.5
    assert [removed for removed, _ in rows["pdb"]["curve"]] == [0.5, 1.0]
    everything = json.loads((tmp_path / "seed-0" / "rows-all-removed.json").read_text())
    assert everything["pdb"]["removed"] == 1.0
    assert everything["base"]["splits"] == rows["base"]["splits"]
    for folder in ("results", "results-all-removed"):
        assert (tmp_path / folder / "results.md").read_text().count("| base") == 1

    trained = (tmp_path / "seed-0" / "trained.pt").stat().st_mtime_ns
    assert run("mnist_fcnn.py", tmp_path, *FCNN).returncode == 0
    assert (tmp_path / "seed-0" / "trained.pt").stat().st_mtime_ns == trained
    process = run("mnist_fcnn.py", tmp_path, *FCNN, "--label_noise", "0.4")
    assert "label_noise" in process.stderr
    notes = (tmp_path / "results" / "results.md").read_text()
    assert "1297 images to train and 50 to choose on, 450 to test" in notes
    assert "batch normalisation" not in notes  # the network has none
    assert "| base (trained from nothing) |" in notes


@pytest.mark.parametrize("network", ["vgg16", "resnet18"])
def test_convolutional_networks_are_filtered(network: str, tmp_path: Path) -> None:
    process = run("cifar10_cnn.py", tmp_path, *CNN, "--network", network, "--width", "0.125")
    assert process.returncode == 0, process.stderr[-3000:]
    row = json.loads((tmp_path / "seed-0" / "rows.json").read_text())["svd"]
    assert 0.4 < row["kept"] < 1


def test_the_networks_are_those_of_the_publication(recipes: Any) -> None:
    fcnn = recipes("workbench.models.networks").fcnn(784)
    widths = [tuple(part.weight.shape) for part in fcnn if isinstance(part, torch.nn.Linear)]
    assert widths == [(512, 784), (512, 512), (350, 512), (10, 350)]
    networks = recipes("workbench.models.networks")
    image = torch.zeros(2, 3, 32, 32)
    for build, layers in ((networks.vgg16, 16 - 3 + 1), (networks.resnet18, 18 + 3)):
        net = build(0.125, 3).eval()
        assert net(image).shape == (2, 10)
        kinds = (torch.nn.Conv2d, torch.nn.Linear)
        assert sum(isinstance(part, kinds) for part in net.modules()) == layers
    first = select_layers(networks.vgg16(0.125, 3), CompressionSettings())[0]
    assert first == "3"  # the first convolution reads the image and stays dense


def test_idx_files_are_read_packed_or_not(recipes: Any, tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    content = bytes([0, 0, 8, 3]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()
    (tmp_path / "plain").write_bytes(content)
    (tmp_path / "packed.gz").write_bytes(gzip.compress(content))
    read_idx = recipes("workbench.data.image_tensors").read_idx
    for name in ("plain", "packed"):
        assert np.array_equal(read_idx(tmp_path, name), array)
    with pytest.raises(SystemExit, match=r"holds neither absent\.gz nor absent"):
        read_idx(tmp_path, "absent")


def test_notes_count_the_images_of_batch_normalisation(recipes: Any) -> None:
    scratch, study = (
        recipes(f"workbench.training.{name}") for name in ("from_scratch", "filter_study")
    )
    labels = torch.zeros(1347)
    images = scratch.Images(labels, labels, labels, labels)
    for most, count in ((None, 1078), (100, 100), (3000, 1078)):
        arguments = scratch.Arguments(max_train_samples=most)
        notes = study._notes(arguments, images, normalised=True)
        assert f"measured again on {count} training images" in " ".join(notes)
        assert notes[0].startswith(f"{count} images to train and 269 to choose on")


def test_label_noise_reaches_what_is_trained_on_and_chosen_on_alone(recipes: Any) -> None:
    scratch = recipes("workbench.training.from_scratch")
    labels = torch.arange(100) % 10
    images = scratch.Images(labels[:, None].float(), labels, labels[:, None].float(), labels)
    arguments = scratch.Arguments(label_noise=0.4, selection_samples=20)
    splits = scratch._splits(arguments, images, 0)
    assert [len(splits[name][1]) for name in ("selection", "train", "test")] == [20, 80, 100]
    wrong = {
        name: float((part[0][:, 0] != part[1]).float().mean()) for name, part in splits.items()
    }
    assert wrong["test"] == 0
    assert 0.25 < wrong["train"] < 0.45  # of 40 % shuffled labels a tenth stays by chance
    together = torch.cat([splits["selection"][0], splits["train"][0]]).flatten()
    assert torch.equal(together.sort().values, labels.float().sort().values)


def test_augmented_images_are_shifted_or_mirrored(recipes: Any) -> None:
    scratch = recipes("workbench.training.from_scratch")
    images = torch.zeros(400, 2, 16, 16)
    images[:, :, 8, 5] = 1.0
    moved = scratch.augmented(images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    assert torch.equal(moved.sum((1, 2, 3)), images.sum((1, 2, 3)))  # no pixel leaves the image
    places = moved[:, 0].flatten(1).argmax(1)
    rows, columns = places // 16 - 8, places % 16
    assert set(rows.tolist()) == set(range(-4, 5))
    assert set(columns.tolist()) == {*range(1, 10), *range(6, 15)}  # 5, or 10 where mirrored
    again = scratch.augmented(images, torch.Generator().manual_seed(0))
    assert torch.equal(moved, again)


def test_what_is_left_of_the_start_is_what_decay_alone_leaves(recipes: Any) -> None:
    scratch = recipes("workbench.training.from_scratch")
    arguments = scratch.Arguments(epochs=3, weight_decay=5e-3, batch_size=4)
    left = scratch.start_left(arguments, 400)
    # a network that the loss does not reach is moved by its decay alone
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2, bias=False))
    start = net[1].weight.detach().clone()
    scratch.fit(net, torch.zeros(400, 1, 2, 2), torch.zeros(400).long(), arguments, 0)
    measured = (net[1].weight.detach() / start).flatten()
    assert measured == pytest.approx(np.full(8, left), rel=0.1)
    assert left < 0.8


def test_the_map_over_decay_and_epochs(tmp_path: Path) -> None:
    options = ("--epochs_list", "1", "--decays", "5e-4", "5e-2", "--width", "0.05")
    process = run("bench_regime.py", tmp_path, *options, "--max_train_samples", "64")
    assert process.returncode == 0, process.stderr[-3000:]
    lines = (tmp_path / "vgg16" / "map.md").read_text().splitlines()
    assert len(lines) == 2 + 2 * 3
    assert (tmp_path / "vgg16" / "map.png").exists()
    assert process.stdout.splitlines()[-1] == lines[-1]
