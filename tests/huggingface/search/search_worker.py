"""Run by torchrun on two processes; each leaves what it found in the folder it is given."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import distributed, nn

import hf_rmt
from tests.huggingface.models import outputs, tiny_model

RANK = int(os.environ.get("RANK", "0"))
GRID = (0.5, 0.75, 1.0)


def tuned_and_base() -> tuple[nn.Module, nn.Module]:
    base, tuned = tiny_model("bert"), tiny_model("bert")
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in tuned.parameters():
            noise = 0.01 * torch.randn(weight.shape)
            weight += noise + (0.3 * noise[:, :1] @ noise[:1] * 100 if weight.ndim == 2 else 0)
    return tuned, base


def evaluate(model: nn.Module) -> float:
    """A metric of which process 1 has another opinion."""
    start = outputs(tiny_model("bert"), "bert")
    return -float((outputs(model, "bert") - start).norm() / start.norm()) * (1 + 5 * RANK)


def haunted(model: nn.Module) -> float:
    if RANK == 1:
        raise ValueError("the metric is haunted")
    return 0.0


def main(folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    tuned, base = tuned_and_base()
    hf_rmt.filter_update(base, tuned)
    model, path = tiny_model("bert"), Path(folder, f"search{RANK}.json")
    result = hf_rmt.search(model, evaluate, tolerance=0.001, fractions=GRID, resume_from=path)
    hf_rmt.compress(model, result.config)
    tensors = {f"tuned.{key}": value for key, value in tuned.state_dict().items()}
    tensors |= {f"found.{key}": value for key, value in model.state_dict().items()}
    try:
        hf_rmt.search(tiny_model("bert"), haunted, tolerance=0.1)
        heard = "no error"
    except RuntimeError as error:
        heard = str(error)
    save_file(
        {key: value.clone() for key, value in tensors.items()}, f"{folder}/{RANK}.safetensors"
    )
    texts = {"result": result.to_dict(), "heard": heard, "file": path.exists()}
    Path(folder, f"{RANK}.json").write_text(json.dumps(texts))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
