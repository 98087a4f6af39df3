"""Train VGG16 or ResNet18 on CIFAR10 and remove the noise of its weights by every method.

Networks and published accuracies are those of Wu, Zhu & Li (2025).

    python recipes/cifar10_cnn.py --embedded
    python recipes/cifar10_cnn.py --network resnet18
    python recipes/cifar10_cnn.py --network vgg16 --data_dir cifar10.npz --width 0.25

--data_dir is an .npz file with train_x, train_y, test_x and test_y (uint8, images x height x width
x channels). Without --data_dir the images come from the Hub; with --embedded they come from
scikit-learn. --width scales the number of channels of every layer, for machines without an
accelerator. The recipe writes two tables with figures. For the first table, the share of the noise
to remove is chosen on training images that are kept back. For the second table, all of the noise is
removed. A second run continues from the results in the output folder.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from workbench.command import dataclass_parser, parsed, run
from workbench.data.image_tensors import read_cifar10
from workbench.models.networks import NETWORKS
from workbench.training.filter_study import study
from workbench.training.from_scratch import Arguments, counts

PUBLISHED = {
    "resnet18": {
        "base": 0.8349,
        "pdb": 0.8384,
        "bema": 0.8338,
        "kernel": 0.8338,
        "slr": 0.8357,
        "svd": 0.8354,
    },
    "vgg16": {
        "base": 0.8418,
        "pdb": 0.8422,
        "bema": 0.8405,
        "kernel": 0.8405,
        "slr": 0.8415,
        "svd": 0.8419,
    },
}
"""Accuracies without label noise in Wu, Zhu & Li (2025). BEMA and kernel share its number for PUB.
"""


@dataclass(kw_only=True)
class CifarArguments(Arguments):
    """Options of the recipe."""

    network: str = field(default="vgg16", metadata={"help": " or ".join(NETWORKS)})
    width: float = field(default=1.0, metadata={"help": "factor on the channels of each layer"})
    output_dir: str = field(
        default="results/cifar10", metadata={"help": "folder for models, tables and figures"}
    )
    epochs: int = field(default=30, metadata={"help": "epochs of the training"})


def parser() -> Any:
    """The options of this recipe."""
    return dataclass_parser(CifarArguments, __doc__)


def main() -> None:
    arguments = parsed(parser())
    if arguments.network not in NETWORKS:
        raise SystemExit(f"--network must be {' or '.join(NETWORKS)}, got {arguments.network!r}")
    logging.getLogger("hf_rmt").setLevel(logging.ERROR)  # here noise is dropped on purpose
    images = read_cifar10(arguments.data_dir, embedded=arguments.embedded)
    build = NETWORKS[arguments.network]
    noise = f", {arguments.label_noise:.0%} label noise" if arguments.label_noise else ""
    name = "digits" if arguments.embedded else "CIFAR10"
    foreign = arguments.embedded or arguments.label_noise
    selection, trained = counts(arguments, len(images.train_y))
    study(
        arguments,
        images,
        lambda: build(arguments.width, images.train_x.shape[1]),
        name=f"{arguments.network}, {name}",
        title=f"{arguments.network} on {name}{noise}",
        published={} if foreign else PUBLISHED[arguments.network],
        differences=(
            f"training images: {trained}, and {selection} to choose on; published: 50,000",
            f"channels: {arguments.width:g} times those of the published network",
            f"epochs: {arguments.epochs}; the published number is not given",
            "filter: the published filter goes layer by layer and uses the test accuracy; here "
            "one share, chosen on training images, is removed in all hidden layers",
        ),
    )


if __name__ == "__main__":
    run(main)
