"""Images as rows with the columns image and label, and as pixels for a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.data.rows import load_hub

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, load_dataset
from PIL.Image import registered_extensions
from sklearn.datasets import load_digits

HUB = {
    "dtd": ("tanganke/dtd", "image", "label"),
    "sun397": ("tanganke/sun397", "image", "label"),
    "cifar10": ("uoft-cs/cifar10", "img", "label"),
    "cifar100": ("uoft-cs/cifar100", "img", "fine_label"),
}
"""For each task its dataset on the Hub, and the names of its image and its label column."""


@dataclass
class DataArguments:
    """Options that say which images are read and how they are used."""

    task: str = field(default="dtd", metadata={"help": f"from the Hub: {', '.join(HUB)}"})
    data_dir: str | None = field(
        default=None,
        metadata={
            "help": "folder with a sub-folder for each class, or with train and test; or an .npz "
            "file"
        },
    )
    test_share: float = field(
        default=0.2,
        metadata={"help": "share of each class to test on, if the data have no test split"},
    )
    image_size: int | None = field(
        default=None, metadata={"help": "side in pixels; default: the model's own"}
    )
    embedded: bool = field(default=False, metadata={"help": "built-in digits, small ViT, no Hub"})
    max_train_samples: int | None = field(default=None, metadata={"help": "most training images"})
    selection_samples: int = field(
        default=1000, metadata={"help": "training images kept back for choices, at most a fifth"}
    )


def splits_of(arguments: DataArguments) -> DatasetDict:
    """The splits train, selection and test, whose rows have an image and a label."""
    splits = read_images(arguments)
    rows = splits["train"]
    rows = rows.select(np.random.default_rng(0).permutation(len(rows)))
    selection = min(arguments.selection_samples, len(rows) // 5)
    end = min(len(rows), selection + (arguments.max_train_samples or len(rows)))
    parts = {"train": range(selection, end), "selection": range(selection)}
    return DatasetDict(
        {name: rows.select(part) for name, part in parts.items()} | {"test": splits["test"]}
    )


def read_images(arguments: DataArguments) -> DatasetDict:
    """The splits train and test that the data have, with columns image and label."""
    if arguments.embedded:
        return from_arrays(*digits())
    if arguments.data_dir is None:
        if arguments.task not in HUB:
            raise SystemExit(f"--task must be one of {', '.join(HUB)}, got {arguments.task!r}")
        name, image, label = HUB[arguments.task]
        splits = {split: load_hub(name, split=split) for split in ("train", "test")}
        return DatasetDict({key: columns_of(rows, image, label) for key, rows in splits.items()})
    if arguments.data_dir.endswith(".npz"):
        file = np.load(arguments.data_dir)
        return from_arrays(*(file[key] for key in ("train_x", "train_y", "test_x", "test_y")))
    return from_folder(Path(arguments.data_dir), arguments.test_share)


def from_folder(folder: Path, test_share: float) -> DatasetDict:
    """Images in folders: one for each class, or train and test with one for each class.

    Args:
        folder: The folder of the images.
        test_share: Share of each class to test on, if there are no folders train and test.

    Returns:
        The splits train and test. Class folders without train and test are split in the same way at
        each call.

    Raises:
        SystemExit: If the folder does not exist or holds fewer than two classes, if only one of
            train and test is there, or if a class is too small to be split.
    """
    if not folder.is_dir():
        raise SystemExit(f"--data_dir must be a folder or an .npz file, got {str(folder)!r}")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    own = {"train", "test"} & set(names)
    if len(own) == 1:
        missing = {"train", "test"} - own
        raise SystemExit(
            f"{folder} has {own.pop()} but no {missing.pop()}; add it, or move the class folders "
            "one level up, so that --test_share splits them"
        )
    if own:
        splits = load_dataset("imagefolder", data_dir=str(folder))
        return DatasetDict({name: splits[name] for name in ("train", "test")})
    if len(names) < 2:
        raise SystemExit(
            f"{folder} must hold a sub-folder for each of at least two classes, or "
            f"train and test; it has {names or 'none'}"
        )
    return split_classes(class_images(folder, names), test_share)


def class_images(folder: Path, names: Sequence[str]) -> Dataset:
    """The images in one sub-folder for each class; the classes may have any names."""
    endings = registered_extensions()
    files = {
        name: sorted(p for p in (folder / name).rglob("*") if p.suffix.lower() in endings)
        for name in names
    }
    columns = {
        "image": [str(path) for paths in files.values() for path in paths],
        "label": [label for label, paths in enumerate(files.values()) for _ in paths],
    }
    features = Features({"image": Image(), "label": ClassLabel(names=list(names))})
    return Dataset.from_dict(columns, features=features)


def split_classes(rows: Dataset, test_share: float, *, seed: int = 0) -> DatasetDict:
    """Train and test with the same share of each class.

    Args:
        rows: Rows with a column `label` of class labels.
        test_share: Share of each class to test on, in (0, 1). Each split gets at least one image of
            each class.
        seed: Seed of the random choice.

    Returns:
        The two splits.

    Raises:
        SystemExit: If the share lies outside of (0, 1), or a class has fewer than two images.
    """
    if not 0 < test_share < 1:
        raise SystemExit(f"--test_share must lie between 0 and 1, got {test_share:g}")
    labels, generator = np.array(rows["label"]), np.random.default_rng(seed)
    test: list[int] = []
    for number, name in enumerate(rows.features["label"].names):
        places = generator.permutation(np.flatnonzero(labels == number))
        if len(places) < 2:
            raise SystemExit(
                f"class {name!r} has {len(places)} images and needs at least 2; add more images"
            )
        count = min(max(1, round(test_share * len(places))), len(places) - 1)
        test += places[:count].tolist()
    train = np.setdiff1d(np.arange(len(labels)), test)
    return DatasetDict({"train": rows.select(train), "test": rows.select(sorted(test))})


def columns_of(rows: Dataset, image: str, label: str) -> Dataset:
    """The rows with columns named image and label, whatever their names in the data."""
    names = {image: "image", label: "label"}
    rows = rows.select_columns(list(names))
    return rows.rename_columns({old: new for old, new in names.items() if old != new})


def digits() -> tuple[np.ndarray, ...]:
    """scikit-learn's 1,797 digits of 8 x 8 pixels; the last quarter is for tests."""
    images, labels = load_digits(return_X_y=True)
    pixels = (images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    begin = 3 * len(labels) // 4
    return pixels[:begin], labels[:begin], pixels[begin:], labels[begin:]


def from_arrays(train_x: Any, train_y: Any, test_x: Any, test_y: Any) -> DatasetDict:
    """Splits of arrays of shape (images, height, width[, 3]) in uint8, with labels as numbers."""
    names = [str(label) for label in range(int(train_y.max()) + 1)]
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    parts = {"train": (train_x, train_y), "test": (test_x, test_y)}
    columns = {
        name: {"image": list(images), "label": labels.tolist()}
        for name, (images, labels) in parts.items()
    }
    return DatasetDict(
        {name: Dataset.from_dict(part, features=features) for name, part in columns.items()}
    )


def pixels(rows: Dataset, processor: Any) -> Dataset:
    """The rows, with each image turned into pixels for the model when it is read."""

    def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
        images = [image.convert("RGB") for image in batch["image"]]
        return {**processor(images, return_tensors="pt"), "labels": batch["label"]}

    return rows.with_transform(encode)


def collator_of(model: Any) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """A function that makes batches, which ask the model to interpolate its position embeddings.

    They ask only models that can do so.
    """
    told = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = {
            "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }
        return batch | ({"interpolate_pos_encoding": True} if told else {})

    return collate
