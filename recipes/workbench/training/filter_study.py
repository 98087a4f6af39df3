"""Trains networks from nothing, filters them by every method, and writes two tables.

The first table has a chosen share of the noise removed, the second has all of it removed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.data.image_tensors import Images
from workbench.processes import one_process
from workbench.report.method_rows import method_rows
from workbench.report.method_table import TRAINED, Column, results_table, save_results
from workbench.report.result_figures import save_table
from workbench.training.from_scratch import NORM_IMAGES, Arguments, Training, counts, trained

from torch import nn

LAWS = ("pdb", "bema", "kernel")
"""The methods that find the noise themselves, so that all of it can be removed."""


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
    """Train one network per seed, filter it by every method, and write the two tables.

    Args:
        arguments: Options of the recipe.
        images: The data; the images to choose on are taken from the training images.
        build: Makes an untrained network.
        name: Name of the data, for the column of the tables.
        title: Title of the tables.
        published: Accuracies by method in Wu, Zhu & Li (2025).
        differences: How the setting differs from that of the published accuracies.
    """
    one_process()
    folder = Path(arguments.output_dir)
    chosen, everything = [], []
    for seed in arguments.seeds:
        rows, all_removed = _seed(arguments, images, build, folder / f"seed-{seed}", seed)
        chosen.append(rows)
        everything.append(all_removed)
    notes = _notes(arguments, images, normalised=_is_normalised(build()))
    about: dict[str, Any] = {"differences": differences if published else (), "notes": notes}
    column = Column(f"{name} test", "test", chosen, published)
    about["base_title"] = TRAINED
    table = results_table([column], arguments.methods, title=title, **about)
    save_results(folder / "results", table, [column])
    if laws := _laws(arguments):
        column = Column(f"{name} test", "test", everything)
        about = {"base_title": TRAINED, "notes": notes[:2] + notes[3:]}
        table = results_table([column], laws, title=f"{title}, all noise removed", **about)
        save_table(table, folder / "results-all-removed")
        print(table)


def _laws(arguments: Arguments) -> list[str]:
    return [method for method in arguments.methods if method in LAWS]


def _seed(
    arguments: Arguments, images: Images, build: Callable[[], nn.Module], folder: Path, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rows of one training: with the chosen share removed, and with all noise removed."""
    run = trained(arguments, images, build, folder, seed)
    rows = method_rows(
        folder / "rows.json",
        *run,
        methods=arguments.methods,
        fractions=arguments.fractions,
        splits=["test"],
        **filter_options(arguments),
    )
    file = folder / "rows-all-removed.json"
    return rows, all_removed(file, run, _laws(arguments), **filter_options(arguments))


def filter_options(arguments: Arguments) -> dict[str, Any]:
    """The user's options for the layers to filter, as options of `RMTConfig`."""
    return {} if arguments.min_size is None else {"min_size": arguments.min_size}


def all_removed(
    file: Path, run: Training, methods: Sequence[str], **options: Any
) -> dict[str, Any]:
    """The rows of one training with all of the noise removed; see `method_rows`."""
    return method_rows(file, *run, methods=methods, fractions=[1.0], splits=["test"], **options)


def _is_normalised(net: nn.Module) -> bool:
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in net.modules())


def _notes(arguments: Arguments, images: Images, *, normalised: bool) -> tuple[str, ...]:
    """Notes on how the numbers were made; the third says how the removed share was chosen."""
    selection, train = counts(arguments, len(images.train_y))
    noise = f", {arguments.label_noise:.0%} of the labels shuffled" if arguments.label_noise else ""
    return (
        f"{train} images to train and {selection} to choose on{noise}, "
        f"{len(images.test_y)} to test",
        f"{arguments.epochs} epochs of SGD, learning rate {arguments.learning_rate:g}, weight "
        f"decay {arguments.weight_decay:g}, batches of {arguments.batch_size}"
        + (", images shifted and mirrored" if arguments.augment else ""),
        "the share removed was chosen for each seed on images kept back from the training images",
        *(
            [
                f"batch normalisation was measured again on {min(NORM_IMAGES, train)} training "
                "images after each filter"
            ]
            if normalised
            else []
        ),
        "intervals: paired bootstrap over the test images, all seeds of an image together",
    )
