"""Measure the memory that a model takes in every layout, each in a process of its own.

    python recipes/bench_memory.py [--noise int8 int4] [--texts 4] [--dtype bfloat16]
    python recipes/bench_memory.py --without_numba
    python recipes/bench_memory.py --embedded

The memory of a process is that of its private pages, clean and dirty (the unique set size). From
each number, the memory after all imports and a forward pass of a tiny model is subtracted. The
model is the trained BERT of the extra `demo`. It is measured after loading, after it has served
texts, and after freed memory went back to the system. The system maps the weights from the file,
and reads only the parts that are used. A few texts use only a few rows of the embeddings. So each
parameter is read once before the second number. `file` is the size of model.safetensors. Numba, if
it is installed, counts as an import; the last line shows its memory. The recipe needs Linux. With
`--dtype bfloat16` all models except the first one are saved in bfloat16. `--embedded` measures a
small random BERT.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from workbench.command import parser_of, run

LAYOUT_NAMES = ("packed", "int8", "dense")
MEGA = 1e6


def main() -> None:
    """Measure and print the rows, each in a process of its own."""
    options = parser().parse_args()
    options.noise = options.noise[:1] if options.embedded else options.noise
    if options.folder:
        print(json.dumps(measured(options)))
        return
    head = ("model", "layout", "loaded", "served", "given back", "over dense", "file MB")
    print("{:8}{:>12}{:>9}{:>9}{:>12}{:>12}{:>9}".format(*head))
    with tempfile.TemporaryDirectory() as folder:
        originals = Path(folder) / "dense"
        make(originals, "", "float32", options)
        base, numba = row("dense", "plain", originals, 0.0, options)
        if options.dtype != "float32":
            make(Path(folder) / "cast", "", options.dtype, options)
            row(options.dtype, "plain", Path(folder) / "cast", base, options)
        for noise in options.noise:
            target = Path(folder) / noise
            make(target, noise, options.dtype, options)
            for name in LAYOUT_NAMES:
                row(noise, name, target, base, options)
    print(f"Numba and its compiler take {numba:.0f} MB, not counted above" if numba else "no Numba")


def parser() -> argparse.ArgumentParser:
    """The options of this recipe."""
    made = parser_of(__doc__)
    made.add_argument("--noise", nargs="+", default=["int8", "int4"], help="how noise is stored")
    made.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        default="float32",
        help="dtype in which models are saved",
    )
    made.add_argument("--without_numba", action="store_true", help="measure without Numba")
    made.add_argument("--texts", type=int, default=4, help="texts served at once")
    made.add_argument("--embedded", action="store_true", help="a small random model, in seconds")
    made.add_argument("--folder", help=argparse.SUPPRESS)
    made.add_argument("--layout", help=argparse.SUPPRESS)
    return made


def make(target: Path, noise: str, dtype: str, options: argparse.Namespace) -> None:
    """Save the model to be measured, in a dtype; compress it first if `noise` is not empty."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    from hf_rmt import RMTConfig, compress
    from hf_rmt.demo import demo_model_path

    if options.embedded:
        model = tiny(seed=0, width=64)
    else:
        model = AutoModel.from_pretrained(demo_model_path())
        AutoTokenizer.from_pretrained(demo_model_path()).save_pretrained(target)
    model = model.to(getattr(torch, dtype))
    if noise:
        compress(model, RMTConfig(noise=noise))
    model.save_pretrained(target)


def row(
    noise: str, name: str, folder: Path, base: float, options: argparse.Namespace
) -> tuple[float, float]:
    """Measure in a new process and print a row; returns MB after serving, and MB of Numba."""
    command = [sys.executable, __file__, "--folder", str(folder), "--layout", name]
    command += ["--texts", str(options.texts)] + ["--embedded"] * options.embedded
    command += ["--without_numba"] * options.without_numba
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    loaded, served, rested, numba = json.loads(done.stdout.splitlines()[-1])
    file = sum(part.stat().st_size for part in folder.glob("*.safetensors")) / MEGA
    over = f"{served / base:.2f}" if base else "1.00"
    print(f"{noise:9}{name:>11}{loaded:9.1f}{served:9.1f}{rested:12.1f}{over:>12}{file:9.1f}")
    return served, numba


def measured(options: argparse.Namespace) -> list[float]:
    """MB in addition to the imports after loading, serving and freeing; then MB of Numba."""
    if options.without_numba:
        sys.modules["numba"] = None  # type: ignore[assignment]  # an import then fails
    import torch
    from transformers import AutoModel, AutoTokenizer

    import hf_rmt.huggingface.quantizer  # noqa: F401  (an import that loading would count)
    from hf_rmt.demo import SENTENCES
    from hf_rmt.nn.layouts import set_layout

    torch.set_num_threads(1)
    batch = {"input_ids": torch.arange(48).view(4, 12)}
    if not options.embedded:
        tokenizer = AutoTokenizer.from_pretrained(options.folder)
        texts = list(SENTENCES[: options.texts])
        batch = dict(tokenizer(texts, padding=True, return_tensors="pt"))
    with torch.inference_mode():
        tiny(seed=1, width=32)(input_ids=torch.ones(1, 4, dtype=torch.long))
        rest()
        before = unique_bytes()
        load_numba()
        start = unique_bytes()
        model = AutoModel.from_pretrained(options.folder)
        if options.layout != "plain":
            set_layout(model, options.layout)
        found = [unique_bytes()]
        model(**batch)
        for tensor in model.parameters():
            tensor.sum()
        found.append(unique_bytes())
        rest()
        found.append(unique_bytes())
    numba = (start - before) / MEGA if sys.modules.get("numba") else 0.0
    return [(value - start) / MEGA for value in found] + [numba]


def load_numba() -> None:
    """If Numba is installed, load Numba and its compiler, as the first packed layer does."""
    import torch

    from hf_rmt.nn import NoiseStore

    store = NoiseStore("int8", 32, 32)
    store.store(torch.ones(32, 32))
    store.dense()
    store.product(torch.ones(1, 32))


def tiny(*, seed: int, width: int) -> Any:
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "vocab_size": 100}
    return BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=2, **sizes)).eval()


def rest() -> None:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def unique_bytes() -> int:
    """Bytes in the private pages of this process."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


if __name__ == "__main__":
    run(main)
