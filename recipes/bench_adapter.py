"""Extracted LoRA adapters at equal size: ranks chosen by the spectrum against one fixed rank.

Every adapter is saved, loaded by stock PEFT on the base, and judged by how far its logits lie from
the tuned model's (mean Euclidean distance over the texts), and by accuracy where labels are given.
Factors go to the linears of the repeated blocks; everything else is carried over as tuned.

    python recipes/bench_adapter.py --train --base DIR/base --tuned DIR/tuned
    python recipes/bench_adapter.py --base DIR/base --tuned DIR/tuned --texts dev.tsv

`--train` makes the two models from the BERT of the extra `demo` and the 12,000 first of SST-2's
shuffled training sentences in HF_RMT_DATA. Texts are lines, or lines with a tab and a label.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from hf_rmt import extract_adapter
from hf_rmt.demo import demo_model_path

BLOCKS = r".*\.\d+\..*"
"""Names of what lies in a numbered block."""
MAX_LENGTH, BATCH, EPOCHS, LEARNING_RATE, SENTENCES = 64, 32, 2, 5e-5, 12_000


def main() -> None:
    arguments = _parse()
    logging.disable_progress_bar()
    os.environ["TQDM_DISABLE"] = "1"
    if arguments.train:
        train(arguments.base, arguments.tuned)
    if arguments.texts:
        compare(arguments)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, required=True, help="folder of the pretrained model")
    parser.add_argument("--tuned", type=Path, required=True, help="folder of the tuned model")
    parser.add_argument("--texts", type=Path, help="file of texts to compare the logits on")
    parser.add_argument("--limit", type=int, help="use only the first so many texts")
    parser.add_argument("--calibration", type=Path, help="file of other texts of the task")
    parser.add_argument("--calibration-texts", type=int, default=128)
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--train", action="store_true", help="make base and tuned first")
    return parser.parse_args()


def compare(arguments: argparse.Namespace) -> None:
    tokenizer = AutoTokenizer.from_pretrained(arguments.tuned)
    texts, labels = read(arguments.texts, arguments.limit)
    batches = list(encode(tokenizer, texts))
    tuned = AutoModelForSequenceClassification.from_pretrained(arguments.tuned)
    wanted = logits(tuned, batches)
    print(f"{'adapter':24}{'size':>9}{'distance':>10}{'of fixed':>10}{'accuracy':>10}")
    print(f"{'tuned model':24}{'':9}{0:10.4f}{'':10}{accuracy(wanted, labels)}")
    calibration = None
    if arguments.calibration:
        others, _ = read(arguments.calibration, arguments.calibration_texts)
        calibration = list(encode(tokenizer, others))
    for rank in arguments.ranks:
        fixed = None
        for label, options in variants(rank, calibration):
            adapter = extract_adapter(
                arguments.base,
                tuned,
                target_modules=BLOCKS,
                **(options | ({} if fixed is None else {"size": fixed[0]})),
            )
            found = logits(reload(adapter, arguments.base), batches)
            distance = float((found - wanted).norm(dim=1).mean())
            fixed = fixed or (adapter.size, distance)
            row = f"{adapter.size:9.4f}{distance:10.4f}{distance / fixed[1]:10.3f}"
            print(f"{label:24}{row}{accuracy(found, labels)}", flush=True)


def variants(rank: int, calibration: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The fixed rank first: it sets the size."""
    yield f"fixed rank {rank}", {"rank": rank}
    yield "by spectrum", {}
    if calibration:
        yield "by spectrum, calibrated", {"calibration": calibration}


def reload(adapter: Any, base: Path) -> Any:
    """The adapter on the base, through files and stock PEFT."""
    with tempfile.TemporaryDirectory() as folder:
        adapter.save_pretrained(folder)
        model = AutoModelForSequenceClassification.from_pretrained(base)
        return PeftModel.from_pretrained(model, folder)


def read(path: Path, limit: int | None) -> tuple[list[str], list[int] | None]:
    """Texts and, where each line has one after a tab, labels."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if lines[0] == "sentence\tlabel":
        lines = lines[1:]
    parts = [line.rsplit("\t", 1) for line in lines[:limit]]
    texts = [part[0].strip() for part in parts]
    labelled = all(len(part) == 2 and part[1].strip().isdecimal() for part in parts)
    return texts, [int(part[1]) for part in parts] if labelled else None


def encode(tokenizer: Any, texts: list[str]) -> Iterator[dict[str, Tensor]]:
    for start in range(0, len(texts), BATCH):
        yield tokenizer(
            texts[start : start + BATCH],
            padding=True,
            truncation=True,
            max_length=MAX_LENGTH,
            return_tensors="pt",
        )


@torch.no_grad()
def logits(model: Any, batches: list[dict[str, Tensor]]) -> Tensor:
    model.eval()
    return torch.cat([model(**batch).logits for batch in batches])


def accuracy(found: Tensor, labels: list[int] | None) -> str:
    if labels is None:
        return f"{'-':>10}"
    return f"{float((found.argmax(1) == torch.tensor(labels)).float().mean()):10.4f}"


def train(base: Path, tuned: Path) -> None:
    """Fine-tune the demo's BERT on SST-2; the base gets the same untrained head."""
    torch.manual_seed(0)
    path = demo_model_path()
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=2)
    texts, labels = read(Path(os.environ["HF_RMT_DATA"]) / "data/sst2/train.tsv", None)
    chosen = torch.randperm(len(texts))[:SENTENCES].tolist()
    for folder in (base, tuned):
        tokenizer.save_pretrained(folder)
    model.save_pretrained(base)
    steps = EPOCHS * -(-SENTENCES // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    model.train()
    for _ in range(EPOCHS):
        order = [chosen[i] for i in torch.randperm(SENTENCES).tolist()]
        encoded = encode(tokenizer, [texts[i] for i in order])
        for number, batch in enumerate(encoded):
            target = [labels[i] for i in order[number * BATCH : (number + 1) * BATCH]]
            model(**batch, labels=torch.tensor(target)).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    model.save_pretrained(tuned)


if __name__ == "__main__":
    main()
