"""Images as rows with the columns image and label, and as pixels for a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, load_dataset
from sklearn.datasets import load_digits

from workbench.common import load_hub

HUB = {
    "dtd": ("tanganke/dtd", "image", "label"),
    "sun397": ("tanganke/sun397", "image", "label"),
    "cifar10": ("uoft-cs/cifar10", "img", "label"),
    "cifar100": ("uoft-cs/cifar100", "img", "fine_label"),
}
"""Hub dataset, image column, label column."""


@dataclass
class DataArguments:
    """Which images are read, and what becomes of them."""

    task: str = field(default="dtd", metadata={"help": f"from the Hub: {', '.join(HUB)}"})
    data_dir: str | None = field(default=None, metadata={"help": "image folder or .npz file"})
    image_size: int | None = field(default=None, metadata={"help": "default: the model's own"})
    embedded: bool = field(default=False, metadata={"help": "built-in digits, small ViT, no Hub"})
    max_train_samples: int | None = None
    selection_samples: int = field(
        default=1000, metadata={"help": "training images kept back to choose, a fifth at most"}
    )


def splits_of(arguments: DataArguments) -> DatasetDict:
    """Rows with image and label: train, selection and test."""
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
    """The data's own splits train and test, with columns image and label."""
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
    splits = load_dataset("imagefolder", data_dir=arguments.data_dir)
    if missing := {"train", "test"} - set(splits):
        raise SystemExit(f"{arguments.data_dir} must hold train and test, and lacks {missing}")
    return splits


def columns_of(rows: Dataset, image: str, label: str) -> Dataset:
    """The columns image and label, whatever they are called in the data."""
    names = {image: "image", label: "label"}
    rows = rows.select_columns(list(names))
    return rows.rename_columns({old: new for old, new in names.items() if old != new})


def digits() -> tuple[np.ndarray, ...]:
    """scikit-learn's 1,797 digits of 8 x 8 pixels, the last quarter to test on."""
    images, labels = load_digits(return_X_y=True)
    pixels = (images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    begin = 3 * len(labels) // 4
    return pixels[:begin], labels[:begin], pixels[begin:], labels[begin:]


def from_arrays(train_x: Any, train_y: Any, test_x: Any, test_y: Any) -> DatasetDict:
    """Arrays of shape (images, height, width[, 3]) in uint8, labels as numbers."""
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
    """The same rows, their images read as pixels for the model."""

    def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
        images = [image.convert("RGB") for image in batch["image"]]
        return {**processor(images, return_tensors="pt"), "labels": batch["label"]}

    return rows.with_transform(encode)


def collator_of(model: Any) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """Makes batches; some models interpolate their position embeddings only if they are told."""
    told = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = {
            "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }
        return batch | ({"interpolate_pos_encoding": True} if told else {})

    return collate
