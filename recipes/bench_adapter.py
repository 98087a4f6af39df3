"""Compare LoRA adapters of equal size: ranks chosen by the spectrum against one fixed rank.

    python recipes/bench_adapter.py --embedded
    python recipes/bench_adapter.py --train --base DIR/base --tuned DIR/tuned
    python recipes/bench_adapter.py --base DIR/base --tuned DIR/tuned --texts dev.tsv

The adapters are extracted from the difference of a tuned model and its base. Each adapter is saved,
and plain PEFT loads it onto the base. The recipe prints how far the resulting logits lie from those
of the tuned model (mean Euclidean distance over the texts) and, if there are labels, the accuracy.
The linear layers of the repeated blocks get low-rank factors. All other weights are copied from the
tuned model.

--train makes the two models: the BERT of the extra `demo`, and the same BERT fine-tuned on 12,000
random training sentences of SST-2, read from the folder HF_RMT_DATA. A file of texts has one text
in each line, with a tab and a label after it if there are labels. --embedded trains the same BERT
on the built-in sentences instead.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workbench.command import parser_of, run
from workbench.data.entailment import entailment
from workbench.writing import replaced_files, write_text

import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from transformers.utils import logging

from hf_rmt import extract_adapter
from hf_rmt.demo import demo_model_path

BLOCKS = r".*\.\d+\..*"
"""Pattern of the names of the modules in numbered blocks."""
MAX_LENGTH, BATCH, EPOCHS, LEARNING_RATE, SENTENCES = 64, 32, 2, 5e-5, 12_000


def main() -> None:
    arguments = parser().parse_args()
    logging.disable_progress_bar()
    os.environ["TQDM_DISABLE"] = "1"
    if arguments.embedded:
        with tempfile.TemporaryDirectory() as folder:
            compare(embedded(Path(folder), arguments))
        return
    if not (arguments.base and arguments.tuned):
        raise SystemExit("pass the folders --base and --tuned, or --embedded")
    if arguments.train:
        train(arguments.base, arguments.tuned)
    if arguments.texts:
        compare(arguments)


def parser() -> argparse.ArgumentParser:
    """The options of this recipe."""
    made = parser_of(__doc__)
    made.add_argument("--embedded", action="store_true", help="demo BERT and built-in sentences")
    made.add_argument("--base", type=Path, help="folder of the pretrained model")
    made.add_argument("--tuned", type=Path, help="folder of the tuned model")
    made.add_argument("--texts", type=Path, help="file of texts to compare the logits on")
    made.add_argument("--limit", type=int, help="use only this many texts, from the start")
    made.add_argument("--calibration", type=Path, help="file of other texts to calibrate on")
    made.add_argument("--calibration-texts", type=int, default=128, help="number of these texts")
    made.add_argument("--ranks", type=int, nargs="+", default=[4, 8, 16], help="ranks to compare")
    made.add_argument("--train", action="store_true", help="first make the base and tuned model")
    return made


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
    """Label and options of each adapter. The first has a fixed rank, which sets the size of all."""
    yield f"fixed rank {rank}", {"rank": rank}
    yield "by spectrum", {}
    if calibration:
        yield "by spectrum, calibrated", {"calibration": calibration}


def reload(adapter: Any, base: Path) -> Any:
    """Save the adapter and load it onto the base with plain PEFT."""
    with tempfile.TemporaryDirectory() as folder:
        adapter.save_pretrained(folder)
        model = AutoModelForSequenceClassification.from_pretrained(base)
        return PeftModel.from_pretrained(model, folder)


def read(path: Path, limit: int | None) -> tuple[list[str], list[int] | None]:
    """The texts of a file, and their labels if each line has a label after a tab."""
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
    fine_tune(
        model, tokenizer, [texts[i] for i in chosen], [labels[i] for i in chosen], base, tuned
    )


def embedded(folder: Path, arguments: argparse.Namespace) -> argparse.Namespace:
    """Make the demo's BERT, a fine-tuned copy, and a file of sentences to compare both on."""
    torch.manual_seed(0)
    path = demo_model_path()
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=2)
    rows = [row for rows in entailment().values() for row in rows]
    texts = [f"{row['text']} {row['text2']}" for row in rows]
    labels = [int(row["label"] == "entailment") for row in rows]
    base, tuned = folder / "base", folder / "tuned"
    fine_tune(model, tokenizer, texts, labels, base, tuned)
    file = folder / "texts.tsv"
    write_text(file, "\n".join(f"{a}\t{b}" for a, b in zip(texts, labels, strict=True)))
    changed = {"base": base, "tuned": tuned, "texts": file, "ranks": [4]}
    return argparse.Namespace(**{**vars(arguments), **changed})


def fine_tune(
    model: Any,
    tokenizer: Any,
    texts: list[str],
    labels: list[int],
    base: Path,
    tuned: Path,
) -> None:
    """Save a model as the base, train it, and save it as the tuned model."""
    save(model, tokenizer, base)
    steps = EPOCHS * -(-len(texts) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    model.train()
    for _ in range(EPOCHS):
        order = torch.randperm(len(texts)).tolist()
        encoded = encode(tokenizer, [texts[i] for i in order])
        for number, batch in enumerate(encoded):
            target = [labels[i] for i in order[number * BATCH : (number + 1) * BATCH]]
            model(**batch, labels=torch.tensor(target)).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    save(model, tokenizer, tuned)


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save a model and its tokenizer."""
    with replaced_files(folder) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)


if __name__ == "__main__":
    run(main)
