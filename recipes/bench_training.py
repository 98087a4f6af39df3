"""What `RMTCallback` costs and saves while a BERT is fine-tuned: accuracy, parameters left, time.

    python recipes/bench_training.py --embedded
    HF_RMT_DATA=FOLDER python recipes/bench_training.py --task sst2 mrpc --max_train_samples 3000

Rows: `plain` is fine-tuning without a callback; `callback` is `RMTCallback()` as it comes;
`published` filters by the weights alone after each epoch; `rule` anneals with the ranks that PDB
finds; `annealed-0.1` and `once-0.1` keep a tenth of the blocks' parameters and let the noise go
slowly, or at once where the other one begins; `annealed-0.1-0.1-0.5` also says when. All rows of a
seed start from the same weights and see the same batches, one row after the other. What stands in
the output folder is not done again.
"""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.command import dataclass_parser, parsed, run
from workbench.glue_data import (
    DataArguments,
    by_length,
    length_of,
    name_of,
    splits_of,
    tokenized,
)
from workbench.training_table import table
from workbench.writing import write_json

import numpy as np
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_rmt import RMTCallback, RMTConfig
from hf_rmt.demo import demo_model_path

ROWS = ("plain", "callback", "published", "annealed-0.1", "once-0.1")
DEFAULTS = (0.35, 0.2, 0.8)
"""Size, and the parts of the run where the noise begins to go and is gone."""


@dataclass
class Arguments(DataArguments):
    """What the recipe is told."""

    task: list[str] = field(default_factory=lambda: ["sst2"], metadata={"help": "sst2, mrpc, ..."})
    model: str | None = field(default=None, metadata={"help": "folder or Hub id; default: demo"})
    embedded: bool = field(default=False, metadata={"help": "built-in data, demo BERT, no Hub"})
    output_dir: str = field(default="results/training", metadata={"help": "where results go"})
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "one training each"})
    rows: list[str] = field(default_factory=lambda: list(ROWS), metadata={"help": "see above"})
    epochs: float = field(default=2.0, metadata={"help": "of training"})
    learning_rate: float = field(default=1e-4, metadata={"help": "of all weights"})
    batch_size: int = field(default=32, metadata={"help": "texts a step"})
    max_steps: int = field(
        default=-1, metadata={"help": "update steps in place of epochs; -1 for none"}
    )


def parser() -> Any:
    """The options of this recipe."""
    return dataclass_parser(Arguments, __doc__)


def main() -> None:
    """Train, judge, print the table."""
    arguments = parsed(parser())
    logging.getLogger("hf_rmt").setLevel(logging.ERROR)
    if arguments.embedded:
        arguments.task = ["embedded"]
    elif arguments.data_dir is None and "HF_RMT_DATA" in os.environ:
        arguments.data_dir = str(Path(os.environ["HF_RMT_DATA"], "data"))
    for task in arguments.task:
        results = {
            row: [measured(arguments, task, row, seed) for seed in arguments.seeds]
            for row in arguments.rows
        }
        print(table(task, results))


def measured(arguments: Arguments, task: str, row: str, seed: int) -> dict[str, Any]:
    """One run, read from its file where it was done before."""
    folder = Path(arguments.output_dir, name_of(arguments, task))
    file = folder / f"{row}-{seed}.json"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, trained(arguments, task, row, seed), indent=None)
    return json.loads(file.read_text())


def trained(arguments: Arguments, task: str, row: str, seed: int) -> dict[str, Any]:
    """Train one row and judge what it leaves."""
    splits, labels = splits_of(arguments, task, seed)
    path = arguments.model or str(demo_model_path())
    tokenizer = AutoTokenizer.from_pretrained(path)
    length = length_of(arguments, task)
    rows = {name: tokenized(part, tokenizer, length) for name, part in splits.items()}
    set_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=len(labels))
    callback = callback_of(row)
    trainer = Trainer(
        model,
        settings_of(arguments, task, seed),
        train_dataset=rows["train"],
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[] if callback is None else [callback],
    )
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    judged = [by_length(rows[name]) for name in ("dev", "test") if name in rows]
    found = [trainer.predict(part) for part in judged]
    correct = np.concatenate([part.predictions.argmax(-1) == part.label_ids for part in found])
    report = getattr(trainer.model, "compression_report", None)
    return {
        "correct": correct.astype(int).tolist(),
        "share": report.plan.parameter_share if report else 1.0,
        "seconds": seconds,
        "steps": trainer.state.global_step,
        "logs": [log for log in trainer.state.log_history if "loss" not in log],
    }


def callback_of(row: str) -> RMTCallback | None:
    """The callback of a row, None for plain training."""
    kind, *numbers = row.split("-")
    size, start, stop = (*map(float, numbers), *DEFAULTS[len(numbers) :])[:3]
    made: dict[str, Any] = {
        "plain": lambda: None,
        "callback": RMTCallback,
        "published": RMTCallback.published,
        "rule": lambda: RMTCallback(RMTConfig(noise="drop")),
        "annealed": lambda: RMTCallback(size=size, anneal=(start, stop)),
        "once": lambda: RMTCallback(size=size, anneal=(start, start)),
    }
    if kind not in made or bool(numbers) != (kind in ("annealed", "once")):
        raise SystemExit(f"--rows must be among {', '.join(made)}, two with -SIZE, got {row!r}")
    return made[kind]()


def settings_of(arguments: Arguments, task: str, seed: int) -> TrainingArguments:
    return TrainingArguments(
        str(Path(arguments.output_dir, name_of(arguments, task), "trainer")),
        num_train_epochs=arguments.epochs,
        max_steps=arguments.max_steps,
        learning_rate=arguments.learning_rate,
        warmup_steps=0.06,
        per_device_train_batch_size=arguments.batch_size,
        per_device_eval_batch_size=64,
        train_sampling_strategy="group_by_length",
        seed=seed,
        save_strategy="no",
        logging_steps=20,
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )


if __name__ == "__main__":
    run(main)
