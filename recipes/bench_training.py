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

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.command import dataclass_parser, parsed, run
from workbench.glue_data import (
    by_length,
    length_of,
    name_of,
    splits_of,
    tokenized,
)
from workbench.training_bench import BenchArguments, begin, on_file, settings_of, table

import numpy as np
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    set_seed,
)

from hf_rmt import RMTCallback, RMTConfig
from hf_rmt.demo import demo_model_path

ROWS = ("plain", "callback", "published", "annealed-0.1", "once-0.1")
DEFAULTS = (0.35, 0.2, 0.8)
"""Size, and the parts of the run where the noise begins to go and is gone."""


@dataclass
class Arguments(BenchArguments):
    """What the recipe is told."""

    rows: list[str] = field(default_factory=lambda: list(ROWS), metadata={"help": "see above"})


def parser() -> Any:
    """The options of this recipe."""
    return dataclass_parser(Arguments, __doc__)


def main() -> None:
    """Train, judge, print the table."""
    arguments = parsed(parser())
    begin(arguments)
    for task in arguments.task:
        results = {
            row: [measured(arguments, task, row, seed) for seed in arguments.seeds]
            for row in arguments.rows
        }
        print(table(task, results))


def measured(arguments: Arguments, task: str, row: str, seed: int) -> dict[str, Any]:
    """One run, read from its file where it was done before."""
    file = Path(arguments.output_dir, name_of(arguments, task), f"{row}-{seed}.json")
    return on_file(file, lambda: trained(arguments, task, row, seed))


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


if __name__ == "__main__":
    run(main)
