"""Measure time and memory of compressing a model of the shape of bert-base.

    python recipes/bench_compress.py --embedded
    python recipes/bench_compress.py --layers 4 --width 768 --noise int8

The time of `hf_rmt.compress` on every linear layer of the encoder is divided by the time of
`torch.linalg.svd` on the same weights. The two run in turn. The memory is the peak while
`from_pretrained` loads and compresses the model, minus the memory of the finished model, divided by
the size of the largest weight. The weights are simulated, so nothing is downloaded. --embedded
takes a small model.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import json
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from workbench.command import parser_of, run
from workbench.models.simulated_bert import linears, spiked_bert

import torch
from transformers import AutoModel, BertModel

from hf_rmt import RMTConfig, compress


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def time_ratio(model: BertModel, config: RMTConfig, repeats: int) -> dict[str, float]:
    """Median seconds of compressing the whole model and of the SVD of its weights; their ratio."""
    weights = [linear.weight.detach() for linear in linears(model)]

    def decompose() -> None:
        for weight in weights:
            torch.linalg.svd(weight, full_matrices=False)

    ours, svd = [], []
    for _ in range(repeats):
        dense = copy.deepcopy(model)
        ours.append(seconds(lambda dense=dense: compress(dense, config)))
        svd.append(seconds(decompose))
    return {
        "compress_s": median(ours),
        "svd_s": median(svd),
        "ratio": median(ours) / median(svd),
    }


class PeakMemory:
    """Measures the peak of the process's anonymous memory (not of files) in a `with` block.

    It takes a sample every 0.5 ms.
    """

    def __enter__(self) -> PeakMemory:
        give_back()
        self.peak, self.running = 0, True
        self.thread = threading.Thread(target=self._sample)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.running = False
        self.thread.join()
        give_back()
        self.after = anonymous_bytes()

    def _sample(self) -> None:
        while self.running:
            self.peak = max(self.peak, anonymous_bytes())
            time.sleep(0.0005)


def give_back() -> None:
    """Return freed memory to the system, so that only memory in use is counted."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def anonymous_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return 1024 * int(line.split()[1])
    raise OSError("/proc/self/status has no RssAnon; run this recipe on Linux to measure memory")


def streaming_peak(model: BertModel, config: RMTConfig) -> float:
    """The peak of memory while loading and compressing, in units of the largest weight.

    The memory of the finished model is subtracted.
    """
    largest = max(linear.weight.nbytes for linear in linears(model))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        AutoModel.from_pretrained(folder, quantization_config=config)  # imports are not counted
        with PeakMemory() as memory:
            loaded = AutoModel.from_pretrained(folder, quantization_config=config)
    del loaded
    return (memory.peak - memory.after) / largest


def parser() -> argparse.ArgumentParser:
    """The options of this recipe."""
    made = parser_of(__doc__)
    made.add_argument("--embedded", action="store_true", help="one block of width 64, one repeat")
    made.add_argument("--layers", type=int, default=3, help="number of blocks of the model")
    made.add_argument(
        "--width", type=int, default=768, help="width of the hidden states, a multiple of 64"
    )
    made.add_argument("--noise", default="int8", help="how the noise is stored")
    made.add_argument("--repeats", type=int, default=5, help="number of repeats; times are medians")
    return made


def main() -> None:
    options = parser().parse_args()
    if options.embedded:
        options.layers, options.width, options.repeats = 1, 64, 1
    model = spiked_bert(options.layers, options.width)
    config = RMTConfig(noise=options.noise)
    peak = streaming_peak(model, config)  # first, because freed copies would be counted
    result = time_ratio(model, config, options.repeats) | {"peak_in_largest_weights": peak}
    print(json.dumps({"threads": torch.get_num_threads(), **result}, indent=2))


if __name__ == "__main__":
    run(main)
