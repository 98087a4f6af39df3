"""Run by torchrun on two processes: an annealed training, killed and resumed, on each replica."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import distributed
from transformers import Trainer

from hf_rmt.huggingface.training.filter_callback import RMTCallback
from tests.huggingface.training.training import arguments, classifier, sentences

RANK = int(os.environ.get("RANK", "0"))
CHECKPOINT = 5
"""Update step in the middle of the annealing, of 8."""


def trained(folder: str, resume: str | None = None) -> dict[str, torch.Tensor]:
    settings = arguments(folder, save_strategy="steps", save_steps=CHECKPOINT)
    callback = RMTCallback(size=0.4, anneal=(3, 7))
    trainer = Trainer(classifier(), settings, train_dataset=sentences(), callbacks=[callback])
    trainer.train(resume_from_checkpoint=resume)
    return {key: value.clone() for key, value in trainer.model.state_dict().items()}


def main(folder: str) -> None:
    torch.set_num_threads(1)
    tensors = {f"whole.{key}": value for key, value in trained(folder).items()}
    again = trained(folder, str(Path(folder, f"checkpoint-{CHECKPOINT}")))
    tensors |= {f"resumed.{key}": value for key, value in again.items()}
    save_file(tensors, f"{folder}/{RANK}.safetensors")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
