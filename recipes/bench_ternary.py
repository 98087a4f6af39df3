"""Measure the bits and the speed of ternary layers against those of dense ones, on a CPU.

    python recipes/bench_ternary.py --embedded
    python recipes/bench_ternary.py --tokens 32 512 --repeats 30 --dtype bfloat16

The bits of a weight are counted in memory and on disk. Both ternary layouts and the dense layer run
in turn, so that other programs slow all three equally. Times are medians on one thread, and are
given as ratios to the time of the dense layer. An error is the largest difference from the
float64 product, divided by the standard deviation of the outputs. The weights are random, so
nothing is downloaded; --embedded takes two small shapes.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from workbench.command import parser_of, run

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from hf_rmt.nn import TernaryLinear

LAYOUTS = ("packed", "int8")
SHAPES = ((768, 768), (3072, 768), (768, 3072), (1536, 384), (2, 384), (3, 768))
SMALL_SHAPES = ((96, 64), (3, 64))
TOKENS = (32, 64, 128, 256, 512, 1024, 2048, 4096)


def main() -> None:
    options = parser().parse_args()
    shapes = SHAPES
    if options.embedded:
        shapes, options.tokens, options.repeats = SMALL_SHAPES, (32,), 3
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dtype = getattr(torch, options.dtype)
    print(f"{'out x in':12}{'bits in memory':>15}{'packed':>8}{'int8':>8}{'on disk':>9}")
    for shape in shapes:
        layers = variants(shape, dtype)
        packed, fast = (memory_bits(layers[layout]) for layout in LAYOUTS)
        print(f"{name(shape):27}{packed:8.3f}{fast:8.3f}{disk_bits(layers['packed']):9.3f}")
    print(f"\n{'out x in':12}{'tokens':>7}{'dense ms':>10}{'packed':>9}{'int8':>8}", end="")
    print(f"{'error: dense':>17}{'packed':>9}{'int8':>9}")
    for shape, tokens in itertools.product(shapes, options.tokens):
        layers = variants(shape, dtype)
        x = torch.randn(tokens, shape[1], dtype=dtype)
        dense, *others = times(layers.values(), x, options.repeats)
        ratios = "".join(f"{other / dense:8.2f}x" for other in others)
        errors = "".join(f"{error(layer, x):9.1e}" for layer in layers.values())
        print(f"{name(shape):12}{tokens:7}{dense * 1e3:10.3f}{ratios}{'':7}{errors}", flush=True)


def parser() -> argparse.ArgumentParser:
    """The options of this recipe."""
    made = parser_of(__doc__)
    made.add_argument("--embedded", action="store_true", help="two small shapes, in seconds")
    made.add_argument("--tokens", type=int, nargs="+", default=TOKENS, help="rows of the input")
    made.add_argument(
        "--repeats", type=int, default=20, help="number of repeats; times are medians"
    )
    dtypes = ("float32", "bfloat16", "float16")
    made.add_argument("--dtype", choices=dtypes, default="float32", help="dtype of the dense layer")
    return made


def name(shape: tuple[int, int]) -> str:
    return f"{shape[0]}x{shape[1]}"


def variants(shape: tuple[int, int], dtype: torch.dtype) -> dict[str, nn.Module]:
    """A dense layer with the ternary weights, and the ternary layer in each layout, warmed up."""
    source = nn.Linear(shape[1], shape[0], dtype=dtype)
    layers = {layout: TernaryLinear.from_linear(source, layout=layout) for layout in LAYOUTS}
    with torch.no_grad():
        layers["int8"](torch.zeros(1, shape[1], dtype=dtype))
    return {"dense": copy.deepcopy(layers["packed"]).to_linear(), **layers}


def memory_bits(layer: nn.Module) -> float:
    """Bits per weight in memory: of all tensors except the bias."""
    tensors = [*layer.buffers(), *(p for n, p in layer.named_parameters() if n != "bias")]
    size = layer.in_features * layer.out_features
    return 8 * sum(tensor.numel() * tensor.element_size() for tensor in tensors) / size


def disk_bits(layer: nn.Module) -> float:
    """Bits per weight of the file, without its header and the bias."""
    state = {key: value for key, value in layer.state_dict().items() if key != "bias"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "layer.safetensors"
        save_file(state, file)
        content = file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    return 8 * (len(content) - header) / (layer.in_features * layer.out_features)


@torch.no_grad()
def times(layers: Sequence[nn.Module], x: Tensor, repeats: int) -> list[float]:
    seconds: list[list[float]] = [[] for _ in layers]
    for repeat in range(repeats + 2):
        for kept, layer in zip(seconds, layers, strict=True):
            start = time.perf_counter()
            layer(x)
            if repeat > 1:
                kept.append(time.perf_counter() - start)
    return [median(kept) for kept in seconds]


@torch.no_grad()
def error(layer: nn.Module, x: Tensor) -> float:
    weight = layer.weight if isinstance(layer, nn.Linear) else layer.dense()
    exact = functional.linear(x.double(), weight.double(), layer.bias.double())
    return float((layer(x).double() - exact).abs().max() / exact.std())


if __name__ == "__main__":
    run(main)
