"""Measure whole models: latency relative to the dense model, memory, file size and fidelity.

    python recipes/bench_models.py [--model trained bert-base t5-base vit-base] [--batches 1 32]
    python recipes/bench_models.py --model trained --batches 1 --only dense
    python recipes/bench_models.py --embedded

`trained` is the BERT of the extra `demo`. Its fidelity is the Spearman correlation of the pairwise
similarities of its embeddings with those of the dense model. The other models have two blocks with
random weights, in the shapes of the named models. In each turn all models run one after the other,
and the time of each is divided by that of the dense float32 model. A number is the median of this
ratio over the turns. Packages that are not installed are listed.
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from workbench.command import run
from workbench.models.peers import peers
from workbench.timing import Call, machine, ratios, times, timing_parser

import torch
import transformers
from torch import nn

import hf_rmt
from hf_rmt import RMTConfig
from hf_rmt.demo import SENTENCES, demo_model_path, embed, similarity_spearman
from hf_rmt.nn.layouts import set_layout

MODELS = ("trained", "bert-base", "t5-base", "vit-base")
LAYOUT_NAMES = ("packed", "int8", "dense", "fastest")
WORDS = 24
"""Number of tokens in each text, for the models with random weights."""

Made = tuple[nn.Module, Callable[[int], dict[str, Any]], Callable[[nn.Module], float | None]]


def main() -> None:
    """Measure and print, one model after the other."""
    options = filled(parser().parse_args())
    torch.manual_seed(0)
    if options.device == "cpu":
        torch.set_num_threads(1)
    print(machine(options.device))
    for name in options.model:
        model, batch, fidelity = (tiny if options.embedded else subject)(name)
        variants, notes = contestants(model, batch(2), options)
        variants = chosen(variants, options.only)
        for size in options.batches:
            show(name, variants, batch(size), options)
        for label, variant in variants.items():
            try:
                rho = fidelity(variant)
                said = "" if rho is None else f", Spearman {rho:.6f}"
            except RuntimeError as error:  # some packages do not run in inference mode
                said = f", not judged: {error}"
            print(f"{name} {label}: {file_megabytes(variant)}{said}", flush=True)
        print(f"{name}: {', '.join(notes)}" if notes else f"{name}: all packages were measured")


def parser() -> argparse.ArgumentParser:
    """The options of this recipe."""
    made = timing_parser(__doc__)
    models = {"nargs": "+", "choices": MODELS, "default": list(MODELS)}
    made.add_argument("--model", help="models to compare", **models)
    made.add_argument("--batches", nargs="+", type=int, default=[1, 32], help="texts in a batch")
    made.add_argument("--noise", default="int8", help="how noise is stored")
    made.add_argument("--only", nargs="+", help="compare only these rows with the dense model")
    return made


def filled(options: argparse.Namespace) -> argparse.Namespace:
    """The options; with --embedded they are set to those of a run that takes seconds."""
    if options.embedded:
        options.model, options.batches, options.repeats = ["bert-base"], [1], 2
    return options


def subject(name: str) -> Made:
    """A model, a function that makes a batch of a given size, and its measure of fidelity."""
    if name == "trained":
        return trained()
    tokens = torch.randint(1, 900, (64, WORDS))
    blocks: dict[str, Any] = {"num_hidden_layers": 2}
    if name == "vit-base":
        vit = transformers.ViTModel(transformers.ViTConfig(**blocks))
        return vit, lambda size: {"pixel_values": torch.randn(size, 3, 224, 224)}, unknown
    if name == "t5-base":
        sizes = {"d_model": 768, "d_ff": 3072, "num_heads": 12, "num_layers": 2}
        t5 = transformers.T5EncoderModel(transformers.T5Config(vocab_size=1000, **sizes))
        return t5, lambda size: {"input_ids": tokens[:size]}, unknown
    bert = transformers.BertModel(transformers.BertConfig(vocab_size=1000, **blocks))
    return bert, lambda size: {"input_ids": tokens[:size]}, unknown


def trained() -> Made:
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo_model_path())
    model = transformers.AutoModel.from_pretrained(demo_model_path())
    reference = embed(model, tokenizer, SENTENCES)

    def batch(size: int) -> dict[str, Any]:
        return dict(tokenizer(list(SENTENCES[:size]), padding=True, return_tensors="pt"))

    def fidelity(other: nn.Module) -> float:
        return similarity_spearman(embed(other, tokenizer, SENTENCES), reference)

    return model, batch, fidelity


def tiny(name: str) -> Made:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 1000}
    config = transformers.BertConfig(num_hidden_layers=2, num_attention_heads=2, **sizes)
    tokens = torch.randint(1, 900, (4, 8))
    return transformers.BertModel(config), lambda size: {"input_ids": tokens[:size]}, unknown


def unknown(model: nn.Module) -> None:
    """Return no fidelity, because embeddings of random weights have no meaning."""


def contestants(
    model: nn.Module, batch: dict[str, Any], options: argparse.Namespace
) -> tuple[dict[str, Any], list[str]]:
    """The models to compare, by label, and a note on each missing model."""
    model = model.eval().to(options.device)
    variants: dict[str, Any] = {"dense fp32": model, "dense bf16": copy.deepcopy(model).bfloat16()}
    compressed = copy.deepcopy(model)
    hf_rmt.compress(compressed, RMTConfig(noise=options.noise))
    for name in LAYOUT_NAMES:
        variants[name] = copy.deepcopy(compressed)
        print(f"{name}: {set_layout(variants[name], name)}")
    variants["int8, two digits"] = copy.deepcopy(compressed)
    set_layout(variants["int8, two digits"], "int8", activations="int16")
    return variants, list(peers(model, compressed, batch, variants))


def chosen(variants: dict[str, Any], only: list[str] | None) -> dict[str, Any]:
    """The rows that `--only` names, and the dense model, which all are compared with."""
    if wrong := sorted(set(only or ()) - set(variants)):
        rows = ", ".join(map(repr, variants))
        raise SystemExit(f"--only {wrong[0]!r} is no row; choose among {rows}")
    kept = {"dense fp32", *(only or variants)}
    return {row: variant for row, variant in variants.items() if row in kept}


def show(
    name: str, variants: dict[str, Any], batch: dict[str, Any], options: argparse.Namespace
) -> None:
    batch = {key: value.to(options.device) for key, value in batch.items()}
    calls: dict[str, Call] = {}
    for label, variant in variants.items():
        own = dict(batch)
        if label == "dense bf16" and "pixel_values" in own:
            own["pixel_values"] = own["pixel_values"].bfloat16()
        calls[label] = lambda variant=variant, own=own: variant(**own)
    with torch.no_grad():
        seconds = times(calls, options.repeats, options.device)
    base = median(seconds["dense fp32"])
    size = len(next(iter(batch.values())))
    shown = ", ".join(
        f"{label} {value:.2f}" for label, value in ratios(seconds, "dense fp32").items()
    )
    print(f"{name} batch {size}: dense fp32 {base * 1e3:.1f} ms; {shown}", flush=True)


def file_megabytes(model: Any) -> str:
    if hasattr(model, "megabytes"):
        return f"file {model.megabytes:.1f} MB"
    if not hasattr(model, "save_pretrained"):
        return "no file"
    with tempfile.TemporaryDirectory() as folder:
        try:
            model.save_pretrained(folder)
        except (AttributeError, RuntimeError, ValueError, TypeError, NotImplementedError):
            return "cannot be saved as safetensors"
        size = sum(os.path.getsize(path) for path in Path(folder).glob("*.safetensors"))
    return f"file {size / 1e6:.1f} MB"


if __name__ == "__main__":
    run(main)
