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
from workbench.data.glue import name_of
from workbench.training.bench import BenchArguments, begin, on_file, settings_of, table
from workbench.training.problems import IMAGES, ProblemArguments, correct, problem_of, trainer_of

from hf_rmt import RMTCallback, RMTConfig

ROWS = ("plain", "callback", "published", "annealed-0.1", "once-0.1")
DEFAULTS = (0.35, 0.6, 0.95)
"""Size, and the parts of the run where the noise begins to go and is gone."""


@dataclass
class Arguments(ProblemArguments, BenchArguments):
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
    problem, callback = problem_of(arguments, task, seed), callback_of(row)
    settings = settings_of(arguments, task, seed, sequences=task not in IMAGES)
    trainer = trainer_of(
        problem, settings, problem.start, *([] if callback is None else [callback])
    )
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    right = correct(trainer, problem)
    report = getattr(trainer.model, "compression_report", None)
    return {
        "correct": right,
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
