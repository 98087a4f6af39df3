"""Measure how much faster several processes of one thread compress a model than one process.

    python recipes/bench_distributed.py --embedded
    python recipes/bench_distributed.py --layers 12 --noise int8 --repeats 3

Runs of one process and runs of several processes alternate. Each run starts new processes on this
machine (gloo). The time begins when the weights are in memory, and ends when every process has the
compressed model. It includes the plan and the latencies. All runs must end with the same weights,
bit for bit. The model has the shape of bert-base and simulated weights, so nothing is downloaded.
--embedded takes a small model.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from workbench.command import parser_of
from workbench.command import run as start
from workbench.models.simulated_bert import spiked_bert

import torch
from torch import Tensor, distributed, multiprocessing

import hf_rmt
from hf_rmt import RMTConfig


def run(processes: int, options: argparse.Namespace) -> list[dict[str, float | str]]:
    """For each process, its seconds and a digest of its weights."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(worker, (processes, folder, options), nprocs=processes)
        return [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]


def worker(rank: int, processes: int, folder: str, options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    os.environ["TQDM_DISABLE"] = "1"
    torch.manual_seed(0)
    model = spiked_bert(options.layers, options.width)
    if processes > 1:
        store = f"file://{folder}/store"
        distributed.init_process_group("gloo", store, rank=rank, world_size=processes)
        distributed.barrier()
    start = time.perf_counter()
    hf_rmt.compress(model, RMTConfig(noise=options.noise))
    if processes > 1:
        distributed.barrier()
    seconds = time.perf_counter() - start
    result = {"seconds": seconds, "digest": digest(model.state_dict())}
    Path(folder, f"{rank}.json").write_text(json.dumps(result))
    if processes > 1:
        distributed.destroy_process_group()


def digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors and their names."""
    result = hashlib.sha256()
    for name in sorted(weights):
        result.update(name.encode())
        result.update(weights[name].contiguous().view(-1).view(torch.uint8).numpy().data)
    return result.hexdigest()


def parser() -> argparse.ArgumentParser:
    """The options of this recipe."""
    made = parser_of(__doc__)
    made.add_argument("--embedded", action="store_true", help="one block of width 64, one repeat")
    made.add_argument("--layers", type=int, default=12, help="number of blocks of the model")
    made.add_argument(
        "--width", type=int, default=768, help="width of the hidden states, a multiple of 64"
    )
    made.add_argument("--noise", default="int8", help="how the noise is stored")
    made.add_argument(
        "--processes", type=int, default=2, help="number of processes to compare with one"
    )
    made.add_argument("--repeats", type=int, default=3, help="number of repeats; times are medians")
    return made


def main() -> None:
    options = parser().parse_args()
    if options.embedded:
        options.layers, options.width, options.repeats = 1, 64, 1
    times: dict[int, list[float]] = {1: [], options.processes: []}
    digests = set()
    for _ in range(options.repeats):
        for processes, taken in times.items():
            results = run(processes, options)
            taken.append(max(result["seconds"] for result in results))
            digests |= {result["digest"] for result in results}
    seconds = {processes: median(taken) for processes, taken in times.items()}
    result = {
        "seconds": seconds,
        "all_seconds": times,
        "ratio": seconds[1] / seconds[options.processes],
        "bitwise_equal": len(digests) == 1,
    }
    print(json.dumps(result, indent=2))
    if len(digests) > 1:
        raise SystemExit(
            f"all runs must end with the same weights, got {len(digests)} different sets of weights"
        )


if __name__ == "__main__":
    start(main)
