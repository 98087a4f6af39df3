"""Train a fully connected network on MNIST and remove the noise of its weights by every method.

The network, 784-512-512-350-10, and the published accuracies are those of Wu, Zhu & Li (2025).

    python recipes/mnist_fcnn.py --embedded
    python recipes/mnist_fcnn.py --data_dir FOLDER
    python recipes/mnist_fcnn.py --data_dir FOLDER --label_noise 0.4 --output_dir results/noisy

FOLDER holds the four idx files of MNIST, packed (.gz) or not. Without --data_dir the images come
from the Hub; with --embedded they come from scikit-learn. The recipe writes two tables with
figures. For the first table, the share of the noise to remove is chosen on training images that are
kept back. For the second table, all of the noise is removed. A second run continues from the
results in the output folder.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from workbench.command import dataclass_parser, parsed, run
from workbench.data.image_tensors import read_mnist
from workbench.models.networks import fcnn
from workbench.training.filter_study import study
from workbench.training.from_scratch import Arguments, counts

PUBLISHED = {
    "base": 0.9799,
    "pdb": 0.9804,
    "bema": 0.9791,
    "kernel": 0.9791,
    "slr": 0.9799,
    "svd": 0.9799,
}
"""Accuracies without label noise in Wu, Zhu & Li (2025). BEMA and kernel share its number for PUB.
"""


@dataclass(kw_only=True)
class MnistArguments(Arguments):
    """Options of the recipe."""

    output_dir: str = field(
        default="results/mnist", metadata={"help": "folder for models, tables and figures"}
    )


def parser() -> Any:
    """The options of this recipe."""
    return dataclass_parser(MnistArguments, __doc__)


def main() -> None:
    arguments = parsed(parser())
    logging.getLogger("hf_rmt").setLevel(logging.ERROR)  # dropping noise is wanted here
    images = read_mnist(arguments.data_dir, embedded=arguments.embedded)
    noise = f", {arguments.label_noise:.0%} label noise" if arguments.label_noise else ""
    name = "digits" if arguments.embedded else "MNIST"
    selection, trained = counts(arguments, len(images.train_y))
    study(
        arguments,
        images,
        lambda: fcnn(images.train_x[0].numel()),
        name=name,
        title=f"FCNN on {name}{noise}",
        published={} if arguments.embedded or arguments.label_noise else PUBLISHED,
        differences=(
            f"training images: {trained}, and {selection} to choose on; published: 60,000",
            f"epochs: {arguments.epochs}; the published number is not given",
            "filter: the published one works layer by layer and watches the test accuracy; here "
            "one share is removed in all layers but the last, chosen on training images",
        ),
    )


if __name__ == "__main__":
    run(main)
