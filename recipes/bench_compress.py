"""Time and memory of compressing a bert-base-shaped model.

    python recipes/bench_compress.py [--layers 4] [--width 768] [--noise int8]

Time: analysing and compressing every encoder linear, over `torch.linalg.svd` of the same weights,
weight by weight in turn. Memory: the peak while `from_pretrained` compresses on the fly, above
what the loaded model holds, in units of the largest weight.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from transformers import AutoModel, BertConfig, BertModel

from hf_rmt import RMTConfig
from hf_rmt.compression.weight import compress_weight
from hf_rmt.spectra.ensembles import double_bulk_matrix


def spiked_bert(layers: int, width: int) -> BertModel:
    """A bert-base-shaped model whose weights are double bulks with twenty spikes."""
    config = BertConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        vocab_size=1000,
    )
    model = BertModel(config)
    spikes = tuple(float(value) for value in range(60, 20, -2))
    for seed, linear in enumerate(linears(model)):
        weight = double_bulk_matrix(
            tuple(linear.weight.shape), mixing=0.5, variances=(3.0, 0.6), spikes=spikes, seed=seed
        )
        linear.weight.data.copy_(torch.from_numpy(weight))
    return model


def linears(model: BertModel) -> list[nn.Linear]:
    return [part for part in model.encoder.modules() if isinstance(part, nn.Linear)]


def seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def time_ratio(model: BertModel, config: RMTConfig, repeats: int) -> dict[str, float]:
    """Compression over SVD: medians over interleaved repeats, summed over the weights."""
    ours, svd = 0.0, 0.0
    for linear in linears(model):
        weight = linear.weight.detach()

        def compress(weight: Tensor = weight) -> None:
            compress_weight("layer", weight, config).module(weight, None)

        def decompose(weight: Tensor = weight) -> None:
            torch.linalg.svd(weight, full_matrices=False)

        pairs = [(seconds(compress), seconds(decompose)) for _ in range(repeats)]
        ours += median(pair[0] for pair in pairs)
        svd += median(pair[1] for pair in pairs)
    return {"compress_s": ours, "svd_s": svd, "ratio": ours / svd}


class PeakMemory:
    """Largest anonymous memory of the process while the block runs, sampled every 0.5 ms."""

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
    """Return freed memory to the system, so that what stays is in use."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def anonymous_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return 1024 * int(line.split()[1])
    raise OSError("/proc/self/status has no RssAnon; memory is measured on Linux only")


def streaming_peak(model: BertModel, config: RMTConfig) -> float:
    """Peak above the loaded result while compressing on the fly, in largest weights."""
    largest = max(linear.weight.nbytes for linear in linears(model))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        AutoModel.from_pretrained(folder, quantization_config=config)  # pay for imports once
        with PeakMemory() as memory:
            loaded = AutoModel.from_pretrained(folder, quantization_config=config)
    del loaded
    return (memory.peak - memory.after) / largest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--noise", default="int8")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    model = spiked_bert(options.layers, options.width)
    config = RMTConfig(noise=options.noise)
    result = time_ratio(model, config, options.repeats)
    result["peak_in_largest_weights"] = streaming_peak(model, config)
    print(json.dumps({"threads": torch.get_num_threads(), **result}, indent=2))


if __name__ == "__main__":
    main()
