"""Compare ways to repair a fine-tuning with partly wrong labels: one training, then every way.

    python recipes/bench_wrong_labels.py --embedded
    HF_RMT_DATA=FOLDER python recipes/bench_wrong_labels.py --task sst2 --label_noise 0.4

An update is what training added to the weight of a layer. Rows of the table: `tuned` is the model
after all epochs. `quarter` and `half` are the models after these parts of the training, which is
early stopping. `scaled-0.7` keeps 0.7 of each update. `rank-4` cuts each update to its four largest
directions. `filter` is `hf_rmt.filter_update` with its defaults. `dose` is the same with
`dose="auto"`: it keeps the part of each update in the directions that led after a quarter of the
training. `half-dose` uses the directions after half of the training. `callback` is a second
training, with `RMTCallback(target="update", dose="auto")`. Its Trainer evaluates on rows that are
kept back, with labels as wrong as those of the training rows. All models are judged on clean
labels. Results that are already in the output folder are not computed again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.command import dataclass_parser, parsed, run
from workbench.data.glue import name_of
from workbench.training.bench import BenchArguments, begin, on_file, settings_of, table
from workbench.training.problems import IMAGES, ProblemArguments, correct, problem_of, trainer_of

from transformers import TrainerCallback

import hf_rmt
from hf_rmt import RMTConfig


@dataclass
class Arguments(ProblemArguments, BenchArguments):
    """Options of the recipe."""

    output_dir: str = field(default="results/wrong", metadata={"help": "folder for the results"})
    label_noise: float = field(default=0.4, metadata={"help": "share of labels to shuffle"})
    max_train_samples: int | None = field(default=2000, metadata={"help": "most training rows"})
    epochs: float = field(default=4.0, metadata={"help": "epochs of the training"})


class Early(TrainerCallback):
    """Keeps copies of the model after a quarter and after half of the steps."""

    def __init__(self) -> None:
        self.models: dict[str, Any] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        for name, part in (("quarter", 4), ("half", 2)):
            if state.global_step == max(1, round(state.max_steps / part)):
                self.models[name] = copy.deepcopy(model).cpu()


def parser() -> Any:
    """The options of this recipe."""
    return dataclass_parser(Arguments, __doc__)


def main() -> None:
    """Train and judge every row, and print the table."""
    arguments = parsed(parser())
    begin(arguments)
    for task in arguments.task:
        seeds = [measured(arguments, task, seed) for seed in arguments.seeds]
        results = {row: [one[row] for one in seeds] for row in seeds[0]}
        print(table(name_of(arguments, task), results))


def measured(arguments: Arguments, task: str, seed: int) -> dict[str, Any]:
    """All rows of a seed; they are read from their file if they were computed before."""
    file = Path(arguments.output_dir, name_of(arguments, task), f"{seed}.json")
    return on_file(file, lambda: trained(arguments, task, seed))


def trained(arguments: Arguments, task: str, seed: int) -> dict[str, Any]:
    """Train once, then make and judge the model of every row."""
    problem, early = problem_of(arguments, task, seed), Early()
    settings = settings_of(arguments, task, seed, sequences=task not in IMAGES)
    trainer = trainer_of(problem, settings, copy.deepcopy(problem.start), early)
    trainer.train()
    results = {}
    for row, cure in cures(problem.start, trainer.model.cpu(), early.models).items():
        right = correct(trainer_of(problem, settings, cure()), problem)
        results[row] = {"correct": right, "share": 1.0, "seconds": 1.0}
    if problem.kept is not None:
        callback = hf_rmt.RMTCallback(target="update", dose="auto")
        trainer = trainer_of(problem, settings, problem.start, callback)
        trainer.train()
        right = correct(trainer, problem)
        results["callback"] = {"correct": right, "share": 1.0, "seconds": 1.0}
    return results


def cures(start: Any, tuned: Any, early: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """For each row, a function that makes its model from the start, tuned and early models."""

    def filtered(model: Any, *config: Any, **options: Any) -> Any:
        made = copy.deepcopy(model)
        hf_rmt.filter_update(start, made, *config, **options)
        return made

    four = RMTConfig(method="svd", rank=4, noise="drop")
    return {
        "tuned": lambda: tuned,
        "quarter": lambda: early["quarter"],
        "half": lambda: early["half"],
        "scaled-0.7": lambda: filtered(tuned, dose=0.7),
        "scaled-0.5": lambda: filtered(tuned, dose=0.5),
        "rank-4": lambda: filtered(tuned, four),
        "filter": lambda: filtered(tuned),
        "dose": lambda: filtered(tuned, dose="auto", early=early["quarter"]),
        "half-dose": lambda: filtered(tuned, dose="auto", early=early["half"]),
    }


if __name__ == "__main__":
    run(main)
