"""Compress a fine-tuned classifier strongly, and recover its accuracy by self-distillation.

The noise of the linear layers is dropped until the share of parameters that --size gives is left
(`hf_rmt.compress(..., calibration=, size=)`). Training rows show which inputs are large. The
compressed model then learns the soft targets and hidden states of the original for a few hundred
steps. Labels are used only for the evaluation.

    python recipes/heal.py --embedded
    python recipes/heal.py --model FOLDER --task sst2 --data_dir FOLDER --size 0.35
    python recipes/heal.py --model textattack/bert-base-uncased-SST-2 --task sst2
    python recipes/heal.py --model FOLDER --task sst2 --data_dir FOLDER --size 0.1 --anneal 0.1 0.6
    python recipes/heal.py --image_model FOLDER --task cifar10 --data_dir FOLDER --size 0.2
    accelerate launch --multi_gpu --num_processes 2 recipes/heal.py --embedded

The FOLDER of the data holds train and dev (or validation) as .tsv, .csv, .json or .jsonl, or for
cifar10 an .npz of images. Without --data_dir texts come from the Hub; with --embedded they are
built-in. The healed model is saved in compressed form, with results.json and healing.png in the
same folder. --method ntk makes the head ternary instead and trains only the ternary weights. With
--anneal the noise is not dropped before the distillation. Instead, `hf_rmt.RMTCallback` scales it
down during the distillation.
"""

from __future__ import annotations

import copy
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from workbench.command import dataclass_parser, parsed, run
from workbench.data.glue import TASKS, by_length
from workbench.processes import begin, check_processes, share_of
from workbench.report.accuracy import paired_bootstrap
from workbench.training.distillation import DistillationTrainer
from workbench.training.fine_tuning import batches, few
from workbench.training.problems import IMAGES, Problem, ProblemArguments, problem_of
from workbench.writing import replaced, replaced_files, write_json

import numpy as np
import torch
from accelerate import PartialState
from matplotlib import pyplot as plt
from transformers import PreTrainedConfig, Trainer, TrainingArguments, set_seed

import hf_rmt
from hf_rmt import CompressionPlan, RMTCallback, RMTConfig, TernaryCallback

STAGES = ("original", "compressed", "healed")
BODY_RATE, HEAD_RATE = 5e-5, 1e-3
"""Learning rates of blocks and of a ternary head, where a small rate changes hardly any entry."""


@dataclass
class Arguments(ProblemArguments):
    """Options of the recipe."""

    task: list[str] = field(default_factory=lambda: ["sst2"], metadata={"help": "one task"})
    model: str | None = field(
        default="textattack/bert-base-uncased-SST-2",
        metadata={"help": "fine-tuned classifier of texts, folder or Hub id"},
    )
    embedded: bool = field(default=False, metadata={"help": "built-in data, demo BERT, no Hub"})
    output_dir: str = field(default="results/heal", metadata={"help": "folder of the healed model"})
    method: str = field(
        default="pdb",
        metadata={"help": "method that finds the noise to drop; ntk makes the head ternary"},
    )
    sparsity: float | None = field(
        default=None,
        metadata={"help": "share of zeros in a ternary head; default: the share of least error"},
    )
    size: float = field(default=0.35, metadata={"help": "share of the parameters to keep"})
    anneal: list[float] | None = field(
        default=None,
        metadata={
            "help": "start and end of a slow removal of the noise, as parts of the distillation"
        },
    )
    calibration_samples: int = field(
        default=512, metadata={"help": "training rows to calibrate on"}
    )
    steps: int = field(default=300, metadata={"help": "steps of distillation; 0 for none"})
    batch_size: int = field(default=32, metadata={"help": "rows in a batch, over all processes"})
    learning_rate: float | None = field(
        default=None,
        metadata={"help": "largest learning rate; default: 5e-5, or 1e-3 for a ternary head"},
    )
    temperature: float = field(default=2.0, metadata={"help": "softening of the teacher's targets"})
    hidden_weight: float = field(default=1.0, metadata={"help": "loss weight of the hidden states"})
    tuning_steps: int = field(default=150, metadata={"help": "with --embedded: fine-tuning steps"})
    seed: int = field(default=0, metadata={"help": "seed of everything that is random"})
    use_cpu: bool = field(
        default=False, metadata={"help": "run on the CPU; not needed if there is no other device"}
    )


def parser() -> Any:
    """The options of this recipe."""
    return dataclass_parser(Arguments, __doc__)


def main() -> None:
    arguments = parsed(parser())
    begin(arguments)
    logging.getLogger("hf_rmt").setLevel(logging.ERROR)  # here noise is dropped on purpose
    set_seed(arguments.seed)
    if arguments.embedded:
        arguments.task, arguments.model = ["embedded"], None
    check_task(arguments)
    problem = problem_of(arguments, arguments.task[0], arguments.seed)
    if arguments.embedded:  # the demo BERT, fine-tuned on the built-in data, is the original
        settings, rows = settings_of(arguments, arguments.tuning_steps), problem.train
        Trainer(problem.start, settings, train_dataset=rows, data_collator=problem.collator).train()
    else:
        check_tuned(problem.start)
    results = heal(arguments, problem)
    if PartialState().is_main_process:
        print(json.dumps({key: value for key, value in results.items() if key != "log"}, indent=2))


def check_task(arguments: Arguments) -> None:
    """Refuse several tasks, an unknown task, and an image task without the name of a model."""
    task, known = arguments.task[0], (*TASKS, "embedded", "cifar10")
    if len(arguments.task) > 1 or task not in known:
        raise SystemExit(f"--task takes one of {', '.join(known)}, got {' '.join(arguments.task)}")
    if task == "cifar10" and arguments.image_model is None:
        raise SystemExit("--task cifar10 needs a fine-tuned model; pass its folder: --image_model")


def check_tuned(model: Any) -> None:
    """Refuse a model that was saved without the head of a classifier: it would only guess."""
    saved = PreTrainedConfig.get_config_dict(model.name_or_path)[0].get("architectures") or []
    if not any(name.endswith("Classification") for name in saved):
        raise SystemExit(
            f"{model.name_or_path} was saved as {', '.join(saved) or 'no named class'}, without "
            "the head of a classifier; pass a fine-tuned one with --model or --image_model"
        )


def heal(arguments: Arguments, problem: Problem) -> dict[str, Any]:
    """Compress, distil and save the model; returns the results."""
    teacher, folder = problem.start.eval(), Path(arguments.output_dir)

    def correct(model: Any) -> dict[str, np.ndarray]:
        plain = Trainer(model, settings_of(arguments, 1), data_collator=problem.collator)
        found = {name: plain.predict(rows) for name, rows in problem.judged.items()}
        return {name: it.predictions.argmax(-1) == it.label_ids for name, it in found.items()}

    stages = {"original": correct(teacher)}
    rows = few(problem.train, arguments.calibration_samples)
    rows = rows if arguments.task[0] in IMAGES else by_length(rows)
    student, plan = compressed(arguments, teacher, batches(rows, problem.collator, teacher.device))
    stages["compressed"] = correct(student)
    ternary = [TernaryCallback()] if arguments.method == "ntk" else []
    callbacks: list[Any] = list(ternary)
    if arguments.anneal:
        student, callbacks = copy.deepcopy(teacher), [annealing(arguments)]
    log = distil(arguments, student, problem, callbacks)
    plan = student.compression_report.plan if arguments.anneal else plan
    stages["healed"] = correct(student)
    check = difference(student, problem, folder)
    results = {
        "model": "demo BERT" if arguments.embedded else problem.start.name_or_path,
        "parameters_kept": plan.parameter_share,
        "bits_per_weight": plan.bits_per_weight,
        "layers": {layer.name: layer.rank or layer.reason for layer in plan},
        "splits": {name: scores(stages, name) for name in problem.judged},
        "reload_difference": check,
        "settings": vars(arguments),
        "flipped": {name: share for it in ternary for name, share in it.flipped.items()},
        "log": log,
    }
    if PartialState().is_main_process:
        write_json(folder / "results.json", results)
        plot(results, folder / "healing.png")
    return results


def compressed(arguments: Arguments, teacher: Any, calibration: Any) -> tuple[Any, CompressionPlan]:
    """A compressed copy of the teacher (the original model), and its plan."""
    student = copy.deepcopy(teacher)
    if arguments.method == "ntk":
        steps = {"sparsity": arguments.sparsity, "activation": "matched"}
        config, size = RMTConfig(method="ntk", **steps), None
        student.requires_grad_(False)  # except the ternary weights, which are trained later
    else:
        config, size = RMTConfig(method=arguments.method, noise="drop"), arguments.size
    return student, hf_rmt.compress(student, config, calibration=calibration, size=size).plan


def annealing(arguments: Arguments) -> RMTCallback:
    """The callback that scales the noise down during the distillation."""
    if arguments.method == "ntk" or len(arguments.anneal or ()) != 2 or not arguments.steps:
        raise SystemExit(
            "--anneal takes two numbers, and needs --steps above 0 and a --method other than ntk; "
            f"got {arguments.anneal} with --method {arguments.method} --steps {arguments.steps}"
        )
    config = RMTConfig(method=arguments.method, noise="drop")
    return RMTCallback(config, size=arguments.size, anneal=tuple(arguments.anneal or ()))


def distil(
    arguments: Arguments, student: Any, problem: Problem, callbacks: list[Any]
) -> list[dict[str, float]]:
    """Train the student on the teacher's outputs; returns the logged losses with their steps."""
    if not arguments.steps:
        return []
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # the teacher runs without dropout
    default = HEAD_RATE if arguments.method == "ntk" else BODY_RATE
    trainer = DistillationTrainer(
        model=student,
        args=settings_of(arguments, arguments.steps, arguments.learning_rate or default),
        train_dataset=problem.train,
        data_collator=problem.collator,
        teacher=problem.start,
        temperature=arguments.temperature,
        hidden_weight=arguments.hidden_weight,
        callbacks=callbacks,
    )
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def scores(stages: dict[str, dict[str, np.ndarray]], split: str) -> dict[str, Any]:
    """For each stage: accuracy, also relative to the original, share of rows alike, difference."""
    base = stages["original"][split]
    return {
        stage: {
            "accuracy": float(correct[split].mean()),
            "of_original": float(correct[split].mean() / base.mean()),
            "alike": float((correct[split] == base).mean()),
            "difference": paired_bootstrap(correct[split], base)._asdict(),
        }
        for stage, correct in stages.items()
    }


@torch.inference_mode()
def difference(model: Any, problem: Problem, folder: Path) -> float:
    """Save and reload the model; returns the largest change of its logits on a few rows."""
    state = PartialState()
    with replaced_files(folder, keep=state.is_main_process) as part:
        if state.is_main_process:
            model.save_pretrained(part)
            problem.processor.save_pretrained(part)
    state.wait_for_everyone()
    again = type(problem.start).from_pretrained(folder).to(model.device)
    rows = next(iter(problem.judged.values()))
    (batch,) = batches(few(rows, 32), problem.collator, model.device)
    return float((model.eval()(**batch).logits - again(**batch).logits).abs().max())


def settings_of(
    arguments: Arguments, steps: int, learning_rate: float = BODY_RATE
) -> TrainingArguments:
    settings = TrainingArguments(
        arguments.output_dir,
        max_steps=steps,
        learning_rate=learning_rate,
        warmup_steps=0.06,
        per_device_train_batch_size=share_of(arguments.batch_size),
        per_device_eval_batch_size=64,
        seed=arguments.seed,
        save_strategy="no",
        remove_unused_columns=arguments.task[0] not in IMAGES,
        logging_steps=10,
        report_to=[],
        use_cpu=arguments.use_cpu,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    check_processes(trainer=settings.world_size)
    return settings


def plot(results: dict[str, Any], path: Path) -> None:
    """Plot the loss of the distillation, and the accuracies of all stages."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    log = results["log"]
    left.plot([entry["step"] for entry in log], [entry["loss"] for entry in log])
    left.set(xlabel="step", ylabel="loss", yscale="log", title="distillation")
    for split, stages in results["splits"].items():
        accuracies = [stages[stage]["accuracy"] for stage in STAGES]
        right.plot(STAGES, accuracies, marker="o", label=split)
    kept = results["parameters_kept"]
    right.set(ylabel="accuracy", title=f"{kept:.0%} of the linears' parameters kept")
    right.legend()
    with replaced(path) as part:
        figure.savefig(part, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    run(main)
