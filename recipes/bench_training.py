"""Measure `RMTCallback` while a model is fine-tuned: accuracy, parameters left and time.

    python recipes/bench_training.py --embedded
    HF_RMT_DATA=FOLDER python recipes/bench_training.py --task sst2 mrpc --max_train_samples 3000

Rows of the table: `plain` is fine-tuning without a callback. `callback` is `RMTCallback()` with its
defaults. `published` filters by the weights alone after each epoch. `rule` removes slowly the noise
that the method PDB finds. `annealed-0.1` and `once-0.1` keep a tenth of the blocks' parameters.
`annealed-0.1` removes the noise slowly. `once-0.1` removes it all at the step at which
`annealed-0.1` begins. The name `annealed-0.1-0.1-0.5` also gives the start and the end of the
removal, as parts of the run. All rows of a seed start from the same weights, see the same batches
and are trained one after the other. Results that are already in the output folder are not computed
again.

`int8`, `int4` and `int4-calibrated` are plain training and then `hf_rmt.compress`, which stores the
noise in 8 or 4 bits. For `int4-calibrated` it is calibrated on 512 training rows. In these three
rows, `share` is the share of the bits that is left, and `time` is the time of the training alone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from workbench.command import dataclass_parser, parsed, run
from workbench.data.glue import name_of
from workbench.training.bench import BenchArguments, begin, on_file, settings_of, table
from workbench.training.problems import IMAGES, ProblemArguments, correct, problem_of, trainer_of

from transformers import Trainer

from hf_rmt import RMTCallback, RMTConfig, compress
from hf_rmt.report import CompressionReport

ROWS = ("plain", "callback", "published", "annealed-0.1", "once-0.1")
STORED = ("int8", "int4", "int4-calibrated")
SEEN = 512
"""Number of training rows that `int4-calibrated` is calibrated on."""
DEFAULTS = (0.35, 0.6, 0.95)
"""Size to keep, and the parts of the run after which the removal of the noise begins and ends."""


@dataclass
class Arguments(ProblemArguments, BenchArguments):
    """Options of the recipe."""

    rows: list[str] = field(
        default_factory=lambda: list(ROWS), metadata={"help": "rows of the table, see above"}
    )


def parser() -> Any:
    """The options of this recipe."""
    return dataclass_parser(Arguments, __doc__)


def main() -> None:
    """Train and judge every row, and print the table."""
    arguments = parsed(parser())
    begin(arguments)
    for task in arguments.task:
        results = {
            row: [measured(arguments, task, row, seed) for seed in arguments.seeds]
            for row in arguments.rows
        }
        print(table(task, results))


def measured(arguments: Arguments, task: str, row: str, seed: int) -> dict[str, Any]:
    """The result of one run; it is read from its file if the run was made before."""
    file = Path(arguments.output_dir, name_of(arguments, task), f"{row}-{seed}.json")
    return on_file(file, lambda: trained(arguments, task, row, seed))


def trained(arguments: Arguments, task: str, row: str, seed: int) -> dict[str, Any]:
    """Train the model of one row of the table, and evaluate it."""
    problem, callback = problem_of(arguments, task, seed), callback_of(row)
    settings = settings_of(arguments, task, seed, sequences=task not in IMAGES)
    trainer = trainer_of(
        problem, settings, problem.start, *([] if callback is None else [callback])
    )
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    if row in STORED:
        store(trainer, row)
    right = correct(trainer, problem)
    report = getattr(trainer.model, "compression_report", None)
    return {
        "correct": right,
        "share": share(row, report),
        "seconds": seconds,
        "steps": trainer.state.global_step,
        "logs": [log for log in trainer.state.log_history if "loss" not in log],
    }


def share(row: str, report: CompressionReport | None) -> float:
    """The share of the layers' parameters that is left, or of their bits if they are stored."""
    if report is None:
        return 1.0
    return report.plan.size_ratio if row in STORED else report.plan.parameter_share


def store(trainer: Trainer, row: str) -> None:
    """Compress the trained model as the name of the row says."""
    noise, *calibrated = row.split("-")
    batches = islice(trainer.get_train_dataloader(), SEEN // trainer.args.train_batch_size)
    compress(
        trainer.model, RMTConfig(noise=noise), calibration=list(batches) if calibrated else None
    )


def callback_of(row: str) -> RMTCallback | None:
    """The callback of a row, None for plain training."""
    if row in STORED:
        return None
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
        raise SystemExit(
            f"--rows must be among {', '.join([*made, *STORED])}, got {row!r}; only annealed and "
            "once take a size, as in annealed-0.1"
        )
    return made[kind]()


if __name__ == "__main__":
    run(main)
