from __future__ import annotations

from pathlib import Path

from workbench.data.images import DataArguments, from_folder, read_images

import numpy as np
import pytest
from PIL import Image

COUNTS = {"cats": 10, "dogs": 5, "test birds": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Plain folders of classes, each image of another brightness, and a file that is no image."""
    shade = 0
    for name, count in COUNTS.items():
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.new("L", (4, 4), shade).save(tmp_path / name / f"train {number}.png")
            shade += 1
    (tmp_path / "cats" / "notes.txt").write_text("no image")
    return tmp_path


def shades(rows) -> list[tuple[int, int]]:
    return [(int(np.array(row["image"])[0, 0]), row["label"]) for row in rows]


def test_plain_class_folders_are_split_by_class(folder: Path) -> None:
    arguments = DataArguments(data_dir=str(folder), test_share=0.2)
    splits = read_images(arguments)
    assert splits["train"].features["label"].names == sorted(COUNTS)
    train, test = (shades(splits[name]) for name in ("train", "test"))
    labels = [label for label, count in enumerate(COUNTS.values()) for _ in range(count)]
    assert sorted(train + test) == list(enumerate(labels))
    assert np.bincount([label for _, label in test]).tolist() == [2, 1, 1]
    again = read_images(arguments)
    assert shades(again["test"]) == test
    half = shades(read_images(DataArguments(data_dir=str(folder), test_share=0.5))["test"])
    assert np.bincount([label for _, label in half]).tolist() == [5, 2, 1]


@pytest.mark.parametrize(
    ("change", "share", "message"),
    [
        (lambda folder: None, 1.0, "--test_share must lie between 0 and 1, got 1"),
        (lambda folder: (folder / "train").mkdir(), 0.2, "has train but no test"),
        (lambda folder: (folder / "empty").mkdir(), 0.2, "class 'empty' has 0 images"),
    ],
)
def test_folders_that_cannot_be_split_are_refused(folder, change, share, message) -> None:
    change(folder)
    with pytest.raises(SystemExit, match=message):
        from_folder(folder, share)


def test_a_folder_needs_two_classes(folder: Path) -> None:
    with pytest.raises(SystemExit, match=r"at least two classes, or train and test; it has none"):
        from_folder(folder / "cats", 0.2)
    with pytest.raises(SystemExit, match=r"must be a folder or an \.npz file"):
        from_folder(folder / "absent", 0.2)
