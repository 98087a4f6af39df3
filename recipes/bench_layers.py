"""Measure the time of one compressed layer in every layout, relative to the dense layer.

    python recipes/bench_layers.py [--tokens 1 16 128 512] [--noise int8 int4] [--shapes 768x768]
    python recipes/bench_layers.py --noise drop --size 0.1 0.35 0.5
    python recipes/bench_layers.py --device cuda
    python recipes/bench_layers.py --embedded

In each turn all layers of a row run one after the other, and the time of each is divided by that of
the dense layer (float32 on the CPU, bfloat16 on a GPU). A number is the median of this ratio over
the turns. A turn runs several copies of each layer, with 16 MB of dense weights together. So the
cache cannot hold their weights, as it cannot hold those of a whole model. `error` is the relative
distance of the outputs from those of the packed layer. If the extra `fast` is installed, `packed`
unpacks with Numba, and `packed without Numba` is shown too. With `--noise drop`, `packed` is two
products with the factors of the signal; `--size` is the number of parameters of these factors,
divided by that of the dense layer. `torch dynamic` is torch's own dynamic int8 linear, without an
exact signal and with one scale for all tokens. torchao and bitsandbytes are measured if they are
installed.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import warnings
from collections.abc import Sequence
from statistics import median

from workbench.command import run
from workbench.timing import Call, machine, missing, ratios, times, timing_parser

import torch
from torch import Tensor, nn

from hf_rmt.nn import SpikedLinear
from hf_rmt.nn.layouts import LAYOUTS, set_layout
from hf_rmt.nn.stores import machine_code

SHAPES = ("384x384", "768x768", "3072x768", "768x3072")
TOKENS = {"cpu": (1, 16, 128, 512), "cuda": (1, 16, 128, 512, 4096)}
COLD = 2**24
"""Bytes of the dense weights of all copies of a layer together."""
SIGNAL = 24
"""The smaller side of a weight divided by the rank of its signal, if the noise is stored."""


def main() -> None:
    """Measure and print the rows, one shape after the other."""
    options = filled(parser().parse_args())
    torch.manual_seed(0)
    if options.device == "cpu":
        torch.set_num_threads(1)
    print(machine(options.device))
    for noise in options.noise:
        sizes = options.size if noise == "drop" else [None]
        for shape, tokens, size in itertools.product(options.shapes, options.tokens, sizes):
            show(noise, size, shape, tokens, options)


def parser() -> argparse.ArgumentParser:
    """The options of this recipe."""
    made = timing_parser(__doc__)
    made.add_argument("--shapes", nargs="+", help="weights, out x in, such as 768x768")
    made.add_argument("--tokens", nargs="+", type=int, help="numbers of rows of the input")
    made.add_argument("--noise", nargs="+", default=["int8", "int4"], help="how noise is stored")
    made.add_argument(
        "--size", nargs="+", type=float, default=[0.35], help="share of parameters with drop"
    )
    return made


def filled(options: argparse.Namespace) -> argparse.Namespace:
    """The options, after setting the defaults that depend on other options."""
    options.shapes = options.shapes or (("64x64",) if options.embedded else SHAPES)
    options.tokens = options.tokens or ((1, 4) if options.embedded else TOKENS[options.device])
    options.repeats = 2 if options.embedded else options.repeats
    return options


@torch.no_grad()
def show(
    noise: str, size: float | None, shape: str, tokens: int, options: argparse.Namespace
) -> None:
    rows, columns = map(int, shape.split("x"))
    dense = nn.Linear(columns, rows).to(options.device).eval()
    x = torch.randn(tokens, columns, device=options.device)
    first, number = spiked(dense, noise, size), max(1, min(32, COLD // (4 * rows * columns)))
    sets = [contestants(first, copy.deepcopy(dense), x) for _ in range(number)]
    notes = sets[0][1]
    calls = {name: in_turn([calls[name] for calls, _ in sets]) for name in sets[0][0]}
    seconds = times(calls, options.repeats, options.device)
    base = "dense fp32" if options.device == "cpu" else "dense bf16"
    shown = ratios(seconds, base)
    parts = [f"{name} {value:.2f}" for name, value in shown.items() if name != base]
    expected = calls["packed"]()
    errors = [
        f"{name} {error(calls[name](), expected):.1e}"
        for name in ("dense", "int8")
        if name in calls
    ]
    told = noise if size is None else f"{noise} {size:g}"
    print(
        f"{told} {shape} {tokens} tokens: {base} {median(seconds[base]) / number * 1e6:.0f} us; "
        f"{', '.join(parts + notes)}{'; error: ' if errors else ''}{', '.join(errors)}",
        flush=True,
    )


def contestants(
    first: SpikedLinear, dense: nn.Linear, x: Tensor
) -> tuple[dict[str, Call], list[str]]:
    """The calls to measure, by name, and a note on each missing package."""
    half, y = copy.deepcopy(dense).bfloat16(), x.bfloat16()
    calls: dict[str, Call] = {"dense fp32": lambda: dense(x), "dense bf16": lambda: half(y)}
    possible = [name for name, kind in LAYOUTS.items() if not kind.refusal(first)] or ["packed"]
    digits = ["int8, two digits"] if "int8" in possible else []
    layers = {name: copy.deepcopy(first) for name in (*possible, *digits)}
    for name, layer in layers.items():
        activations = "int16" if "two" in name else "int8"
        set_layout(layer, name.partition(",")[0], activations=activations)
        calls[name] = lambda layer=layer: layer(x)
    if x.device.type == "cpu":
        calls["torch dynamic"] = dynamic(dense, x)
        if first.noise.kind != "drop" and machine_code.has_numba():
            calls["packed without Numba"] = without_numba(calls["packed"])
    return calls, peers(dense, x, calls)


def in_turn(calls: Sequence[Call]) -> Call:
    """One call that makes all the calls and returns the result of the last."""

    def all_of_them() -> Tensor:
        for call in calls:
            result = call()
        return result

    return all_of_them


def no_numba() -> None:
    """Replaces `machine_code.numba` and returns what it returns if Numba is missing."""


def without_numba(call: Call) -> Call:
    """A call that does the same as if Numba were not installed."""

    def slower() -> Tensor:
        kept, machine_code.numba = machine_code.numba, no_numba
        try:
            return call()
        finally:
            machine_code.numba = kept

    return slower


def spiked(dense: nn.Linear, noise: str, size: float | None) -> SpikedLinear:
    """A compressed copy of a dense layer; the values of its factors do not matter for speed."""
    weight = dense.weight.detach()
    rank = min(weight.shape) // SIGNAL
    if size is not None:
        rank = max(1, int(size * weight.numel() / sum(weight.shape)))
    u, s, v = torch.svd_lowrank(weight, rank)
    return SpikedLinear.from_factors(u * s, v.T, weight, dense.bias, noise=noise).eval()


def dynamic(dense: nn.Linear, x: Tensor) -> Call:
    """torch's dynamic int8 linear."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = torch.ao.nn.quantized.dynamic.Linear.from_float(_observed(dense))
    return lambda: layer(x)


def _observed(dense: nn.Linear) -> nn.Linear:
    layer = copy.deepcopy(dense)
    layer.qconfig = torch.ao.quantization.per_channel_dynamic_qconfig
    return layer


def peers(dense: nn.Linear, x: Tensor, calls: dict[str, Call]) -> list[str]:
    """Add the layers of other packages; returns a note for each that is missing."""
    notes = []
    if missing("torchao"):
        notes.append("torchao not installed")
    else:
        from torchao.quantization import (
            Int8DynamicActivationInt8WeightConfig,
            Int8WeightOnlyConfig,
            quantize_,
        )

        for config in (Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig):
            model = nn.Sequential(copy.deepcopy(dense))
            quantize_(model, config())
            calls[f"torchao {config.__name__.removesuffix('Config')}"] = lambda m=model: m(x)
    if missing("bitsandbytes"):
        notes.append("bitsandbytes not installed")
    else:
        import bitsandbytes as bnb

        layer = bnb.nn.Linear8bitLt(dense.in_features, dense.out_features, has_fp16_weights=False)
        layer.load_state_dict(dense.state_dict())
        placed = layer.to(x.device)
        calls["bitsandbytes int8"] = lambda: placed(x)
    return notes


def error(ours: Tensor, exact: Tensor) -> float:
    return float((ours.double() - exact.double()).norm() / exact.double().norm())


if __name__ == "__main__":
    run(main)
