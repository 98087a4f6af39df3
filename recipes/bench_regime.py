"""Show when all noise can be removed: a map over weight decay and epochs, VGG16 or ResNet18.

    python recipes/bench_regime.py --embedded
    python recipes/bench_regime.py --data_dir CIFAR.npz --network vgg16 --width 0.25
    python recipes/bench_regime.py --data_dir CIFAR.npz --decays 5e-4 5e-3 --epochs_list 30 100
    python recipes/bench_regime.py --data_dir CIFAR.npz --network vgg16 --min_size 100

The random start of a training is noise. Weight decay shrinks this noise step by step, while the
part that the data need grows. The longer and stronger the decay is, the less of the start is left
in the trained weights. Each cell of the map has one weight decay and one number of epochs. It is
one training (stochastic gradient descent with momentum, a cosine of the learning rate, shifted and
mirrored images). Then all noise is removed, by three laws of the noise: PDB, BEMA and kernel. The
recipe writes a table and a figure of the accuracy lost against the share of the start that is left.
--min_size excludes narrow layers, because these need all of their directions. A second run
continues from the results in the output folder.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from workbench.command import dataclass_parser, parsed, run
from workbench.data.image_tensors import Images, read_cifar10
from workbench.models.networks import NETWORKS
from workbench.processes import one_process
from workbench.report.accuracy import paired_bootstrap
from workbench.report.method_rows import TITLES
from workbench.report.regime_figure import Point, regime_figure
from workbench.training.filter_study import LAWS, all_removed, filter_options
from workbench.training.from_scratch import Arguments, counts, start_left, trained
from workbench.writing import write_figure, write_text

import numpy as np
from torch import nn

from hf_rmt.report.tables import markdown_table

UNUSED = {
    "epochs": "--epochs_list",
    "weight_decay": "--decays",
    "methods": "only --decays and --epochs_list, because every law is always tried",
    "fractions": "only --decays and --epochs_list, because all noise is always removed",
}
"""Options that have no effect in this recipe, each with what to pass instead."""


@dataclass(kw_only=True)
class RegimeArguments(Arguments):
    """Options of the recipe."""

    network: str = field(default="vgg16", metadata={"help": " or ".join(NETWORKS)})
    width: float = field(default=0.25, metadata={"help": "factor on the channels of each layer"})
    decays: list[float] = field(
        default_factory=lambda: [5e-4, 2e-3, 5e-3], metadata={"help": "weight decays in the map"}
    )
    epochs_list: list[int] = field(
        default_factory=lambda: [30, 100], metadata={"help": "numbers of epochs in the map"}
    )
    seeds: list[int] = field(
        default_factory=lambda: [0], metadata={"help": "one training for each"}
    )
    augment: bool = field(
        default=True, metadata={"help": "whether training images are shifted and mirrored"}
    )
    output_dir: str = field(
        default="results/regime", metadata={"help": "folder for models, table and figure"}
    )


def parser() -> Any:
    """The options of this recipe."""
    return dataclass_parser(RegimeArguments, __doc__)


def main() -> None:
    """Train and filter each cell, shortest trainings first; draw the map after each cell."""
    arguments = parsed(parser())
    if arguments.network not in NETWORKS:
        raise SystemExit(f"--network must be {' or '.join(NETWORKS)}, got {arguments.network!r}")
    for name, other in UNUSED.items():
        if getattr(arguments, name) != getattr(RegimeArguments(), name):
            raise SystemExit(f"--{name} has no effect here; pass {other}")
    one_process()
    logging.getLogger("hf_rmt").setLevel(logging.ERROR)  # dropping noise is wanted here
    images = read_cifar10(arguments.data_dir, embedded=arguments.embedded)
    channels = images.train_x.shape[1]
    build = NETWORKS[arguments.network]
    points: list[Point] = []
    for epochs in sorted(arguments.epochs_list):
        for decay in arguments.decays:
            cell = replace(arguments, epochs=epochs, weight_decay=decay)
            points += cell_points(cell, images, lambda: build(arguments.width, channels))
            save(arguments, points)
    print(table(points))


def cell_points(
    arguments: RegimeArguments, images: Images, build: Callable[[], nn.Module]
) -> list[Point]:
    """Train and filter one cell of the map; returns one point for each law."""
    cell = f"decay-{arguments.weight_decay:g}-epochs-{arguments.epochs}"
    # A training depends neither on the other cells nor on which layers are filtered later.
    alone = replace(arguments, decays=[], epochs_list=[], min_size=None)
    seeds = []
    for seed in arguments.seeds:
        folder = Path(arguments.output_dir, arguments.network, cell, f"seed-{seed}")
        training = trained(alone, images, build, folder, seed)
        file = folder / f"rows{suffix(arguments)}.json"
        seeds.append(all_removed(file, training, LAWS, **filter_options(arguments)))
    left = start_left(arguments, counts(arguments, len(images.train_y))[1])
    return [point(arguments, seeds, law, left) for law in LAWS]


def point(
    arguments: RegimeArguments, seeds: Sequence[Mapping[str, Any]], law: str, left: float
) -> Point:
    """The accuracies in one cell before and after all noise is removed by one law."""
    ours, base = (
        [np.array(rows[method]["splits"]["test"]) for rows in seeds] for method in (law, "base")
    )
    interval = paired_bootstrap(ours, base)
    return Point(
        law=TITLES[law],
        decay=arguments.weight_decay,
        epochs=arguments.epochs,
        start_left=left,
        base=float(np.mean(base)),
        difference=interval.mean,
        interval=(interval.low, interval.high),
        kept=float(np.mean([rows[law]["kept"] for rows in seeds])),
    )


def suffix(arguments: RegimeArguments) -> str:
    """The part of the file names that says which layers are filtered; empty for the default."""
    return "" if arguments.min_size is None else f"-min-size-{arguments.min_size}"


def save(arguments: RegimeArguments, points: Sequence[Point]) -> None:
    """Write the table and the figure of the cells that are done."""
    folder = Path(arguments.output_dir, arguments.network)
    name = "digits" if arguments.embedded else "CIFAR10"
    least = arguments.min_size
    where = "" if least is None else f" of layers with at least {least} channels"
    title = f"{arguments.network} on {name}: all noise{where} removed"
    write_text(folder / f"map{suffix(arguments)}.md", table(points) + "\n")
    write_figure(regime_figure(points, title=title), folder, f"map{suffix(arguments)}")


def table(points: Sequence[Point]) -> str:
    """The table in Markdown, with one line for each cell and law."""
    return markdown_table([one.to_row() for one in points])


if __name__ == "__main__":
    run(main)
