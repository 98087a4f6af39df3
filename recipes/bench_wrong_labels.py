"""What to keep of a fine-tuning whose labels are partly wrong: one training, then every cure.

    python recipes/bench_wrong_labels.py --embedded
    HF_RMT_DATA=FOLDER python recipes/bench_wrong_labels.py --task sst2 --label_noise 0.4

Rows: `tuned` is the model after all epochs; `half` the model halfway, which is early stopping that
knows when; `scaled-0.7` interpolates with the start; `rank-4` cuts the update of each layer to its
four largest directions; `filter` is `hf_rmt.filter_update` as it comes; `dose` the same with
`dose="auto"`, which keeps of each update what lies in its leading directions halfway; `half-dose`
keeps of the update halfway these directions only. All are judged on clean labels. What stands in
the output folder is not done again.
"""

from __future__ import annotations

import copy
import json
import logging
import os
from collections.abc import Callable
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
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

import hf_rmt
from hf_rmt import RMTConfig
from hf_rmt.demo import demo_model_path


@dataclass
class Arguments(DataArguments):
    """What the recipe is told."""

    task: list[str] = field(default_factory=lambda: ["sst2"], metadata={"help": "sst2, mrpc, ..."})
    model: str | None = field(default=None, metadata={"help": "folder or Hub id; default: demo"})
    embedded: bool = field(default=False, metadata={"help": "built-in data, demo BERT, no Hub"})
    output_dir: str = field(default="results/wrong", metadata={"help": "where results go"})
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "one training each"})
    label_noise: float = field(default=0.4, metadata={"help": "share of labels to shuffle"})
    max_train_samples: int | None = field(
        default=2000, metadata={"help": "training texts; default: all"}
    )
    epochs: float = field(default=4.0, metadata={"help": "of training"})
    learning_rate: float = field(default=1e-4, metadata={"help": "of all weights"})
    batch_size: int = field(default=32, metadata={"help": "texts a step"})
    max_steps: int = field(
        default=-1, metadata={"help": "update steps in place of epochs; -1 for none"}
    )


class Halfway(TrainerCallback):
    """Keeps a copy of the model after half of the steps."""

    model: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        if state.global_step == state.max_steps // 2:
            self.model = copy.deepcopy(model)


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
        seeds = [measured(arguments, task, seed) for seed in arguments.seeds]
        results = {row: [one[row] for one in seeds] for row in seeds[0]}
        print(table(name_of(arguments, task), results))


def measured(arguments: Arguments, task: str, seed: int) -> dict[str, Any]:
    """All rows of a seed, read from their file where they were done before."""
    file = Path(arguments.output_dir, name_of(arguments, task), f"{seed}.json")
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, trained(arguments, task, seed), indent=None)
    return json.loads(file.read_text())


def trained(arguments: Arguments, task: str, seed: int) -> dict[str, Any]:
    """Train once, try every cure."""
    splits, labels = splits_of(arguments, task, seed)
    path = arguments.model or str(demo_model_path())
    tokenizer = AutoTokenizer.from_pretrained(path)
    length = length_of(arguments, task)
    rows = {name: tokenized(part, tokenizer, length) for name, part in splits.items()}
    set_seed(seed)
    start = AutoModelForSequenceClassification.from_pretrained(path, num_labels=len(labels))
    collator, halfway = DataCollatorWithPadding(tokenizer), Halfway()
    settings = settings_of(arguments, task, seed)
    trainer = Trainer(
        copy.deepcopy(start),
        settings,
        train_dataset=rows["train"],
        data_collator=collator,
        callbacks=[halfway],
    )
    trainer.train()
    judged = [by_length(rows[name]) for name in ("dev", "test") if name in rows]

    def correct(model: Any) -> list[int]:
        found = [Trainer(model, settings, data_collator=collator).predict(part) for part in judged]
        right = [part.predictions.argmax(-1) == part.label_ids for part in found]
        return np.concatenate(right).astype(int).tolist()

    results = {}
    for row, cure in cures(start, trainer.model.cpu(), halfway.model.cpu()).items():
        results[row] = {"correct": correct(cure()), "share": 1.0, "seconds": 1.0}
    return results


def cures(start: Any, tuned: Any, early: Any) -> dict[str, Callable[[], Any]]:
    """What each row makes of the models at the start, at the end and halfway."""

    def filtered(model: Any, *config: Any, **options: Any) -> Any:
        made = copy.deepcopy(model)
        hf_rmt.filter_update(start, made, *config, **options)
        return made

    four = RMTConfig(method="svd", rank=4, noise="drop")
    return {
        "tuned": lambda: tuned,
        "half": lambda: early,
        "scaled-0.7": lambda: filtered(tuned, dose=0.7),
        "scaled-0.5": lambda: filtered(tuned, dose=0.5),
        "rank-4": lambda: filtered(tuned, four),
        "filter": lambda: filtered(tuned),
        "dose": lambda: filtered(tuned, dose="auto", early=early),
        "half-dose": lambda: filtered(early, dose="auto", early=early),
    }


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
        logging_steps=50,
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )


if __name__ == "__main__":
    run(main)
