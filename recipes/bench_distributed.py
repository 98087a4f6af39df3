"""Two processes against one, compressing a bert-base-shaped model; one thread each.

    python recipes/bench_distributed.py [--layers 12] [--noise int8] [--repeats 3]

Runs of one process and of several alternate, each in fresh processes (gloo, on this machine); time
counts from the weights in memory to the compressed model on every process, plan and latencies
included. All runs must end with the same weights, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from bench_compress import spiked_bert
from torch import distributed, multiprocessing

import hf_rmt
from hf_rmt import RMTConfig
from hf_rmt.huggingface.training.start_weights import digest


def run(processes: int, options: argparse.Namespace) -> list[dict[str, float | str]]:
    """Seconds and a digest of the weights, of each process."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--noise", default="int8")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
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
        raise SystemExit(f"the runs ended with {len(digests)} different sets of weights")


if __name__ == "__main__":
    main()
