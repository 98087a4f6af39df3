"""What the recipes on fine-tuned transformers do alike: settings, training, batches, report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from accelerate.utils import send_to_device
from datasets import Dataset
from huggingface_hub import create_repo, upload_folder
from method_rows import Column, results_table, save_best, save_results, write_card
from torch.utils.data import DataLoader
from transformers import Trainer

from hf_rmt import RMTCallback, RMTConfig
from hf_rmt.huggingface.api import copy_tokenizer

CALIBRATION = 300
"""Training rows that a ternary head is calibrated on."""


class Tuned(NamedTuple):
    """What came of one task: its folder, its rows by seed, and how to load a seed's two models."""

    folder: Path
    seeds: Sequence[Mapping[str, Any]]
    models: Callable[[int], tuple[Any, Any]]


def settings_of(
    kind: Any, arguments: Any, target: Path, *, seed: int, epochs: float, **further: Any
) -> Any:
    """Settings of a training, `kind` being their class; the batch is that of all processes."""
    settings = kind(
        str(target),
        num_train_epochs=epochs,
        max_steps=arguments.max_steps,
        learning_rate=arguments.learning_rate,
        warmup_steps=0.06,
        seed=seed,
        save_strategy="no",
        logging_steps=50,
        report_to=[],
        use_cpu=arguments.use_cpu,
        dataloader_pin_memory=torch.cuda.is_available(),
        per_device_eval_batch_size=64,
        **further,
    )
    processes = settings.world_size
    if arguments.batch_size % processes:
        raise SystemExit(
            f"--batch_size is that of all {processes} processes together and must be a multiple "
            f"of them, got {arguments.batch_size}; pass {processes * arguments.batch_size}"
        )
    settings.per_device_train_batch_size = arguments.batch_size // processes
    return settings


def spectra_log() -> RMTCallback:
    """Puts the spectra of what training adds into the logs, and filters nothing."""
    return RMTCallback(RMTConfig(noise="keep"), target="update")


def train_and_save(trainer: Trainer, reader: Any, target: Path) -> None:
    """Train, judge, and save the model, its tokenizer or image processor, and the logs."""
    trainer.args.dataloader_drop_last = True  # several processes would fill up the last batch
    trainer.train()
    trainer.args.dataloader_drop_last = False
    trainer.evaluate()
    trainer.save_model(str(target))
    if trainer.is_world_process_zero():
        reader.save_pretrained(target)
        logs = json.dumps(trainer.state.log_history, indent=2)
        (target.parent / "training.json").write_text(logs + "\n")
    trainer.accelerator.wait_for_everyone()


def few(rows: Dataset, count: int = CALIBRATION) -> Dataset:
    """The first rows, at most so many."""
    return rows.select(range(min(count, len(rows))))


def batches(rows: Dataset, collator: Any, device: Any = "cpu") -> list[dict[str, Any]]:
    """Batches of a model's arguments, labels left out."""
    made = [dict(batch) for batch in DataLoader(rows, batch_size=32, collate_fn=collator)]
    for batch in made:
        del batch["labels"]
    return send_to_device(made, device)


def report(
    arguments: Any,
    folder: Path,
    columns: Sequence[Column],
    tasks: Sequence[Tuned],
    *,
    base_model: str,
    differences: Sequence[str],
    **about: Any,
) -> None:
    """The table of all tasks; for each the best filtered model, with its card.

    Args:
        arguments: What the recipe was told.
        folder: Where the table goes.
        columns: Of the table.
        tasks: Whose best models are saved, in `best` beside the seeds.
        base_model: What training began with, for the card.
        differences: How the setting differs from that of the published numbers, if there are any.
        **about: Title and notes of the table.
    """
    told = tuple(differences) if any(column.published for column in columns) else ()
    table = results_table(columns, arguments.methods, differences=told, **about)
    save_results(folder, table, columns)
    for task in tasks:
        best = task.folder / "best"
        what = save_best(best, task.seeds, task.models)
        write_card(best, table, what, base_model)
        if not PartialState().is_main_process:
            continue
        copy_tokenizer(task.folder / f"seed-{arguments.seeds[0]}" / "tuned", best)
        if arguments.push_to_hub:
            repository = create_repo(arguments.push_to_hub, exist_ok=True).repo_id
            upload_folder(repo_id=repository, folder_path=best)
