"""Shared code of the training benchmarks: options, settings, saved results, the table."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.data.glue import DataArguments, name_of
from workbench.report.accuracy import paired_bootstrap
from workbench.writing import write_json

import numpy as np
import torch
from transformers import TrainingArguments


@dataclass
class BenchArguments(DataArguments):
    """Options that the training benchmarks share."""

    task: list[str] = field(
        default_factory=lambda: ["sst2"], metadata={"help": "sst2, mrpc, rte, t5, cifar10, mnist"}
    )
    embedded: bool = field(default=False, metadata={"help": "built-in data, demo BERT, no Hub"})
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "a training for each"})
    output_dir: str = field(default="results/training", metadata={"help": "folder for the results"})
    epochs: float = field(default=2.0, metadata={"help": "epochs of the training"})
    learning_rate: float = field(default=1e-4, metadata={"help": "largest learning rate"})
    batch_size: int = field(default=32, metadata={"help": "texts in a step"})
    max_steps: int = field(
        default=-1, metadata={"help": "update steps instead of epochs; -1 to count epochs"}
    )


def begin(arguments: BenchArguments) -> None:
    """Find the data folder, and silence warnings about what the benchmark does on purpose."""
    logging.getLogger("hf_rmt").setLevel(logging.ERROR)
    if arguments.embedded:
        arguments.task = ["embedded"]
    elif arguments.data_dir is None and "HF_RMT_DATA" in os.environ:
        arguments.data_dir = str(Path(os.environ["HF_RMT_DATA"], "data"))


def settings_of(
    arguments: BenchArguments, task: str, seed: int, *, sequences: bool = True
) -> TrainingArguments:
    """Settings of the Trainer for one run, on texts (`sequences`) or on images."""
    return TrainingArguments(
        str(Path(arguments.output_dir, name_of(arguments, task), "trainer")),
        num_train_epochs=arguments.epochs,
        max_steps=arguments.max_steps,
        learning_rate=arguments.learning_rate,
        warmup_steps=0.06,
        per_device_train_batch_size=arguments.batch_size,
        per_device_eval_batch_size=64,
        train_sampling_strategy="group_by_length" if sequences else "random",
        remove_unused_columns=sequences,
        seed=seed,
        save_strategy="no",
        logging_steps=20,
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def on_file(file: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A result; it is read from its file if it was measured before."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, measure(), indent=None)
    return json.loads(file.read_text(encoding="utf-8"))


def table(task: str, results: dict[str, list[dict[str, Any]]]) -> str:
    """The table: accuracies, differences from the first row with intervals, shares and times."""
    base = next(iter(results.values()))
    lines = [f"{task:18}accuracy  difference (95 %)          share   time"]
    for row, runs in results.items():
        ours, theirs = ([run["correct"] for run in part] for part in (runs, base))
        gap = paired_bootstrap(ours, theirs)
        share = np.mean([run["share"] for run in runs])
        ratio = np.median(
            [run["seconds"] / other["seconds"] for run, other in zip(runs, base, strict=True)]
        )
        interval = f"{gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]"
        lines.append(f"{row:18}{np.mean(ours):.4f}    {interval}   {share:5.3f}  {ratio:5.2f}")
    return "\n".join(lines)
