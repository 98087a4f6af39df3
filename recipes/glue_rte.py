"""Fine-tune a BERT-like model on a GLUE task or SciTail, then take the noise out of it, every way.

One plain fine-tuning per seed; from the tuned model the rows of the table: as tuned, the noise
taken out of what training added (`hf_rmt.filter_update`), and out of the whole weights by every
method. How much is removed is chosen on rows that are kept back from the training rows.

    python recipes/glue_rte.py --embedded
    python recipes/glue_rte.py --task sst2 mrpc rte --data_dir FOLDER --model FOLDER
    python recipes/glue_rte.py --task sst2 --label_noise 0.3 --epochs 8 --heldout_samples 3000
    accelerate launch --multi_gpu --num_processes 2 recipes/glue_rte.py --task rte

FOLDER holds train and dev (or validation) as .tsv, .csv, .json or .jsonl, or such a folder for each
task. Without it the Hub is asked. What is finished in the output folder is not done again, so
single seeds can run side by side; a last call with all of them makes the table. Several processes
see the batches of one: with --dropout 0 they end with its weights up to rounding.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_pt_utils import LengthGroupedSampler
from workbench import fine_tuning
from workbench.common import check_settings, metric, needs_hub
from workbench.fine_tuning import Tuned, batches, few, settings_of, spectra_log, train_and_save
from workbench.glue_data import (
    DataArguments,
    by_length,
    length_of,
    name_of,
    spec_of,
    splits_of,
    tokenized,
)
from workbench.method_rows import FRACTIONS, HEAD, METHODS, column_of, method_rows

from hf_rmt.demo import demo_model_path


@dataclass
class Arguments(DataArguments):
    """What the recipe is told."""

    model: str = field(
        default="google-bert/bert-base-uncased", metadata={"help": "folder or Hub id"}
    )
    embedded: bool = field(default=False, metadata={"help": "built-in data, demo BERT, no Hub"})
    output_dir: str = field(default="results/glue", metadata={"help": "where everything goes"})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    methods: list[str] = field(
        default_factory=lambda: [*METHODS, HEAD],
        metadata={"help": ", ".join((*METHODS, HEAD))},
    )
    fractions: list[float] = field(
        default_factory=lambda: list(FRACTIONS),
        metadata={"help": "shares of the noise directions to remove"},
    )
    epochs: float | None = field(default=None, metadata={"help": "default: 2 for sst2, else 3"})
    learning_rate: float = 5e-5
    batch_size: int = field(default=32, metadata={"help": "over all processes"})
    max_steps: int = -1
    dropout: float | None = field(default=None, metadata={"help": "default: the model's own"})
    use_cpu: bool = False
    push_to_hub: str | None = field(default=None, metadata={"help": "repository of the best model"})


def main() -> None:
    arguments = HfArgumentParser(Arguments).parse_args_into_dataclasses()[0]
    PartialState(cpu=arguments.use_cpu)
    logging.getLogger("hf_rmt").setLevel(logging.ERROR)  # dropping noise is what is asked for
    if arguments.embedded:
        arguments.task, arguments.model = ["embedded"], str(demo_model_path())
    tasks = {
        task: [run(arguments, task, seed) for seed in arguments.seeds] for task in arguments.task
    }
    report(arguments, tasks)


def run(arguments: Arguments, task: str, seed: int) -> dict[str, Any]:
    """One fine-tuning and its rows."""
    folder = folder_of(arguments, task) / f"seed-{seed}"
    with PartialState(cpu=arguments.use_cpu).main_process_first():
        check_settings(folder, arguments)
    splits, labels = splits_of(arguments, task, seed)
    tuned = folder / "tuned"
    if not (folder / "training.json").exists():
        train(arguments, task, splits, labels, seed, tuned)
    tokenizer = AutoTokenizer.from_pretrained(tuned)
    length = length_of(arguments, task)
    collator = DataCollatorWithPadding(tokenizer)
    rows = {
        name: by_length(tokenized(splits[name], tokenizer, length))
        for name in sorted(splits.keys() - {"train"})
    }

    def evaluate(model: Any, split: str) -> Any:
        settings = training_arguments(arguments, task, seed, tuned)
        trainer = Trainer(model, settings, data_collator=collator, eval_dataset=rows[split])
        result = trainer.predict(rows[split])
        return result.predictions.argmax(-1) == result.label_ids

    return method_rows(
        folder / "rows.json",
        AutoModelForSequenceClassification.from_pretrained(tuned).eval(),
        model_of(arguments, labels, seed),
        evaluate,
        splits=[name for name in rows if name != "selection"],
        methods=arguments.methods,
        fractions=arguments.fractions,
        calibration=batches(tokenized(few(splits["train"]), tokenizer, length), collator),
    )


def report(arguments: Arguments, tasks: dict[str, list[dict[str, Any]]]) -> None:
    """The table of all tasks, and the best models."""
    columns = [
        column_of(name_of(arguments, task), split, seeds, spec_of(task).deck)
        for task, seeds in tasks.items()
        for split in seeds[0]["base"]["splits"]
    ]
    fine_tuning.report(
        arguments,
        Path(arguments.output_dir) / "results",
        columns,
        [
            Tuned(folder_of(arguments, task), seeds, partial(pair, arguments, task))
            for task, seeds in tasks.items()
        ],
        base_model=arguments.model,
        differences=differences(arguments),
        title="Noise removed after fine-tuning: " + ", ".join(tasks),
        notes=notes(arguments),
    )


def pair(arguments: Arguments, task: str, place: int) -> tuple[Any, Any]:
    """The tuned model of a seed, and what its training began with."""
    seed = arguments.seeds[place]
    tuned = folder_of(arguments, task) / f"seed-{seed}" / "tuned"
    model = AutoModelForSequenceClassification.from_pretrained(tuned).eval()
    return model, model_of(arguments, list(model.config.id2label.values()), seed)


def differences(arguments: Arguments) -> tuple[str, ...]:
    """What differs from the setting of the published numbers, as far as that is known."""
    subset = arguments.max_train_samples
    return (
        f"model: the published one is a BERT of unnamed size, ours {Path(arguments.model).name}",
        f"training rows: {f'at most {subset}' if subset else 'all'} less the selection split",
        f"epochs: {arguments.epochs or 'by task, 2 or 3'}; the published number is not given",
        "filter: the published one works layer by layer and watches the test accuracy; here one "
        "share is removed in all layers and chosen on rows of the training set",
        "PUB: one published number, which does not say BEMA or kernel; it stands beside both",
    )


def notes(arguments: Arguments) -> tuple[str, ...]:
    """How the numbers came about."""
    noise = arguments.label_noise
    return (
        f"seeds {', '.join(map(str, arguments.seeds))}; learning rate {arguments.learning_rate:g}, "
        f"batch size {arguments.batch_size}, epochs {arguments.epochs or 'by task'}",
        *([f"labels of {noise:.0%} of the training rows shuffled"] if noise else []),
        "the share removed was chosen for each seed on rows kept back from the training rows, "
        "labels as noisy as theirs; the numbers are from other rows",
        "intervals: paired bootstrap over the examples, all seeds of an example together; on few "
        "examples (RTE has 277) they are wide and decide nothing alone",
    )


def folder_of(arguments: Arguments, task: str) -> Path:
    return Path(arguments.output_dir) / name_of(arguments, task)


def model_of(arguments: Arguments, labels: list[str], seed: int) -> Any:
    """The pretrained model with a new head."""
    set_seed(seed)
    with needs_hub(arguments.model):
        config = AutoConfig.from_pretrained(
            arguments.model,
            num_labels=len(labels),
            id2label=dict(enumerate(labels)),
            label2id={label: number for number, label in enumerate(labels)},
        )
        if arguments.dropout is not None:
            names = [key for key in config.to_dict() if "dropout" in key]
            config.update({key: arguments.dropout for key in names})
        return AutoModelForSequenceClassification.from_pretrained(arguments.model, config=config)


class OneOrderTrainer(Trainer):
    """Batches of like length, drawn over all processes: the batches of one are those of several."""

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> LengthGroupedSampler:
        rows = train_dataset if train_dataset is not None else self.train_dataset
        size = self.args.train_batch_size * self.args.world_size
        generator = torch.Generator().manual_seed(self.args.seed)
        lengths = [len(row) for row in rows["input_ids"]]
        return LengthGroupedSampler(size, lengths=lengths, generator=generator)


def train(
    arguments: Arguments,
    task: str,
    splits: dict[str, Dataset],
    labels: list[str],
    seed: int,
    target: Path,
) -> None:
    """Fine-tune, with the spectra of what training adds in the logs, and save."""
    with needs_hub(arguments.model):
        tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    length = length_of(arguments, task)
    rows = {name: tokenized(splits[name], tokenizer, length) for name in ("train", "dev")}
    model = model_of(arguments, labels, seed)
    score = metric()

    def compute(result: EvalPrediction) -> dict[str, float]:
        return score.compute(predictions=result.predictions.argmax(-1), references=result.label_ids)

    trainer = OneOrderTrainer(
        model,
        training_arguments(arguments, task, seed, target),
        train_dataset=rows["train"],
        eval_dataset=rows["dev"],
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=compute,
        callbacks=[spectra_log()],
    )
    train_and_save(trainer, tokenizer, target)


def training_arguments(
    arguments: Arguments, task: str, seed: int, target: Path
) -> TrainingArguments:
    epochs = arguments.epochs or spec_of(task).epochs
    # losses are means here, not sums over tokens
    further = {"average_tokens_across_devices": False}
    return settings_of(TrainingArguments, arguments, target, seed=seed, epochs=epochs, **further)


if __name__ == "__main__":
    main()
