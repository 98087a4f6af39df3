"""Chooses the fastest or the smallest layout, the form of a weight in memory, for a layer.

The choice `fastest` measures each shape of layer once on a machine, and saves the result.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import platform
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor, nn

from hf_rmt.nn.layers.spiked import SpikedLinear
from hf_rmt.nn.layers.spiked_conv import SpikedConv2d
from hf_rmt.nn.layers.ternary import LAYOUTS as TERNARY_LAYOUTS
from hf_rmt.nn.layers.ternary import TernaryLinear
from hf_rmt.nn.layouts.base import LAYOUTS
from hf_rmt.nn.layouts.parking import cache_folder
from hf_rmt.nn.stores.machine_code import has_numba

CHOICES = ("fastest", "smallest")
TOKENS = (16, 128, 512)
"""Numbers of rows (tokens) of the inputs with which layouts, the forms of a weight in memory, are
compared by default."""
REPEATS, BUDGET = 15, 0.4
"""Limits of a measurement of times: the most rounds, and the seconds after which no further round
begins. Each round calls the layer in every layout (form of the weight in memory)."""
COLD, MOST_COPIES = 2**24, 32
"""A measurement calls several copies of the layer in turn, because a loop over one layer would keep
its weights in the cache. In a model they do not stay there, because a model has more weights than
a cache holds. The copies have dense weights of about COLD bytes together, but there are at most
MOST_COPIES copies."""
MARGIN = 0.97
"""`fastest` chooses `dense`, one plain matrix in memory, unless another layout (form of the weight
in memory) needs at most this fraction of its time."""
FILE = "layouts.json"

_CHOSEN: dict[tuple[Path, str], str] = {}
"""Layouts (forms of a weight in memory) that this process has measured or read from a file. A key
is the folder of this file, with the text by which `_key` describes the layer."""

logger = logging.getLogger(__name__)


def choose(
    layer: SpikedLinear | TernaryLinear, choice: str, *, activations: str, tokens: tuple[int, ...]
) -> str:
    """The name of the layout (form of the weight in memory) to use for a layer.

    Args:
        layer: The layer; it is not changed.
        choice: `fastest` or `smallest`.
        activations: As in `set_layout`.
        tokens: Numbers of rows of the inputs for which layouts are measured.

    Returns:
        The name of a layout, such as `dense`.
    """
    names = possible(layer, activations)
    if len(names) == 1:
        return names[0]
    if choice == "smallest":
        if isinstance(layer, TernaryLinear):
            return "packed"
        return min(names, key=lambda name: LAYOUTS[name].estimate(layer))
    if isinstance(layer, SpikedConv2d):
        return "dense"  # packed is the only other layout; it unpacks first and then does the same
    key = _key(layer, activations, tokens)
    known = _CHOSEN.get((cache_folder(), key)) or remembered().get(key)
    if known not in LAYOUTS and known not in TERNARY_LAYOUTS:  # or another version wrote it
        known = fastest(measure(layer, names, activations, tokens))
        remember(key, known)
    _CHOSEN[cache_folder(), key] = known
    return known if known in names else names[0]


def possible(layer: SpikedLinear | TernaryLinear, activations: str) -> tuple[str, ...]:
    """Names of the layouts (forms of the weight in memory) that a layer can have.

    The first one is `packed`.
    """
    if isinstance(layer, TernaryLinear):
        return TERNARY_LAYOUTS
    kinds = {name: kind for name, kind in LAYOUTS.items() if not kind.by_name_only}
    free = (
        name for name, kind in kinds.items() if not kind.refusal(layer, activations=activations)
    )
    return ("packed", *(name for name in free if name != "packed"))


def fastest(times: Mapping[str, float]) -> str:
    """The name of the layout (form of a weight in memory) with the shortest time.

    `times` holds the seconds by the name of the layout. The result is `dense` if no other layout is
    clearly faster.
    """
    best = min(times, key=lambda name: times[name])
    if "dense" in times and times[best] > MARGIN * times["dense"]:
        return "dense"
    return best


@torch.no_grad()
def measure(
    layer: SpikedLinear | TernaryLinear,
    names: tuple[str, ...],
    activations: str,
    tokens: tuple[int, ...],
) -> dict[str, float]:
    """Seconds per call of a layer in each layout, the form of the weight in memory.

    The result maps the name of each layout to the median time of a call. `tokens` holds numbers of
    input rows. If there are several, the result has the geometric mean of their median times.
    """
    from hf_rmt.nn.layouts.placing import place

    like = layer.scale if isinstance(layer, TernaryLinear) else layer.weight
    dense = layer.out_features * layer.in_features * like.element_size()
    number = 1 if like.device.type != "cpu" else max(2, min(MOST_COPIES, -(-COLD // dense)))
    copies = {name: [_without_hooks(layer).eval() for _ in range(number)] for name in names}
    for name, twins in copies.items():
        for twin in twins:
            place(twin, name, activations=activations)
    logs = dict.fromkeys(names, 0.0)
    generator = torch.Generator().manual_seed(0)  # the user's random numbers stay the same
    for count in tokens:
        x = torch.randn(count, layer.in_features, generator=generator).to(like)
        for name, seconds in _interleaved(copies, x).items():
            logs[name] += math.log(seconds) / len(tokens)
    return {name: math.exp(value) for name, value in logs.items()}


def _without_hooks(layer: nn.Module) -> Any:
    """A copy of a layer without the user's forward hooks.

    The copy is called with random inputs to measure its time, and hooks must not see these.
    """
    hooks = layer._forward_hooks, layer._forward_pre_hooks
    return copy.deepcopy(layer, {id(each): type(each)() for each in hooks})


def _interleaved(layers: Mapping[str, list[Any]], x: Tensor) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in layers}
    end = time.perf_counter() + BUDGET
    for turn in range(REPEATS + 1):
        for name, twins in layers.items():
            start = time.perf_counter()
            for twin in twins:
                twin(x)
            if x.device.type == "cuda":
                torch.cuda.synchronize(x.device)
            if turn:
                times[name].append((time.perf_counter() - start) / len(twins))
        if turn > 2 and time.perf_counter() > end:
            break
    return {name: median(column) for name, column in times.items()}


def _key(layer: SpikedLinear | TernaryLinear, activations: str, tokens: tuple[int, ...]) -> str:
    """A line of text that describes the layer, the machine and the options of a measurement.

    It names everything on which the choice of a layout (form of the weight in memory) depends.
    Choices are saved under this text.
    """
    like = layer.scale if isinstance(layer, TernaryLinear) else layer.weight
    kind = "ternary layer" if isinstance(layer, TernaryLinear) else layer.noise.kind
    rank = 0 if isinstance(layer, TernaryLinear) else layer.rank
    parts = (
        device_name(like.device),
        f"torch {torch.__version__}",
        f"{torch.get_num_threads()} threads",
        "numba" if has_numba() else "no numba",
        "cold",
        f"{layer.out_features}x{layer.in_features}",
        f"rank {rank.bit_length()}",  # ranks with equally many bits count as equal
        kind,
        str(like.dtype).removeprefix("torch."),
        f"activations {activations}",
        "tokens " + " ".join(map(str, tokens)),
    )
    return ", ".join(parts)


@cache
def device_name(device: torch.device) -> str:
    """The model name of a CPU or a GPU; for another device its type, such as `mps`.

    For a CPU, the name of the instruction set that torch uses follows.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    table = Path("/proc/cpuinfo")
    lines = table.read_text(encoding="utf-8").splitlines() if table.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name} {torch.backends.cpu.get_cpu_capability()}"


def remembered() -> dict[str, str]:
    """Layouts (forms of a weight in memory) that were chosen on this machine before.

    The keys are lines of text, made by `_key`, that describe the layers. The result is empty if
    there is no readable file.
    """
    try:
        content = json.loads((cache_folder() / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def remember(key: str, layout: str) -> None:
    """Add a chosen layout (form of a weight in memory) to the file that `remembered` reads.

    `key` is a line of text, made by `_key`, that describes the layer. There is no error if the
    folder cannot be written to.
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f"{FILE}.{uuid4().hex}"
        draft.write_text(json.dumps(remembered() | {key: layout}, indent=1), encoding="utf-8")
        draft.replace(folder / FILE)
    except OSError as error:
        logger.debug("the measured layout is not saved: %s", error)
