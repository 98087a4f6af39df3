"""Trains image classifiers from nothing: the training loop and its options."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from workbench.data.image_tensors import Images
from workbench.data.label_noise import shuffled_labels
from workbench.settings import check_settings
from workbench.writing import write_tensors

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import update_bn
from tqdm.auto import tqdm

EVALUATION_BATCH = 500
SHIFT = 4
"""The most pixels by which a training image is shifted."""
NORM_IMAGES = 2000
"""The most training images on which the batch normalisation of a filtered network is measured
again. If training shifted and mirrored its images, this is done here, too."""


class Training(NamedTuple):
    """A trained network, its state before training, and a function that evaluates its copies."""

    net: nn.Module
    start: nn.Module
    evaluate: Callable[[nn.Module, str], np.ndarray]


@dataclass(kw_only=True)
class Arguments:
    """Options of the recipes."""

    data_dir: str | None = field(default=None, metadata={"help": "local files; default: the Hub"})
    embedded: bool = field(default=False, metadata={"help": "scikit-learn's digits, no Hub"})
    output_dir: str = field(
        default="results", metadata={"help": "folder for models, tables and figures"}
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "seeds; one training for each"}
    )
    methods: list[str] = field(
        default_factory=lambda: ["pdb", "bema", "kernel", "slr", "svd"],
        metadata={"help": "rows in addition to the base"},
    )
    fractions: list[float] = field(
        default_factory=lambda: [0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
        metadata={"help": "shares of the noise directions to try to remove"},
    )
    label_noise: float = field(default=0.0, metadata={"help": "share of labels to shuffle"})
    epochs: int = field(default=20, metadata={"help": "epochs of the training"})
    learning_rate: float = field(default=0.05, metadata={"help": "largest learning rate"})
    weight_decay: float = field(default=5e-4, metadata={"help": "weight decay of all weights"})
    batch_size: int = field(default=64, metadata={"help": "images in a step"})
    augment: bool = field(
        default=False, metadata={"help": "whether training images are shifted and mirrored"}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "most training images"})
    min_size: int | None = field(
        default=None, metadata={"help": "smallest side of a layer that is filtered; default: 32"}
    )
    selection_samples: int = field(
        default=1000, metadata={"help": "training images kept back for choices, at most a fifth"}
    )
    use_cpu: bool = field(default=False, metadata={"help": "do not use an accelerator"})


def trained(
    arguments: Arguments, images: Images, build: Callable[[], nn.Module], folder: Path, seed: int
) -> Training:
    """Train a network, or read it from the folder if it was trained before.

    Args:
        arguments: Options of the recipe.
        images: The data.
        build: Makes an untrained network.
        folder: A folder for this training alone.
        seed: Seed of the weights, of the order of the images and of the shuffled labels.

    Returns:
        The network, its state before training, and a function that evaluates it and its filtered
        copies.
    """
    check_settings(folder, arguments)
    device = PartialState(cpu=arguments.use_cpu).device
    splits = _splits(arguments, images, seed)
    torch.manual_seed(seed)
    net = build().to(device)
    start, file = copy.deepcopy(net), folder / "trained.pt"
    if file.exists():
        net.load_state_dict(torch.load(file, map_location=device))
    else:
        fit(net, *splits["train"], arguments, seed)
        write_tensors(file, net.state_dict())

    seen = splits["train"][0][:NORM_IMAGES]
    if arguments.augment:
        seen = augmented(seen, torch.Generator().manual_seed(seed))

    def evaluate(model: nn.Module, split: str) -> np.ndarray:
        if model is not net:  # a filtered layer has another mean and variance
            update_bn(seen.split(EVALUATION_BATCH), model, device)
        return correct(model, *splits[split])

    return Training(net, start, evaluate)


def fit(net: nn.Module, images: Tensor, labels: Tensor, arguments: Arguments, seed: int) -> None:
    """Train by stochastic gradient descent with momentum and a one-cycle learning rate.

    Args:
        net: The network; it is trained in place.
        images: The training images, shape (images, channels, height, width).
        labels: Their labels, shape (images,).
        arguments: Options of the recipe, with epochs, rates and batch size.
        seed: Seed of the order of the images and of their shifts.
    """
    generator = torch.Generator().manual_seed(seed)
    device = next(net.parameters()).device
    optimizer, schedule = _optimizer(net, arguments, len(labels))
    net.train()
    progress = tqdm(range(arguments.epochs), f"Training, seed {seed}", disable=None)
    for _ in progress:
        for rows in torch.randperm(len(labels), generator=generator).split(arguments.batch_size):
            batch = augmented(images[rows], generator) if arguments.augment else images[rows]
            loss = functional.cross_entropy(net(batch.to(device)), labels[rows].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}")
    net.eval()


def _optimizer(net: nn.Module, arguments: Arguments, images: int) -> tuple[Any, Any]:
    """Stochastic gradient descent, and its learning rate over the whole run."""
    rate, steps = arguments.learning_rate, arguments.epochs * -(-images // arguments.batch_size)
    optimizer = torch.optim.SGD(
        net.parameters(), rate, momentum=0.9, weight_decay=arguments.weight_decay
    )
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps)


def start_left(arguments: Arguments, images: int) -> float:
    """Share of the random start that weight decay alone leaves in a trained weight.

    With learning rate lr and momentum m, a step shrinks a weight by the share lr decay / (1 - m).
    Let x be the sum of these shares over the run. Then the share that is left is exp(-x).

    Args:
        arguments: Options of the recipe, with epochs, rates, decay and batch size.
        images: Number of training images.
    """
    optimizer, schedule = _optimizer(nn.Linear(1, 1), arguments, images)
    group, total = optimizer.param_groups[0], 0.0
    for _ in range(schedule.total_steps):
        total += group["lr"] * group["weight_decay"] / (1 - group["momentum"])
        optimizer.step()
        schedule.step()
    return math.exp(-total)


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """The images, each moved by up to four pixels and mirrored or not.

    Args:
        images: The images, shape (images, channels, height, width).
        generator: Generator of the shifts and of the choice of mirrored images.

    Returns:
        New images of the same shape; pixels that a shift uncovers are 0.
    """
    count, _, height, width = images.shape
    padded = functional.pad(images, (SHIFT,) * 4)
    down, right = torch.randint(0, 2 * SHIFT + 1, (2, count, 1), generator=generator)
    mirrored = torch.randint(0, 2, (count, 1), generator=generator).bool()
    rows, columns = torch.arange(height), torch.arange(width)
    columns = torch.where(mirrored, columns.flip(0), columns)
    pixels = torch.arange(count)[:, None, None], (down + rows)[:, :, None]
    return padded.movedim(1, 3)[*pixels, (right + columns)[:, None, :]].movedim(3, 1)


@torch.no_grad()
def correct(net: nn.Module, images: Tensor, labels: Tensor) -> np.ndarray:
    """Whether the network gives each image its label, shape (images,)."""
    net.eval()
    device = next(net.parameters()).device
    batches = images.split(EVALUATION_BATCH)
    found = torch.cat([net(batch.to(device)).argmax(1).cpu() for batch in batches])
    return (found == labels).numpy()


def _splits(arguments: Arguments, images: Images, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """The splits train and selection, both with noisy labels, and test with unchanged labels."""
    rows = torch.from_numpy(np.random.default_rng(0).permutation(len(images.train_y)))
    selection, train = counts(arguments, len(rows))
    rows = rows[: selection + train]
    labels = images.train_y[rows].tolist()
    noisy = torch.tensor(shuffled_labels(labels, arguments.label_noise, seed=seed))
    return {
        "selection": (images.train_x[rows[:selection]], noisy[:selection]),
        "train": (images.train_x[rows[selection:]], noisy[selection:]),
        "test": (images.test_x, images.test_y),
    }


def counts(arguments: Arguments, images: int) -> tuple[int, int]:
    """The numbers of images to choose on and to train on, out of `images`."""
    selection = min(arguments.selection_samples, images // 5)
    return selection, min(images - selection, arguments.max_train_samples or images)
