"""Images, or their features in a pretrained model, as centred vectors of equal norm."""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path
from typing import NamedTuple

from workbench.data.image_tensors import Images, read_cifar10, read_mnist
from workbench.data.rows import needs_hub
from workbench.models.ridge import Rows
from workbench.writing import write_tensors

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel

BATCH = 50


class Split(NamedTuple):
    """Vectors and one-hot labels, in three parts: to fit on, to choose on and to test on."""

    name: str
    train: Rows
    kept: Rows
    test: Rows


def read_splits(arguments: argparse.Namespace) -> Split:
    """The images that the options name, as vectors.

    Each vector has norm 1. With --trained, a vector of p entries has norm sqrt p.

    Args:
        arguments: The recipe's options.
    """
    arrays = Path(arguments.data_dir or "").suffix == ".npz"
    cifar = not arguments.embedded and (arrays or arguments.task == "cifar10")
    read = read_cifar10 if cifar else read_mnist
    images = read(arguments.data_dir, embedded=arguments.embedded)
    name = "CIFAR10" if cifar else "digits" if arguments.embedded else "MNIST"
    if arguments.features:
        images, name = class_tokens(images, arguments), f"features of {name}"
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(images.train_y)))
    kept = order[: min(arguments.selection_samples, len(order) // 5)]
    train = order[len(kept) :]
    flat = images.train_x.flatten(1), images.test_x.flatten(1)
    mean = flat[0][train].mean(0).half().float()  # rounded to the 16 bits in which it is stored

    size = mean.numel() ** 0.5 if arguments.trained else 1.0

    def rows(inputs: Tensor, labels: Tensor) -> Rows:
        vectors = functional.normalize(inputs - mean) * size
        targets = functional.one_hot(labels, int(images.train_y.max()) + 1)
        return Rows(vectors.numpy(), targets.float().numpy())

    return Split(
        name,
        rows(flat[0][train], images.train_y[train]),
        rows(flat[0][kept], images.train_y[kept]),
        rows(flat[1], images.test_y),
    )


def class_tokens(images: Images, arguments: argparse.Namespace) -> Images:
    """The class tokens that a model gives for the images; they are saved in the output folder."""
    file = Path(arguments.output_dir) / "features.pt"
    if file.exists():
        return Images(*torch.load(file))
    with needs_hub(arguments.features, "--features FOLDER (a model on this machine)"):
        model = AutoModel.from_pretrained(arguments.features).eval()
    told = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
    options = {"interpolate_pos_encoding": True} if told else {}

    @torch.no_grad()
    def tokens(pixels: Tensor) -> Tensor:
        found = []
        for batch in pixels.split(BATCH):
            size = (arguments.image_size, arguments.image_size)
            large = functional.interpolate(batch, size, mode="bicubic")
            found.append(model(large, **options).last_hidden_state[:, 0])
        return torch.cat(found)

    result = Images(tokens(images.train_x), images.train_y, tokens(images.test_x), images.test_y)
    write_tensors(file, tuple(result))
    return result
