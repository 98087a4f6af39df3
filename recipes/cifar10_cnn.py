"""The deck's VGG16 and ResNet18 on CIFAR10, trained from nothing, their noise removed every way.

    python recipes/cifar10_cnn.py --embedded
    python recipes/cifar10_cnn.py --network resnet18
    python recipes/cifar10_cnn.py --network vgg16 --data_dir cifar10.npz --width 0.25

--data_dir is an .npz file with train_x, train_y, test_x and test_y (uint8, images x height x width
x channels); without it the Hub is asked. --width scales the channels of every layer, for machines
without an accelerator. Two tables are written with their curves: the share of the noise removed
chosen on images that are kept back, and all of it removed.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from transformers import HfArgumentParser, ResNetConfig, ResNetForImageClassification
from workbench.common import load_hub
from workbench.from_scratch import Arguments, Images, study

NETWORKS = ("vgg16", "resnet18")
VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
"""Channels of the convolutions; 0 halves the image."""
RESNET18 = (64, 128, 256, 512)
CLASSES = 10
DECK = {
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
"""The deck's accuracies without label noise; it has one number for PUB."""
HUB = "uoft-cs/cifar10"
SIDE = 32


@dataclass(kw_only=True)
class CifarArguments(Arguments):
    """What the recipe is told."""

    network: str = field(default="vgg16", metadata={"help": " or ".join(NETWORKS)})
    width: float = field(default=1.0, metadata={"help": "scale of all numbers of channels"})
    output_dir: str = "results/cifar10"
    epochs: int = 30


class Logits(nn.Module):
    """A transformers classifier as a plain network: images in, logits out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits


def main() -> None:
    arguments = HfArgumentParser(CifarArguments).parse_args_into_dataclasses()[0]
    if arguments.network not in NETWORKS:
        raise SystemExit(f"--network must be {' or '.join(NETWORKS)}, got {arguments.network!r}")
    logging.getLogger("hf_rmt").setLevel(logging.ERROR)  # dropping noise is what is asked for
    images = read_images(arguments)
    build = vgg16 if arguments.network == "vgg16" else resnet18
    noise = f", {arguments.label_noise:.0%} label noise" if arguments.label_noise else ""
    name = "digits" if arguments.embedded else "CIFAR10"
    foreign = arguments.embedded or arguments.label_noise
    study(
        arguments,
        images,
        lambda: build(arguments.width, images.train_x.shape[1]),
        name=f"{arguments.network}, {name}",
        title=f"{arguments.network} on {name}{noise}",
        published={} if foreign else DECK[arguments.network],
        differences=(
            f"training images: {len(images.train_y)}, some of them to choose on; the deck's 50,000",
            f"channels: {arguments.width:g} of the deck's network; epochs: {arguments.epochs}, "
            "which the deck does not give",
            "filter: the deck works layer by layer and watches the test accuracy; here one share "
            "is removed in all hidden layers and chosen on images of the training set",
        ),
    )


def vgg16(width: float, channels: int) -> nn.Sequential:
    """VGG16 with batch normalisation and one linear layer, as it is usual for 32 x 32 pixels."""
    layers: list[nn.Module] = []
    for size in VGG16:
        if not size:
            layers.append(nn.MaxPool2d(2))
            continue
        filters = scaled(size, width)
        convolution = nn.Conv2d(channels, filters, 3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(filters), nn.ReLU()]
        channels = filters
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, CLASSES))


def resnet18(width: float, channels: int) -> nn.Module:
    """ResNet18 whose first convolution is 3 x 3 and keeps the size, as is usual for 32 x 32."""
    sizes = [scaled(size, width) for size in RESNET18]
    config = ResNetConfig(
        num_channels=channels,
        embedding_size=sizes[0],
        hidden_sizes=sizes,
        depths=[2, 2, 2, 2],
        layer_type="basic",
        num_labels=CLASSES,
    )
    model = ResNetForImageClassification(config)
    stem = model.resnet.embedder
    stem.embedder.convolution = nn.Conv2d(channels, sizes[0], 3, padding=1, bias=False)
    stem.pooler = nn.Identity()
    return Logits(model)


def scaled(size: int, width: float) -> int:
    return max(1, round(size * width))


def read_images(arguments: Arguments) -> Images:
    """Images with pixels of mean 0 and variance 1 in each channel."""
    if arguments.embedded:
        images, labels = load_digits(return_X_y=True)
        images = images.reshape(-1, 8, 8, 1).repeat(SIDE // 8, axis=1).repeat(SIDE // 8, axis=2)
        split = 3 * len(labels) // 4
        arrays = [images[:split], labels[:split], images[split:], labels[split:]]
    elif arguments.data_dir is None:
        arrays = []
        for split in ("train", "test"):
            rows = load_hub(HUB, split=split).with_format("numpy")
            arrays += [np.stack(rows["img"]), np.array(rows["label"])]
    else:
        file = np.load(arguments.data_dir)
        arrays = [file[key] for key in ("train_x", "train_y", "test_x", "test_y")]
    train_x, train_y, test_x, test_y = (torch.from_numpy(np.array(array)) for array in arrays)
    train_x, test_x = (part.permute(0, 3, 1, 2).float() for part in (train_x, test_x))
    mean = train_x.mean((0, 2, 3), keepdim=True)
    deviation = train_x.std((0, 2, 3), keepdim=True)
    train_x, test_x = (train_x - mean) / deviation, (test_x - mean) / deviation
    return Images(train_x, train_y.long(), test_x, test_y.long())


if __name__ == "__main__":
    main()
