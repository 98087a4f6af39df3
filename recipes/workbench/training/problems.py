"""Problems to train on: a model to start from, rows to train on and rows to judge it on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from workbench.data.glue import TASKS, DataArguments, by_length, length_of, splits_of, tokenized
from workbench.data.image_tensors import read_mnist
from workbench.data.images import collator_of, from_arrays, pixels
from workbench.data.label_noise import shuffled_labels
from workbench.data.rows import needs_hub
from workbench.data.text_to_text import made_tokenizer, small_t5
from workbench.models.networks import fcnn

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    T5ForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from hf_rmt.demo import demo_model_path

IMAGES = ("cifar10", "mnist")


@dataclass
class ProblemArguments(DataArguments):
    """Options that say which models the problems start from."""

    model: str | None = field(
        default=None, metadata={"help": "folder or Hub id; default: the demo BERT"}
    )
    image_model: str | None = field(
        default=None, metadata={"help": "for cifar10: folder or Hub id; default: DINOv2-small"}
    )
    image_size: int = field(default=70, metadata={"help": "for cifar10: side in pixels"})


class Problem(NamedTuple):
    """What is trained, and how it is judged.

    Attributes:
        start: The model before training.
        train: Rows to train on.
        judged: Rows with clean labels, in the order in which they are judged, by split.
        collator: Makes batches of the rows.
        processor: Tokenizer or image processor; None if the problem needs none.
        kept: Rows that are kept back from the training, with labels as wrong as those of `train`;
            None if there are none left.
    """

    start: Any
    train: Any
    judged: dict[str, Any]
    collator: Any
    processor: Any
    kept: Any


class Classifier(nn.Module):
    """A network with the interface that `Trainer` expects: it returns a loss and logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.network(pixel_values)
        if labels is None:
            return {"logits": logits}
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


def problem_of(arguments: ProblemArguments, task: str, seed: int) -> Problem:
    """The problem that belongs to the name of a task.

    Args:
        arguments: The options of the recipe.
        task: A GLUE task, `embedded`, `t5` (SST-2 and a small T5, from nothing), `cifar10` (a ViT)
            or `mnist` (a small network, from nothing).
        seed: Seed of the new head or network, and of the choice of labels that are shuffled.

    Raises:
        SystemExit: If there is no such task, or its files are missing.
    """
    if task == "cifar10":
        return _cifar10(arguments, seed)
    if task == "mnist":
        return _mnist(arguments, seed)
    if task == "t5":
        return _t5(arguments, seed)
    if task not in (*TASKS, "embedded"):
        raise SystemExit(f"--task must be among {', '.join((*TASKS, 't5', *IMAGES))}, got {task!r}")
    return _bert(arguments, task, seed)


def trainer_of(
    problem: Problem, settings: TrainingArguments, model: Any, *callbacks: TrainerCallback
) -> Trainer:
    """A Trainer of a model on the rows of a problem."""
    return Trainer(
        model,
        settings,
        train_dataset=problem.train,
        eval_dataset=problem.kept,
        data_collator=problem.collator,
        callbacks=list(callbacks),
        preprocess_logits_for_metrics=_logits,
    )


def correct(trainer: Trainer, problem: Problem) -> list[int]:
    """For each row that is judged, 1 if the trained model is right and 0 if it is wrong."""
    found = [trainer.predict(part) for part in problem.judged.values()]
    right = [part.predictions.argmax(-1) == part.label_ids for part in found]
    return np.concatenate(right).astype(int).tolist()


def _logits(outputs: Any, labels: Tensor) -> Tensor:
    """The logits alone; in a T5, the states of its encoder follow them in the outputs."""
    return outputs[0] if isinstance(outputs, tuple) else outputs


def _bert(arguments: ProblemArguments, task: str, seed: int) -> Problem:
    splits, labels = splits_of(arguments, task, seed)
    path = arguments.model or str(demo_model_path())
    with needs_hub(path):
        tokenizer = AutoTokenizer.from_pretrained(path)
        set_seed(seed)
        start = AutoModelForSequenceClassification.from_pretrained(path, num_labels=len(labels))
    return _texts(start, tokenizer, splits, length_of(arguments, task))


def _t5(arguments: ProblemArguments, seed: int) -> Problem:
    splits, labels = splits_of(arguments, "sst2", seed)
    tokenizer = made_tokenizer(list(splits["train"]["text"]))
    set_seed(seed)
    start = T5ForSequenceClassification(small_t5(tokenizer, num_labels=len(labels)))
    return _texts(start, tokenizer, splits, length_of(arguments, "sst2"))


def _texts(start: Any, tokenizer: Any, splits: Mapping[str, Dataset], length: int) -> Problem:
    rows = {name: tokenized(part, tokenizer, length) for name, part in splits.items()}
    judged = {name: by_length(rows[name]) for name in ("dev", "test") if name in rows}
    collator = DataCollatorWithPadding(tokenizer)
    return Problem(start, rows["train"], judged, collator, tokenizer, rows["selection"])


def _cifar10(arguments: ProblemArguments, seed: int) -> Problem:
    file = np.load(_file(arguments, "cifar10", "*.npz"))
    chosen = _chosen(arguments, len(file["train_y"]))
    labels = _noisy(arguments, file["train_y"][chosen].tolist(), seed)
    splits = from_arrays(file["train_x"][chosen], np.array(labels), file["test_x"], file["test_y"])
    path = arguments.image_model or _image_model()
    with needs_hub(path):
        processor = AutoImageProcessor.from_pretrained(path)
        set_seed(seed)
        start = AutoModelForImageClassification.from_pretrained(
            path, num_labels=int(file["test_y"].max()) + 1, dtype=torch.float32
        )
    side = {"height": arguments.image_size, "width": arguments.image_size}
    crops = getattr(processor, "do_center_crop", False)
    processor.size = {"shortest_edge": arguments.image_size} if crops else side
    processor.crop_size = side
    train, test = (pixels(splits[name], processor) for name in ("train", "test"))
    count = _trained(arguments, len(chosen))
    kept = train.select(range(count, len(chosen))) if count < len(chosen) else None
    rows = train.select(range(count))
    return Problem(start, rows, {"test": test}, collator_of(start), processor, kept)


def _mnist(arguments: ProblemArguments, seed: int) -> Problem:
    images = read_mnist(str(Path(arguments.data_dir or "", "mnist")), embedded=False)
    chosen = torch.from_numpy(_chosen(arguments, len(images.train_y)))
    labels = _noisy(arguments, images.train_y[chosen].tolist(), seed)
    torch.manual_seed(seed)
    start = Classifier(fcnn(images.train_x[0].numel()))
    rows, count = _rows(images.train_x[chosen], labels), _trained(arguments, len(chosen))
    judged = {"test": _rows(images.test_x, images.test_y.tolist())}
    return Problem(start, rows[:count], judged, None, None, rows[count:] or None)


def _image_model() -> str:
    """The folder of the ViT in HF_RMT_DATA if there is one, else its name on the Hub."""
    local = Path(os.environ.get("HF_RMT_DATA", ""), "models", "dinov2-small")
    return str(local) if local.is_dir() else "facebook/dinov2-small"


def _file(arguments: ProblemArguments, task: str, pattern: str) -> Path:
    folder = Path(arguments.data_dir or "", task)
    if found := sorted(folder.glob(pattern)):
        return found[0]
    raise SystemExit(
        f"--task {task} reads a file {pattern} in {folder}, which has none; add one to this folder"
    )


def _chosen(arguments: ProblemArguments, count: int) -> np.ndarray:
    """The rows to train on, followed by the rows to keep back if there are more."""
    order = np.random.default_rng(0).permutation(count)
    return order[: _trained(arguments, count) + arguments.selection_samples]


def _trained(arguments: ProblemArguments, count: int) -> int:
    """How many of `count` rows are trained on."""
    return min(count, arguments.max_train_samples or count)


def _noisy(arguments: ProblemArguments, labels: list[int], seed: int) -> list[int]:
    """Labels of which a share is shuffled, first among training rows, then among rows kept back."""
    count = _trained(arguments, len(labels))
    parts = (labels[:count], labels[count:])
    noisy = (shuffled_labels(part, arguments.label_noise, seed=seed) for part in parts)
    return [label for part in noisy for label in part]


def _rows(images: Tensor, labels: list[int]) -> list[dict[str, Any]]:
    pairs = zip(images, labels, strict=True)
    return [{"pixel_values": image, "labels": label} for image, label in pairs]
