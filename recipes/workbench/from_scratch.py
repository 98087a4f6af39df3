"""Image classifiers trained from nothing: the loop, the rows of their filters, the tables."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import update_bn
from tqdm.auto import tqdm

from workbench.common import check_settings, shuffled_labels
from workbench.method_rows import Column, method_rows, results_table, save_results

LAWS = ("pdb", "bema", "kernel")
"""The methods that find the noise themselves, so that all of it can be removed."""
EVALUATION_BATCH = 500
NORM_IMAGES = 2000
"""Training images on which batch normalisation is measured anew in a filtered network."""


class Images(NamedTuple):
    """Images as floats, shape (images, channels, height, width), and labels as numbers."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


@dataclass(kw_only=True)
class Arguments:
    """What the recipes are told."""

    data_dir: str | None = field(default=None, metadata={"help": "local files; default: the Hub"})
    embedded: bool = field(default=False, metadata={"help": "scikit-learn's digits, no Hub"})
    output_dir: str = field(default="results", metadata={"help": "where everything goes"})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    methods: list[str] = field(
        default_factory=lambda: ["pdb", "bema", "kernel", "slr", "svd"],
        metadata={"help": "rows beside the base"},
    )
    fractions: list[float] = field(
        default_factory=lambda: [0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
        metadata={"help": "shares of the noise directions to remove, those of the deck's figure"},
    )
    label_noise: float = field(default=0.0, metadata={"help": "share of labels to shuffle"})
    epochs: int = 20
    learning_rate: float = 0.05
    weight_decay: float = 5e-4
    batch_size: int = 64
    max_train_samples: int | None = None
    selection_samples: int = field(
        default=1000, metadata={"help": "training images kept back to choose, a fifth at most"}
    )
    use_cpu: bool = False


def study(
    arguments: Arguments,
    images: Images,
    build: Callable[[], nn.Module],
    *,
    name: str,
    title: str,
    published: Mapping[str, float],
    differences: tuple[str, ...],
) -> None:
    """Train one network per seed, filter it by every method, and write both tables.

    Args:
        arguments: What the recipe was told.
        images: The data; what is kept back to choose is taken from the training images.
        build: Makes an untrained network.
        name: Column of the tables.
        title: What was done.
        published: The deck's accuracy by method.
        differences: How the setting differs from the deck's.
    """
    folder = Path(arguments.output_dir)
    chosen, everything = [], []
    for seed in arguments.seeds:
        rows, all_removed = _seed(arguments, images, build, folder / f"seed-{seed}", seed)
        chosen.append(rows)
        everything.append(all_removed)
    notes = _notes(arguments, images)
    about = {"differences": differences if published else (), "notes": notes}
    column = Column(f"{name} test", "test", chosen, published)
    table = results_table([column], arguments.methods, title=title, **about)
    save_results(folder / "results", table, [column])
    if laws := _laws(arguments):
        column = Column(f"{name} test", "test", everything)
        table = results_table([column], laws, title=f"{title}, all noise removed", notes=notes)
        table.save(folder / "results-all-removed")
        print(table)


def _laws(arguments: Arguments) -> list[str]:
    return [method for method in arguments.methods if method in LAWS]


def _seed(
    arguments: Arguments, images: Images, build: Callable[[], nn.Module], folder: Path, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rows of one training: the share removed chosen, and all of the noise removed."""
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
        torch.save(net.state_dict(), file)

    def evaluate(model: nn.Module, split: str) -> np.ndarray:
        if model is not net:  # a filtered layer has another mean and variance
            update_bn(splits["train"][0][:NORM_IMAGES].split(EVALUATION_BATCH), model, device)
        return correct(model, *splits[split])

    about = {"splits": ["test"]}
    rows = method_rows(
        folder / "rows.json",
        net,
        start,
        evaluate,
        methods=arguments.methods,
        fractions=arguments.fractions,
        **about,
    )
    everything = method_rows(
        folder / "rows-all-removed.json",
        net,
        start,
        evaluate,
        methods=_laws(arguments),
        fractions=[1.0],
        **about,
    )
    return rows, everything


def fit(net: nn.Module, images: Tensor, labels: Tensor, arguments: Arguments, seed: int) -> None:
    """Train by stochastic gradient descent with momentum and a one-cycle learning rate.

    Args:
        net: Trained in place.
        images: Shape (images, channels, height, width).
        labels: Shape (images,).
        arguments: Epochs, rates and batch size.
        seed: Of the order of the images.
    """
    generator = torch.Generator().manual_seed(seed)
    device = next(net.parameters()).device
    optimizer = torch.optim.SGD(
        net.parameters(),
        arguments.learning_rate,
        momentum=0.9,
        weight_decay=arguments.weight_decay,
    )
    steps = arguments.epochs * -(-len(labels) // arguments.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, arguments.learning_rate, steps)
    net.train()
    progress = tqdm(range(arguments.epochs), f"Training, seed {seed}", disable=None)
    for _ in progress:
        for rows in torch.randperm(len(labels), generator=generator).split(arguments.batch_size):
            loss = functional.cross_entropy(net(images[rows].to(device)), labels[rows].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}")
    net.eval()


@torch.no_grad()
def correct(net: nn.Module, images: Tensor, labels: Tensor) -> np.ndarray:
    """Whether each image is classified as labelled, shape (images,)."""
    net.eval()
    device = next(net.parameters()).device
    batches = images.split(EVALUATION_BATCH)
    found = torch.cat([net(batch.to(device)).argmax(1).cpu() for batch in batches])
    return (found == labels).numpy()


def _splits(arguments: Arguments, images: Images, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Train and selection, both with the noisy labels that training would see, and test."""
    rows = torch.from_numpy(np.random.default_rng(0).permutation(len(images.train_y)))
    selection = min(arguments.selection_samples, len(rows) // 5)
    rows = rows[: selection + (arguments.max_train_samples or len(rows))]
    labels = images.train_y[rows].tolist()
    noisy = torch.tensor(shuffled_labels(labels, arguments.label_noise, seed=seed))
    return {
        "selection": (images.train_x[rows[:selection]], noisy[:selection]),
        "train": (images.train_x[rows[selection:]], noisy[selection:]),
        "test": (images.test_x, images.test_y),
    }


def _notes(arguments: Arguments, images: Images) -> tuple[str, ...]:
    noise = f", {arguments.label_noise:.0%} of the labels shuffled" if arguments.label_noise else ""
    return (
        f"{len(images.train_y)} images to train and choose on{noise}, {len(images.test_y)} to test",
        f"{arguments.epochs} epochs of SGD, learning rate {arguments.learning_rate:g}, weight "
        f"decay {arguments.weight_decay:g}, batches of {arguments.batch_size}",
        "the share removed was chosen for each seed on images kept back from the training images",
        f"batch normalisation, if there is any, was measured anew on {NORM_IMAGES} training "
        "images after each filter",
        "intervals: paired bootstrap over the test images, all seeds of an image together",
    )
