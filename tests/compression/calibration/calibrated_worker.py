"""Run by torchrun on two processes, which calibrate with batches of their own."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, distributed

from hf_rmt import RMTConfig, compress
from tests.huggingface.models import tiny_model

CONFIGS: dict[str, dict[str, Any]] = {
    "svd": {"settings": {"method": "svd", "fraction": 0.25, "noise": "drop"}},
    "int4": {"settings": {"noise": "int4"}},
    "size": {"settings": {"noise": "drop"}, "size": 0.3},
}


def batches() -> list[dict[str, Tensor]]:
    """Three batches of token ids with padding at the ends of rows."""
    generator = torch.Generator().manual_seed(2)
    found = []
    for _ in range(3):
        mask = torch.arange(9) < torch.tensor([[9], [6], [9], [4]])
        tokens = torch.randint(3, 50, (4, 9), generator=generator)
        found.append({"input_ids": tokens * mask, "attention_mask": mask.long()})
    return found


def main(folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank, tensors = int(os.environ["RANK"]), {}
    for label, config in CONFIGS.items():
        model = tiny_model("bert")
        # the second process has none for the first configuration
        own = batches()[rank::2] if label != "svd" else [batches(), []][rank]
        settings = RMTConfig(**config["settings"])
        compress(model, settings, calibration=own, size=config.get("size"))
        tensors |= {f"{label}.{key}": value for key, value in model.state_dict().items()}
        with torch.no_grad():
            tensors[label] = model(**batches()[0]).last_hidden_state
    broken = [{"input_ids": torch.tensor([[10**6 * rank]])}]
    try:
        compress(tiny_model("bert"), RMTConfig(), calibration=broken)
    except RuntimeError as error:
        Path(folder, f"{rank}.txt").write_text(str(error))
    save_file(
        {key: value.clone() for key, value in tensors.items()}, f"{folder}/{rank}.safetensors"
    )
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
