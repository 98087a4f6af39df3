"""One class of models that is tried: its config and what it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers

from tests.huggingface.models import add_spikes


def tokens(length: int = 9) -> dict[str, torch.Tensor]:
    """Two rows of token ids."""
    generator = torch.Generator().manual_seed(1)
    return {"input_ids": torch.randint(3, 60, (2, length), generator=generator)}


def both_tokens() -> dict[str, torch.Tensor]:
    """Token ids for an encoder and a decoder."""
    ids = tokens()["input_ids"]
    return {"input_ids": ids, "decoder_input_ids": ids}


def pixels(side: int = 32) -> dict[str, torch.Tensor]:
    """Two pictures."""
    generator = torch.Generator().manual_seed(1)
    return {"pixel_values": torch.randn(2, 3, side, side, generator=generator)}


def pixels_and_tokens() -> dict[str, torch.Tensor]:
    """Two pictures with a sentence each."""
    return {**pixels(), **tokens()}


def pixels_and_decoder() -> dict[str, torch.Tensor]:
    """Two pictures, and the first tokens of their captions."""
    return {**pixels(), "decoder_input_ids": tokens()["input_ids"]}


def sound() -> dict[str, torch.Tensor]:
    """Two waves."""
    return {"input_values": torch.randn(2, 800, generator=torch.Generator().manual_seed(1))}


def spectrogram() -> dict[str, torch.Tensor]:
    """Two spectrograms, and the first tokens of their texts."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 20, 40, generator=generator)
    return {"input_features": features, "decoder_input_ids": tokens()["input_ids"]}


@dataclass(frozen=True)
class Family:
    """One class of models.

    Attributes:
        name: Name of the class in transformers.
        config: Name of its config.
        options: What its config is made with.
        inputs: Makes the arguments of a forward.
        generates: Whether `generate` is tried.
        label: Name of the row, where the class has several.
    """

    name: str
    config: str
    options: dict[str, Any]
    inputs: Callable[[], dict[str, torch.Tensor]] = tokens
    generates: bool = False
    label: str = field(default="")

    def __str__(self) -> str:
        return f"{self.name}{self.label}"

    def model(self) -> Any:
        """The model with random weights and strong directions in them, the same each time."""
        torch.manual_seed(0)
        kind = getattr(transformers, self.name)
        options = {
            key: value() if callable(value) else value for key, value in self.options.items()
        }
        config = getattr(transformers, self.config)
        made = getattr(config, options.pop("maker", ""), config)(**options)
        model = kind(made)
        add_spikes(model, convolutions=True)
        return model.eval()
