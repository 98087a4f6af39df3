"""MNIST, CIFAR10 and scikit-learn's digits as tensors."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any, NamedTuple

from workbench.data.rows import load_hub

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

MNIST_HUB = "ylecun/mnist"
CIFAR_HUB = "uoft-cs/cifar10"
CIFAR_SIDE = 32
CIFAR_KEYS = ("train_x", "train_y", "test_x", "test_y")


class Images(NamedTuple):
    """Images as floats, shape (images, channels, height, width), and labels as numbers."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


def read_mnist(data_dir: str | None, *, embedded: bool) -> Images:
    """MNIST with pixels of mean 0 and variance 1.

    Args:
        data_dir: Folder with the four idx files, packed (.gz) or not; None loads from the Hub.
        embedded: Read scikit-learn's digits instead: 8 x 8 pixels, and the last quarter for tests.

    Returns:
        The images, with one channel.

    Raises:
        SystemExit: If a file is missing or the Hub cannot be reached.
    """
    if embedded:
        arrays = _digits()
    elif data_dir is None:
        arrays = _from_hub(MNIST_HUB, "image")
    else:
        arrays = [
            read_idx(Path(data_dir), f"{part}-{kind}")
            for part in ("train", "t10k")
            for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
        ]
    train_x, train_y, test_x, test_y = _tensors(arrays)
    train_x, test_x = train_x[:, None].float(), test_x[:, None].float()
    mean, deviation = train_x.mean(), train_x.std()
    train_x, test_x = (train_x - mean) / deviation, (test_x - mean) / deviation
    return Images(train_x, train_y.long(), test_x, test_y.long())


def read_cifar10(data_dir: str | None, *, embedded: bool) -> Images:
    """CIFAR10 with pixels of mean 0 and variance 1 in each channel.

    Args:
        data_dir: An .npz file with train_x, train_y, test_x and test_y; None loads from the Hub.
        embedded: Read scikit-learn's digits instead, enlarged to 32 x 32 by repeated pixels.

    Returns:
        The images, of 32 x 32 pixels.

    Raises:
        SystemExit: If the file lacks an array or the Hub cannot be reached.
    """
    if embedded:
        arrays = _digits()
        for place in (0, 2):
            large = np.asarray(arrays[place])[..., None]
            for axis in (1, 2):
                large = large.repeat(CIFAR_SIDE // 8, axis=axis)
            arrays[place] = large
    elif data_dir is None:
        arrays = _from_hub(CIFAR_HUB, "img")
    else:
        file = np.load(data_dir)
        if missing := set(CIFAR_KEYS) - set(file):
            raise SystemExit(f"{data_dir} must hold {', '.join(CIFAR_KEYS)}; it lacks {missing}")
        arrays = [file[key] for key in CIFAR_KEYS]
    train_x, train_y, test_x, test_y = _tensors(arrays)
    train_x, test_x = (part.permute(0, 3, 1, 2).float() for part in (train_x, test_x))
    mean = train_x.mean((0, 2, 3), keepdim=True)
    deviation = train_x.std((0, 2, 3), keepdim=True)
    train_x, test_x = (train_x - mean) / deviation, (test_x - mean) / deviation
    return Images(train_x, train_y.long(), test_x, test_y.long())


def read_idx(folder: Path, name: str) -> np.ndarray:
    """Read an array of bytes in the idx format: two zeros, type, dimensions, sizes, then bytes."""
    packed = folder / f"{name}.gz"
    if packed.exists():
        content = gzip.decompress(packed.read_bytes())
    elif (folder / name).exists():
        content = (folder / name).read_bytes()
    else:
        raise SystemExit(f"--data_dir {folder} holds neither {name}.gz nor {name}; add one of them")
    dimensions = content[3]
    shape = np.frombuffer(content, ">i4", dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def _digits() -> list[Any]:
    images, labels = load_digits(return_X_y=True)
    images, split = images.reshape(-1, 8, 8), 3 * len(labels) // 4
    return [images[:split], labels[:split], images[split:], labels[split:]]


def _from_hub(name: str, column: str) -> list[Any]:
    arrays: list[Any] = []
    for split in ("train", "test"):
        rows = load_hub(name, split=split).with_format("numpy")
        arrays += [np.stack(rows[column]), np.array(rows["label"])]
    return arrays


def _tensors(arrays: list[Any]) -> list[Tensor]:
    return [torch.from_numpy(np.array(array)) for array in arrays]
