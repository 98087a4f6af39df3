"""Fine-tune a ViT-like model on images, then remove its noise by every method.

Each seed is one plain fine-tuning. The rows of the table compare the tuned model with filtered
copies of it. The noise is removed from what training added (`hf_rmt.filter_update`) or, by one
method per row, from the whole weights. How much is removed is chosen on images that are kept back
from the training images.

    python recipes/image_classification.py --embedded
    python recipes/image_classification.py --task dtd
    python recipes/image_classification.py --data_dir FOLDER --test_share 0.2
    python recipes/image_classification.py --data_dir FILE.npz --model FOLDER --image_size 70
    accelerate launch --multi_gpu --num_processes 2 recipes/image_classification.py --task cifar10

FOLDER has one sub-folder of images for each class; --test_share of each class is kept for the test.
Or it has the sub-folders train and test, each with one sub-folder for each class. --data_dir may
also be an .npz file with train_x, train_y, test_x and test_y. Without --data_dir the images come
from the Hub; with --embedded they come from scikit-learn. --image_size takes smaller images than
the model was trained on and interpolates its position embeddings. A second run continues from the
results in the output folder. So single seeds can run side by side, and a last call with all seeds
makes the table.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.command import dataclass_parser, parsed
from workbench.command import run as start
from workbench.data.images import DataArguments, collator_of, pixels, splits_of
from workbench.data.rows import needs_hub
from workbench.processes import begin
from workbench.report.accuracy import metric
from workbench.report.method_rows import FRACTIONS, HEAD, METHODS, method_rows
from workbench.report.method_table import Column
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

import torch
from accelerate import PartialState
from datasets import DatasetDict
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    EvalPrediction,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    set_seed,
)

SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "image_size": 8,
    "patch_size": 2,
}
"""The ViT of `--embedded`."""
PUBLISHED = {
    "dtd": {"base": 0.7452, "pdb": 0.7533, "bema": 0.7482, "kernel": 0.7482, "svd": 0.7405},
    "sun397": {"base": 0.7680, "pdb": 0.7771, "bema": 0.7720, "kernel": 0.7720, "svd": 0.7716},
}
"""Accuracies of ViT-L in Wu, Zhu & Li (2025): BEMA and kernel share a number, SLR has none."""


@dataclass
class Arguments(DataArguments):
    """Options of the recipe."""

    model: str = field(
        default="google/vit-large-patch16-224", metadata={"help": "model: folder or Hub id"}
    )
    output_dir: str = field(
        default="results/images", metadata={"help": "folder for models, tables and figures"}
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "seeds; one fine-tuning for each"}
    )
    methods: list[str] = field(
        default_factory=lambda: [*METHODS, HEAD],
        metadata={"help": "rows of the table: " + ", ".join((*METHODS, HEAD))},
    )
    fractions: list[float] = field(
        default_factory=lambda: list(FRACTIONS),
        metadata={"help": "shares of the noise directions to try to remove"},
    )
    epochs: float | None = field(
        default=None, metadata={"help": "epochs; default: 3, or 15 with --embedded"}
    )
    learning_rate: float | None = field(
        default=None,
        metadata={"help": "largest learning rate; default: 5e-5, or 1e-3 with --embedded"},
    )
    batch_size: int = field(default=32, metadata={"help": "images per step, all processes"})
    max_steps: int = field(default=-1, metadata={"help": "steps of training; -1 counts epochs"})
    use_cpu: bool = field(
        default=False, metadata={"help": "run on the CPU; not needed if there is no other device"}
    )
    push_to_hub: str | None = field(
        default=None, metadata={"help": "Hub repository for the best model"}
    )


def parser() -> Any:
    """The options of this recipe."""
    return dataclass_parser(Arguments, __doc__)


def main() -> None:
    arguments = parsed(parser())
    begin(arguments)
    logging.getLogger("hf_rmt").setLevel(logging.ERROR)  # dropping noise is wanted here
    if arguments.embedded:
        arguments.task = "digits"
    epochs, learning_rate = (15, 1e-3) if arguments.embedded else (3, 5e-5)
    arguments.epochs = arguments.epochs or epochs
    arguments.learning_rate = arguments.learning_rate or learning_rate
    splits = splits_of(arguments)
    seeds = [run(arguments, splits, seed) for seed in arguments.seeds]
    report(arguments, splits, seeds)


def run(arguments: Arguments, splits: DatasetDict, seed: int) -> dict[str, Any]:
    """Fine-tune with one seed, and make the rows of the table for this seed."""
    folder = folder_of(arguments) / f"seed-{seed}"
    with PartialState(cpu=arguments.use_cpu).main_process_first():
        check_settings(folder, arguments)
    tuned = folder / "tuned"
    if not (folder / "training.json").exists():
        train(arguments, splits, seed, tuned)
    processor = AutoImageProcessor.from_pretrained(tuned)

    def evaluate(model: Any, split: str) -> Any:
        settings = training_arguments(arguments, seed, tuned)
        trainer = Trainer(model, settings, data_collator=collator_of(model))
        result = trainer.predict(pixels(splits[split], processor))
        return result.predictions.argmax(-1) == result.label_ids

    tuned_model, base = pair(arguments, splits, seed)
    return method_rows(
        folder / "rows.json",
        tuned_model,
        base,
        evaluate,
        splits=["test"],
        methods=arguments.methods,
        fractions=arguments.fractions,
        calibration=batches(pixels(few(splits["train"]), processor), collator_of(tuned_model)),
    )


def pair(arguments: Arguments, splits: DatasetDict, seed: int) -> tuple[Any, Any]:
    """The tuned model of a seed, and the model that its training began with."""
    tuned = folder_of(arguments) / f"seed-{seed}" / "tuned"
    model = AutoModelForImageClassification.from_pretrained(tuned).eval()
    return model, model_of(arguments, splits, seed)


def report(arguments: Arguments, splits: DatasetDict, seeds: list[dict[str, Any]]) -> None:
    """Write the table, and save the best filtered model."""
    folder, name = folder_of(arguments), task_of(arguments)

    def models(place: int) -> tuple[Any, Any]:
        return pair(arguments, splits, arguments.seeds[place])

    fine_tuning.report(
        arguments,
        folder / "results",
        [Column(name, "test", seeds, PUBLISHED.get(name, {}))],
        [Tuned(folder, seeds, models)],
        base_model="." if arguments.embedded else arguments.model,
        differences=differences(arguments),
        untrained=arguments.embedded,
        title=f"Noise removed after training: {name}",
        notes=notes(arguments, splits),
    )


def task_of(arguments: Arguments) -> str:
    """The name of the images in the table."""
    return arguments.task if arguments.data_dir is None else Path(arguments.data_dir).stem


def folder_of(arguments: Arguments) -> Path:
    return Path(arguments.output_dir) / task_of(arguments)


def differences(arguments: Arguments) -> tuple[str, ...]:
    """The known differences from the setting of the published numbers, for the table."""
    return (
        f"model: the published one is ViT-L; here {Path(arguments.model).name}",
        f"epochs: {arguments.epochs:g}; the published number is not given",
        "training images: all, less the selection split",
        "filter: the published one works layer by layer and watches the test accuracy; here one "
        "share is removed in all layers and chosen on images of the training set",
        "PUB: one published number, which does not say BEMA or kernel; it stands beside both",
    )


def notes(arguments: Arguments, splits: DatasetDict) -> tuple[str, ...]:
    """Notes for the table on how its numbers were made."""
    counts = ", ".join(f"{len(rows)} {name}" for name, rows in splits.items())
    side = arguments.image_size
    return (
        f"images: {counts}" + (f"; {side} x {side} pixels" if side else ""),
        f"seeds {', '.join(map(str, arguments.seeds))}; learning rate {arguments.learning_rate:g}, "
        f"batch size {arguments.batch_size}, epochs {arguments.epochs:g}",
        "the share removed was chosen for each seed on images kept back from the training images",
        "intervals: paired bootstrap over the images, all seeds of an image together",
    )


def processor_of(arguments: Arguments) -> Any:
    """The model's image processor, set to the image size that the options ask for."""
    if arguments.embedded:
        return ViTImageProcessorPil(size={"height": 8, "width": 8})
    with needs_hub(arguments.model):
        processor = AutoImageProcessor.from_pretrained(arguments.model)
    if side := arguments.image_size:
        square = {"height": side, "width": side}
        crops = getattr(processor, "do_center_crop", False)
        processor.size = {"shortest_edge": side} if crops else square
        processor.crop_size = square
    return processor


def model_of(arguments: Arguments, splits: DatasetDict, seed: int) -> Any:
    """The pretrained model with a new head, or a small untrained one."""
    set_seed(seed)
    labels = dict(enumerate(splits["train"].features["label"].names))
    names = {"id2label": labels, "label2id": {name: number for number, name in labels.items()}}
    if arguments.embedded:
        return ViTForImageClassification(ViTConfig(**SMALL, **names))
    with needs_hub(arguments.model):
        return AutoModelForImageClassification.from_pretrained(
            arguments.model, ignore_mismatched_sizes=True, dtype=torch.float32, **names
        )


def train(arguments: Arguments, splits: DatasetDict, seed: int, target: Path) -> None:
    """Fine-tune a model and save it; the logs get the spectra of what training adds."""
    processor = processor_of(arguments)
    model = model_of(arguments, splits, seed)
    score = metric()

    def compute(result: EvalPrediction) -> dict[str, float]:
        return score.compute(predictions=result.predictions.argmax(-1), references=result.label_ids)

    trainer = Trainer(
        model,
        training_arguments(arguments, seed, target),
        train_dataset=pixels(splits["train"], processor),
        eval_dataset=pixels(splits["selection"], processor),
        data_collator=collator_of(model),
        compute_metrics=compute,
        callbacks=[spectra_log()],
    )
    train_and_save(trainer, processor, target)


def training_arguments(arguments: Arguments, seed: int, target: Path) -> TrainingArguments:
    return settings_of(
        TrainingArguments,
        arguments,
        target,
        seed=seed,
        epochs=arguments.epochs,
        average_tokens_across_devices=False,  # losses are means here, not sums over tokens
        remove_unused_columns=False,
    )


if __name__ == "__main__":
    start(main)
