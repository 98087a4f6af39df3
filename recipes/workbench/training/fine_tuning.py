"""What the recipes on fine-tuned transformers share: settings, training, batches, report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from workbench.processes import check_processes, share_of
from workbench.report.method_table import (
    TRAINED,
    TUNED,
    Column,
    results_table,
    save_best,
    save_results,
    write_card,
)
from workbench.writing import replaced_folder, write_json

import torch
from accelerate import PartialState
from accelerate.utils import send_to_device
from datasets import Dataset
from huggingface_hub import create_repo, upload_folder
from torch.utils.data import DataLoader
from transformers import AutoProcessor, Trainer

from hf_rmt import RMTCallback, RMTConfig

CALIBRATION = 300
"""Number of training rows that a ternary head is calibrated on."""


class Tuned(NamedTuple):
    """One task's results: folder, rows by seed, and a function that loads a seed's two models."""

    folder: Path
    seeds: Sequence[Mapping[str, Any]]
    models: Callable[[int], tuple[Any, Any]]


def settings_of(
    kind: Any, arguments: Any, target: Path, *, seed: int, epochs: float, **further: Any
) -> Any:
    """Settings of a training.

    Args:
        kind: The class of the settings.
        arguments: The options of the recipe; the batch size is that of all processes together.
        target: Folder for the model.
        seed: Seed of the training.
        epochs: How often each row is seen. If `arguments.max_steps` is above 0, it decides instead.
        **further: Other settings.

    Returns:
        The settings.

    Raises:
        SystemExit: If the Trainer does not work with all processes that were launched.
    """
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
    check_processes(accelerate=PartialState().num_processes, trainer=settings.world_size)
    settings.per_device_train_batch_size = share_of(arguments.batch_size)
    return settings


def spectra_log() -> RMTCallback:
    """A callback that logs the spectra of what training adds, and filters nothing."""
    return RMTCallback(RMTConfig(noise="keep"), target="update")


def train_and_save(trainer: Trainer, reader: Any, target: Path) -> None:
    """Train and judge a model; save it, its tokenizer or image processor, and the logs.

    The logs are written last: if they exist, the training is finished.
    """
    trainer.args.dataloader_drop_last = True  # several processes would fill up the last batch
    trainer.train()
    trainer.args.dataloader_drop_last = False
    trainer.evaluate()
    first = trainer.is_world_process_zero()
    with replaced_folder(target, keep=first) as part:
        trainer.save_model(str(part))
        if first:
            reader.save_pretrained(part)
    if first:
        write_json(target.parent / "training.json", trainer.state.log_history)
    trainer.accelerator.wait_for_everyone()


def few(rows: Dataset, count: int = CALIBRATION) -> Dataset:
    """The first `count` rows, or all rows if there are fewer."""
    return rows.select(range(min(count, len(rows))))


def batches(rows: Dataset, collator: Any, device: Any = "cpu") -> list[dict[str, Any]]:
    """Batches of a model's arguments, without the labels."""
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
    untrained: bool = False,
    **about: Any,
) -> None:
    """Write the table of all tasks, and save the best filtered model of each with its card.

    Args:
        arguments: The options of the recipe.
        folder: Folder for the table.
        columns: The columns of the table.
        tasks: The tasks; the best model of each is saved in `best`, beside its seeds.
        base_model: The model that training began with, for the card.
        differences: How the setting differs from that of the published numbers, if there are any.
        untrained: Whether training began with random weights.
        **about: Title and notes of the table.
    """
    told = tuple(differences) if any(column.published for column in columns) else ()
    table = results_table(
        columns,
        arguments.methods,
        base_title=TRAINED if untrained else TUNED,
        differences=told,
        **about,
    )
    save_results(folder, table, columns)
    for task in tasks:
        first, best = PartialState().is_main_process, task.folder / "best"
        tuned = task.folder / f"seed-{arguments.seeds[0]}" / "tuned"
        with replaced_folder(best, keep=first) as part:
            what = save_best(part, task.seeds, task.models)
            if first:
                write_card(part, table, what, base_model)
                AutoProcessor.from_pretrained(tuned).save_pretrained(part)
        if first and arguments.push_to_hub:
            repository = create_repo(arguments.push_to_hub, exist_ok=True).repo_id
            upload_folder(repo_id=repository, folder_path=best)
