"""The networks that are trained from nothing: fully connected, VGG16 and ResNet18."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification

VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
"""Channels of the convolutions; 0 stands for a pooling that halves the image."""
RESNET18 = (64, 128, 256, 512)
WIDTHS = (512, 512, 350)
"""Widths of the hidden layers of the fully connected network."""
CLASSES = 10


class Logits(nn.Module):
    """A transformers classifier as a plain network: images in, logits out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits


def fcnn(inputs: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    sizes = (inputs, *WIDTHS)
    layers: list[nn.Module] = [nn.Flatten()]
    for size, width in zip(sizes, WIDTHS, strict=False):
        layers += [nn.Linear(size, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(WIDTHS[-1], CLASSES))


def vgg16(width: float, channels: int) -> nn.Sequential:
    """VGG16 with batch normalisation and one linear layer, as usual for 32 x 32 pixels."""
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


NETWORKS = {"vgg16": vgg16, "resnet18": resnet18}
"""Functions that build networks, by name; they take the factor on all channels and the number of
channels of the image."""
