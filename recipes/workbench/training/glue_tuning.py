"""What the recipes on GLUE tasks share: options, the order of batches, folders and notes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from workbench.data.glue import DataArguments, name_of
from workbench.report.method_rows import FRACTIONS, HEAD, LAYERWISE, METHODS

import torch
from datasets import Dataset
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler


@dataclass
class Arguments(DataArguments):
    """Options of the recipe."""

    model: str = field(
        default="google-bert/bert-base-uncased", metadata={"help": "model: folder or Hub id"}
    )
    embedded: bool = field(
        default=False, metadata={"help": "small built-in data and the demo BERT, no Hub"}
    )
    output_dir: str = field(
        default="results/glue", metadata={"help": "folder for models, tables and figures"}
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "seeds; one fine-tuning for each"}
    )
    methods: list[str] = field(
        default_factory=lambda: [*METHODS, HEAD],
        metadata={"help": "rows of the table: " + ", ".join((*METHODS, HEAD, *LAYERWISE))},
    )
    fractions: list[float] = field(
        default_factory=lambda: list(FRACTIONS),
        metadata={"help": "shares of the noise directions to try to remove"},
    )
    search_evaluations: int = field(
        default=100, metadata={"help": "most evaluations of a row that filters layer by layer"}
    )
    epochs: float | None = field(
        default=None, metadata={"help": "epochs; default: 2 for sst2, else 3"}
    )
    learning_rate: float = field(default=5e-5, metadata={"help": "largest learning rate"})
    batch_size: int = field(default=32, metadata={"help": "rows per step, all processes"})
    max_steps: int = field(default=-1, metadata={"help": "steps of training; -1 counts epochs"})
    dropout: float | None = field(default=None, metadata={"help": "dropout; default: the model's"})
    use_cpu: bool = field(
        default=False, metadata={"help": "run on the CPU; not needed if there is no other device"}
    )
    push_to_hub: str | None = field(
        default=None, metadata={"help": "Hub repository for the best model"}
    )


class OneOrderTrainer(Trainer):
    """A Trainer whose batches have texts of similar length, the same with one or more processes."""

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> LengthGroupedSampler:
        rows = train_dataset if train_dataset is not None else self.train_dataset
        size = self.args.train_batch_size * self.args.world_size
        generator = torch.Generator().manual_seed(self.args.seed)
        lengths = [len(row) for row in rows["input_ids"]]
        return LengthGroupedSampler(size, lengths=lengths, generator=generator)


def folder_of(arguments: Arguments, task: str) -> Path:
    """The folder for the results of a task."""
    return Path(arguments.output_dir) / name_of(arguments, task)


def notes(arguments: Arguments) -> tuple[str, ...]:
    """Notes for the table on how its numbers were made."""
    noise = arguments.label_noise
    return (
        f"seeds {', '.join(map(str, arguments.seeds))}; learning rate {arguments.learning_rate:g}, "
        f"batch size {arguments.batch_size}, epochs {arguments.epochs or 'by task'}",
        *([f"labels of {noise:.0%} of the training rows shuffled"] if noise else []),
        "the share removed was chosen for each seed on rows kept back from the training rows, with "
        "labels as noisy as theirs; the accuracies are those on other rows",
        "intervals: paired bootstrap over the examples, all seeds of an example together; with "
        "few examples they are wide, and one interval alone decides nothing",
    )
