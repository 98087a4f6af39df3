"""The default does a trained ViT no harm; needs HF_RMT_DATA."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from hf_rmt import RMTConfig
from hf_rmt.demo import similarity_spearman

IMAGES = 24


@pytest.fixture(scope="module")
def pixels(real_data: Path) -> torch.Tensor:
    raw = np.load(real_data / "data/cifar10/cifar10_subset.npz")["test_x"][:IMAGES]
    images = torch.from_numpy(raw).permute(0, 3, 1, 2).float() / 127.5 - 1
    return torch.nn.functional.interpolate(images, size=(224, 224), mode="bicubic")


@torch.inference_mode()
def class_tokens(model: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    return model(pixel_values=pixels).last_hidden_state[:, 0]


@pytest.mark.parametrize(("noise", "spearman", "bits"), [("int8", 0.999, 10.5), ("int4", 0.9, 4.5)])
def test_embeddings_of_images_keep_their_similarities(
    real_data: Path, pixels: torch.Tensor, noise: str, spearman: float, bits: float
) -> None:
    path = real_data / "models/dinov2-small"
    reference = class_tokens(AutoModel.from_pretrained(path, dtype=torch.float32), pixels)
    model = AutoModel.from_pretrained(
        path, dtype=torch.float32, quantization_config=RMTConfig(noise=noise)
    )
    assert similarity_spearman(class_tokens(model, pixels), reference) > spearman
    assert model.compression_report.plan.bits_per_weight < bits
