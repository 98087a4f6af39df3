"""Run by torchrun on two processes; every process leaves what it saw in the folder it is given."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import distributed
from transformers import Trainer, TrainingArguments

import hf_rmt
from hf_rmt import RMTConfig
from hf_rmt.compression.execution.parallel import map_over_processes
from hf_rmt.huggingface.training.filter_callback import RMTCallback
from tests.huggingface.models import tiny_model
from tests.huggingface.training.training import arguments, classifier, sentences

NOISES = ("int8", "drop")
RANK = int(os.environ.get("RANK", "0"))


def kinds_of_tensors() -> dict[str, torch.Tensor]:
    """Outcomes of five items with tensors of several dtypes and shapes, made on their owners."""

    def work(item: int) -> tuple[Any, dict[str, torch.Tensor]]:
        values = torch.arange(item * 3, dtype=torch.float32).reshape(3, item)
        return {"item": item, "owner": RANK}, {
            "transposed": values.T,
            "half": values.to(torch.bfloat16),
            "bytes": values.to(torch.uint8),
            "number": torch.tensor(float(item)),
        }

    outcomes = list(map_over_processes(work, range(5), [1.0, 5.0, 2.0, 1.0, 1.0]))
    plain = [[outcome["item"], outcome["owner"]] for outcome, _ in outcomes]
    tensors = {
        f"{index}.{key}": value.contiguous()
        for index, (_, part) in enumerate(outcomes)
        for key, value in part.items()
    }
    return {"plain": torch.tensor(plain), **tensors}


def failure() -> str:
    """What this process hears when the other one fails."""

    def work(item: int) -> tuple[Any, dict[str, torch.Tensor]]:
        if item == 1:
            raise ValueError("the matrix is haunted")
        return None, {"tensor": torch.zeros(2)}

    try:
        list(map_over_processes(work, range(2), [2.0, 1.0]))
    except RuntimeError as error:
        return str(error)
    return "no error"


def refusal(output: str) -> str:
    """What a sharded training says when its Trainer is made."""
    arguments = TrainingArguments(output, fsdp=True, use_cpu=True, report_to=[])
    try:
        Trainer(tiny_model("bert"), arguments, callbacks=[RMTCallback()])
    except ValueError as error:
        return str(error)
    return "no error"


def main(folder: str) -> None:
    torch.set_num_threads(1)
    trainer = Trainer(
        classifier(),
        arguments(folder, num_train_epochs=1),
        train_dataset=sentences(),
        callbacks=[RMTCallback(schedule=2)],
    )
    trainer.train()
    tensors = {f"trained.{key}": value for key, value in trainer.model.state_dict().items()}
    trainer.save_model(str(Path(folder, "saved")))
    for noise in NOISES:
        model = tiny_model("t5")
        hf_rmt.compress(model, RMTConfig(noise=noise))
        tensors |= {f"{noise}.{key}": value for key, value in model.state_dict().items()}
    tensors |= {f"kinds.{key}": value for key, value in kinds_of_tensors().items()}
    heard = {"failure": failure(), "refusal": refusal(folder), "log": trainer.state.log_history}
    save_file(
        {key: value.clone() for key, value in tensors.items()}, f"{folder}/{RANK}.safetensors"
    )
    Path(folder, f"{RANK}.json").write_text(json.dumps(heard))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
