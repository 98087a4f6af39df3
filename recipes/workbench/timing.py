"""Shared code of recipes that measure speed: options, machine, times and missing packages."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from workbench.command import parser_of

import torch

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
WARM = 2

Call = Callable[[], Any]


def timing_parser(text: str) -> argparse.ArgumentParser:
    """A parser whose help is the docstring of the recipe."""
    made = parser_of(text)
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to measure")
    made.add_argument("--repeats", type=int, default=25, help="number of turns; medians are shown")
    made.add_argument("--embedded", action="store_true", help="small shapes, done in seconds")
    return made


def machine(device: str) -> str:
    """Processor, its instructions, torch and threads, in one line."""
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    table = Path("/proc/cpuinfo")
    lines = table.read_text(encoding="utf-8").splitlines() if table.exists() else []
    fields = {key.strip(): value.strip() for key, _, value in (row.partition(":") for row in lines)}
    known = fields.get("flags", "").split()
    flags = " ".join(flag for flag in FLAGS if flag in known)
    return (
        f"{fields.get('model name', 'unknown processor')} ({flags}), torch {torch.__version__} "
        f"using {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} thread(s)"
    )


def times(calls: Mapping[str, Call], repeats: int, device: str) -> dict[str, list[float]]:
    """Seconds of each call in each turn. A turn runs all calls, so that other programs slow all."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + WARM):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn >= WARM:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(seconds: Mapping[str, list[float]], base: str) -> dict[str, float]:
    """For each call, the median over turns of its time divided by that of `base` in that turn."""
    return {
        name: median(own / other for own, other in zip(column, seconds[base], strict=True))
        for name, column in seconds.items()
    }


def missing(package: str) -> bool:
    """Whether a package that some rows need is not installed."""
    return find_spec(package) is None
