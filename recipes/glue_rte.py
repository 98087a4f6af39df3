"""Fine-tune a BERT-like model on a GLUE task or SciTail, then remove its noise by every method.

Each seed is one plain fine-tuning. The rows of the table compare the tuned model with filtered
copies of it. The noise is removed from what training added (`hf_rmt.filter_update`) or, by one
method per row, from the whole weights. How much is removed is chosen on examples that are kept back
from the training. Rows such as `pdb-layers` choose layer by layer, by `hf_rmt.search`.

    python recipes/glue_rte.py --embedded
    python recipes/glue_rte.py --task sst2 mrpc rte --data_dir FOLDER --model FOLDER
    python recipes/glue_rte.py --task sst2 --methods pdb pdb-layers svd svd-layers
    python recipes/glue_rte.py --task sst2 --label_noise 0.3 --epochs 6 --heldout_samples 3000
    accelerate launch --multi_gpu --num_processes 2 recipes/glue_rte.py --task rte

FOLDER holds train and dev (or validation) as .tsv, .csv, .json or .jsonl, or such a folder for each
task. A .tsv or .csv file without a header has the columns in the order of the task: its texts, then
the label. Without --data_dir the examples come from the Hub; with --embedded they are built in. A
second run continues from the results in the output folder. So single seeds can run side by side,
and a last call with all seeds makes the table. Several processes see the same batches as one
process. With --dropout 0 they end with the same weights, up to rounding.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

from workbench.command import dataclass_parser, parsed
from workbench.command import run as start
from workbench.data.glue import (
    by_length,
    length_of,
    name_of,
    spec_of,
    splits_of,
    tokenized,
)
from workbench.data.rows import needs_hub
from workbench.processes import begin
from workbench.report.accuracy import metric
from workbench.report.method_rows import method_rows
from workbench.report.method_table import column_of
from workbench.settings import check_settings
from workbench.training import fine_tuning
from workbench.training.fine_tuning import (
    Tuned,
    batches,
    few,
    settings_of,
    spectra_log,
    train_and_save,
)
from workbench.training.glue_tuning import Arguments, OneOrderTrainer, folder_of, notes

from accelerate import PartialState
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_rmt.demo import demo_model_path


def parser() -> Any:
    """The options of this recipe."""
    return dataclass_parser(Arguments, __doc__)


def main() -> None:
    arguments = parsed(parser())
    begin(arguments)
    logging.getLogger("hf_rmt").setLevel(logging.ERROR)  # dropping noise is wanted here
    if arguments.embedded:
        arguments.task, arguments.model = ["embedded"], str(demo_model_path())
    tasks = {
        task: [run(arguments, task, seed) for seed in arguments.seeds] for task in arguments.task
    }
    report(arguments, tasks)


def run(arguments: Arguments, task: str, seed: int) -> dict[str, Any]:
    """Fine-tune with one seed, and make the rows of the table for this seed."""
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
        evaluations=arguments.search_evaluations,
        calibration=batches(tokenized(few(splits["train"]), tokenizer, length), collator),
    )


def report(arguments: Arguments, tasks: dict[str, list[dict[str, Any]]]) -> None:
    """Write the table of all tasks, and save the best models."""
    columns = [
        column_of(name_of(arguments, task), split, seeds, spec_of(task).published)
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
    """The tuned model of a seed, and the model that its training began with."""
    seed = arguments.seeds[place]
    tuned = folder_of(arguments, task) / f"seed-{seed}" / "tuned"
    model = AutoModelForSequenceClassification.from_pretrained(tuned).eval()
    return model, model_of(arguments, list(model.config.id2label.values()), seed)


def differences(arguments: Arguments) -> tuple[str, ...]:
    """The known differences from the setting of the published numbers, for the table."""
    subset = arguments.max_train_samples
    return (
        f"model: the published one is a BERT of unknown size, ours {Path(arguments.model).name}",
        f"training rows: {f'at most {subset}' if subset else 'all'} less the selection split",
        f"epochs: {arguments.epochs or 'by task, 2 or 3'}; the published number is not given",
        "filter: the published one works layer by layer and watches the test accuracy; here what "
        "is removed is chosen on rows of the training set, and is one share in all layers where a "
        "row does not say layer by layer",
        "PUB: one published number, for BEMA or kernel, which is not stated; it is shown beside "
        "both",
    )


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


def train(
    arguments: Arguments,
    task: str,
    splits: dict[str, Dataset],
    labels: list[str],
    seed: int,
    target: Path,
) -> None:
    """Fine-tune a model and save it; the logs get the spectra of what training adds."""
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
    start(main)
