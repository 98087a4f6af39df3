"""Measure bits and fidelity of trained models that are compressed without further training.

    python recipes/bench_fidelity.py --embedded
    HF_RMT_DATA=FOLDER python recipes/bench_fidelity.py --model bert --schemes int8 plain4

Fidelity is a Spearman correlation: that of the similarities of all pairs of embeddings with the
similarities in the original model. Every linear layer of attention and MLP is compressed. The
models are the BERT of the extra `demo` (mean-pooled sentences of SST-2) and a DINOv2 (class tokens
of CIFAR-10 images). The DINOv2 needs HF_RMT_DATA, a folder with data/ and models/. Without
HF_RMT_DATA the BERT reads built-in sentences. Calibrated schemes use training sentences and images,
never those of the evaluation. --embedded compares two schemes on the BERT and the built-in
sentences.
"""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from workbench.command import parser_of, run

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

import hf_rmt
from hf_rmt import RMTConfig
from hf_rmt.compression.targets.selection import compressible_layers
from hf_rmt.demo import SENTENCES, demo_model_path, embed, similarity_spearman

OURS = {
    "int8": RMTConfig(),
    "int8, no spikes": RMTConfig(max_rank=0),
    "int8, all spikes": RMTConfig(stored_spikes="all"),
    "int4": RMTConfig(noise="int4"),
    "int4, no spikes": RMTConfig(noise="int4", max_rank=0),
    "int4, all spikes": RMTConfig(noise="int4", stored_spikes="all"),
    "ternary": RMTConfig(noise="ternary"),
    "ternary, all spikes": RMTConfig(noise="ternary", stored_spikes="all"),
    "keep, spikes recovered": RMTConfig(noise="keep", recover_spikes=True),
    "drop": RMTConfig(noise="drop"),
}
CALIBRATED = {
    "int4, calibrated": RMTConfig(noise="int4"),
    "ternary, calibrated": RMTConfig(noise="ternary"),
    "svd p/4, calibrated": RMTConfig(method="svd", fraction=0.25, noise="drop"),
    "size 3/8, calibrated": RMTConfig(noise="drop"),
}
SIZES = {"size 3/8, calibrated": 3 / 8}
"""The share of the parameters that is kept, by scheme (way to compress). In the BERT, the scheme
`svd p/4` keeps the same share."""
PLAIN = {f"plain{bits}": bits for bits in (8, 6, 5, 4)}
EMBEDDED = ("int8", "plain4")
SVD = {"svd p/2": 2, "svd p/4": 4}
PLAIN_GROUP = 32
"""How many weights share a scale in the plain quantisers. A scale counts as 8 bits, as in hf_rmt.
"""
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Batches = list[dict[str, Tensor]]
Subject = tuple[str, nn.Module, Callable[[nn.Module], Tensor], Batches]


def main() -> None:
    options = parser().parse_args()
    if options.embedded:
        options.model, options.schemes = "bert", [*EMBEDDED]
    print(f"{'model':6}{'scheme':24}{'bits':>7}{'spearman':>11}{'1 - rho':>11}")
    for name, model, embeddings, calibration in subjects(options):
        reference = embeddings(model)
        for scheme in options.schemes:
            if scheme in CALIBRATED and not calibration:
                print(f"{name:6}{scheme:24}skipped: set HF_RMT_DATA to a folder with data/")
                continue
            changed = copy.deepcopy(model)
            bits = apply_scheme(scheme, changed, calibration)
            rho = similarity_spearman(embeddings(changed), reference)
            print(f"{name:6}{scheme:24}{bits:7.2f}{rho:11.6f}{1 - rho:11.2e}", flush=True)


def parser() -> argparse.ArgumentParser:
    """The options of this recipe."""
    schemes = [*OURS, *PLAIN, *SVD, *CALIBRATED]
    made = parser_of(__doc__)
    made.add_argument("--embedded", action="store_true", help="the demo BERT, two schemes")
    made.add_argument(
        "--model", choices=("bert", "vit", "both"), default="both", help="models to compare"
    )
    made.add_argument("--sentences", type=int, default=300, help="sentences to evaluate on")
    made.add_argument("--images", type=int, default=150, help="images to evaluate on")
    made.add_argument(
        "--calibration",
        type=int,
        default=512,
        help="training sentences to calibrate on, and half as many images",
    )
    made.add_argument(
        "--schemes",
        nargs="+",
        default=schemes,
        choices=schemes,
        metavar="SCHEME",
        help="ways to compress that are compared",
    )
    return made


def subjects(options: argparse.Namespace) -> Iterator[Subject]:
    data = None if options.embedded else os.environ.get("HF_RMT_DATA")
    if options.model in ("bert", "both"):
        others = sentences(data, options.calibration, "train") if data else []
        yield bert(sentences(data, options.sentences), others)
    if options.model in ("vit", "both"):
        if data:
            yield vit(Path(data), options.images, options.calibration // 2)
        else:
            print("vit   skipped: set HF_RMT_DATA to a folder with data/ and models/")


def sentences(data: str | None, count: int, split: str = "dev") -> list[str]:
    if data is None:
        return list(SENTENCES)
    lines = (Path(data) / f"data/sst2/{split}.tsv").read_text(encoding="utf-8").splitlines()
    return [line.split("\t")[0] for line in lines[1 : count + 1]]


def bert(texts: list[str], others: list[str]) -> Subject:
    path = demo_model_path()
    tokenizer = AutoTokenizer.from_pretrained(path)
    batches = [texts[start : start + 50] for start in range(0, len(texts), 50)]

    def embeddings(model: nn.Module) -> Tensor:
        return torch.cat([embed(model, tokenizer, batch) for batch in batches])

    calibration = [
        dict(tokenizer(others[start : start + 32], padding=True, return_tensors="pt"))
        for start in range(0, len(others), 32)
    ]
    return "bert", AutoModel.from_pretrained(path), embeddings, calibration


def vit(data: Path, count: int, others: int) -> Subject:
    raw = np.load(data / "data/cifar10/cifar10_subset.npz")
    batches = pixels(raw["test_x"][:count])
    calibration = [{"pixel_values": batch} for batch in pixels(raw["train_x"][:others])]

    @torch.inference_mode()
    def embeddings(model: nn.Module) -> Tensor:
        return torch.cat([model(pixel_values=b).last_hidden_state[:, 0] for b in batches])

    path = data / "models/dinov2-small"
    model = AutoModel.from_pretrained(path, dtype=torch.float32)
    return "vit", model, embeddings, calibration


def pixels(raw: np.ndarray) -> tuple[Tensor, ...]:
    images = torch.from_numpy(raw).permute(0, 3, 1, 2) / 255
    images = nn.functional.interpolate(images, size=(224, 224), mode="bicubic", antialias=True)
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGE_MEAN, IMAGE_STD))
    return ((images - mean) / std).split(25)


def apply_scheme(scheme: str, model: nn.Module, calibration: Batches) -> float:
    """Compress the model's weights in place, and return the bits per weight of these layers."""
    if scheme in CALIBRATED:
        size = SIZES.get(scheme)
        config = CALIBRATED[scheme]
        return hf_rmt.compress(
            model, config, calibration=calibration, size=size
        ).plan.bits_per_weight
    if scheme in OURS:
        return hf_rmt.compress(model, OURS[scheme]).plan.bits_per_weight
    names = compressible_layers(model, RMTConfig())
    weights = [model.get_submodule(name).weight for name in names]
    bits = 0.0
    for weight in weights:
        if scheme in PLAIN:
            weight.data, spent = plain(weight.data, PLAIN[scheme])
        else:
            weight.data, spent = truncated(weight.data, min(weight.shape) // SVD[scheme])
        bits += spent
    return bits / sum(weight.numel() for weight in weights)


def plain(weight: Tensor, bits: int) -> tuple[Tensor, float]:
    """Round to a uniform grid of 2^bits values; returns the rounded weight and its bits.

    The scale of each group of weights is the one with the least squared error.
    """
    size = -weight.numel() % PLAIN_GROUP
    groups = nn.functional.pad(weight.flatten(), (0, size)).view(-1, PLAIN_GROUP)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    start = groups.abs().amax(1, keepdim=True) / (high + 0.5)
    best, error = torch.zeros_like(groups), torch.full_like(start, torch.inf)
    for factor in 2.0 ** (torch.arange(-10, 5) / 16):
        scale = (start * factor).clamp_min(torch.finfo(torch.float32).tiny)
        candidate = (groups / scale).round().clamp(low, high) * scale
        distance = (candidate - groups).square().sum(1, keepdim=True)
        best = torch.where(distance < error, candidate, best)
        error = torch.minimum(error, distance)
    coded = best.flatten()[: weight.numel()].view_as(weight)
    return coded, weight.numel() * (bits + 8 / PLAIN_GROUP)


def truncated(weight: Tensor, rank: int) -> tuple[Tensor, float]:
    """The best approximation of a given rank, and the bits of its factors in float32."""
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    return u[:, :rank] * s[:rank] @ vh[:rank], 32.0 * rank * sum(weight.shape)


if __name__ == "__main__":
    run(main)
