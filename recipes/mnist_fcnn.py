"""The deck's fully connected network on MNIST, 784-512-512-350-10, its noise removed every way.

    python recipes/mnist_fcnn.py --embedded
    python recipes/mnist_fcnn.py --data_dir FOLDER
    python recipes/mnist_fcnn.py --data_dir FOLDER --label_noise 0.4 --output_dir results/noisy

FOLDER holds MNIST's four idx files, packed (.gz) or not; without it the Hub is asked. Two tables
are written with their curves: the share of the noise removed chosen on images that are kept back,
and all of it removed. What is finished in the output folder is not done again.
"""

from __future__ import annotations

import gzip
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from transformers import HfArgumentParser
from workbench.common import load_hub
from workbench.from_scratch import Arguments, Images, study

WIDTHS = (512, 512, 350)
CLASSES = 10
DECK = {
    "base": 0.9799,
    "pdb": 0.9804,
    "bema": 0.9791,
    "kernel": 0.9791,
    "slr": 0.9799,
    "svd": 0.9799,
}
"""The deck's accuracies without label noise; it has one number for PUB."""
HUB = "ylecun/mnist"


@dataclass(kw_only=True)
class MnistArguments(Arguments):
    """What the recipe is told."""

    output_dir: str = "results/mnist"


def main() -> None:
    arguments = HfArgumentParser(MnistArguments).parse_args_into_dataclasses()[0]
    logging.getLogger("hf_rmt").setLevel(logging.ERROR)  # dropping noise is what is asked for
    images = read_images(arguments)
    noise = f", {arguments.label_noise:.0%} label noise" if arguments.label_noise else ""
    name = "digits" if arguments.embedded else "MNIST"
    study(
        arguments,
        images,
        lambda: network(images.train_x[0].numel()),
        name=name,
        title=f"FCNN on {name}{noise}",
        published={} if arguments.embedded or arguments.label_noise else DECK,
        differences=(
            f"training images: {len(images.train_y)}, some of them to choose on; the deck's 60,000",
            f"epochs: {arguments.epochs}; the deck does not say",
            "filter: the deck works layer by layer and watches the test accuracy; here one share "
            "is removed in all layers but the last and chosen on images of the training set",
        ),
    )


def network(inputs: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    sizes = (inputs, *WIDTHS)
    layers: list[nn.Module] = [nn.Flatten()]
    for size, width in zip(sizes, WIDTHS, strict=False):
        layers += [nn.Linear(size, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(WIDTHS[-1], CLASSES))


def read_images(arguments: Arguments) -> Images:
    """Images with pixels of mean 0 and variance 1."""
    if arguments.embedded:
        images, labels = load_digits(return_X_y=True)
        images, split = images.reshape(-1, 8, 8), 3 * len(labels) // 4
        arrays = [images[:split], labels[:split], images[split:], labels[split:]]
    elif arguments.data_dir is None:
        arrays = []
        for split in ("train", "test"):
            rows = load_hub(HUB, split=split).with_format("numpy")
            arrays += [np.stack(rows["image"]), np.array(rows["label"])]
    else:
        folder = Path(arguments.data_dir)
        arrays = [
            read_idx(folder, f"{part}-{kind}")
            for part in ("train", "t10k")
            for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
        ]
    train_x, train_y, test_x, test_y = (torch.from_numpy(np.array(array)) for array in arrays)
    train_x, test_x = train_x[:, None].float(), test_x[:, None].float()
    mean, deviation = train_x.mean(), train_x.std()
    train_x, test_x = (train_x - mean) / deviation, (test_x - mean) / deviation
    return Images(train_x, train_y.long(), test_x, test_y.long())


def read_idx(folder: Path, name: str) -> np.ndarray:
    """An array of bytes in the idx format: two zeros, type, dimensions, sizes, then the bytes."""
    packed = folder / f"{name}.gz"
    if packed.exists():
        content = gzip.decompress(packed.read_bytes())
    elif (folder / name).exists():
        content = (folder / name).read_bytes()
    else:
        raise SystemExit(f"--data_dir {folder} holds neither {name}.gz nor {name}")
    dimensions = content[3]
    shape = np.frombuffer(content, ">i4", dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


if __name__ == "__main__":
    main()
