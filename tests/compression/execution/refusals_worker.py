"""Run by torchrun on two processes, which call the collective functions with other arguments.

Process 0 calls with good arguments. Process 1 has one argument that is bad, or another good one.
"""

from __future__ import annotations

import datetime
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from transformers import Trainer

from hf_rmt import RMTCallback, RMTConfig, compress, filter_update, search
from hf_rmt.compression import model as without_transformers
from hf_rmt.compression.execution.parallel import map_over_processes
from hf_rmt.compression.execution.rendezvous import collective
from tests.huggingface.models import inputs, tiny_model
from tests.huggingface.search.search_worker import tuned_and_base
from tests.huggingface.training.training import arguments, classifier, sentences

RANK = int(os.environ.get("RANK", "0"))
Arguments = dict[str, Any]


def to_compress() -> Arguments:
    model = tiny_model("bert")
    return {"model": model, "config": RMTConfig(noise="drop"), "calibration": [inputs("bert")]}


def to_search() -> Arguments:
    evaluate = {"evaluate": lambda model: 0.0, "tolerance": 0.1}
    return {"model": tiny_model("bert"), "config": RMTConfig(noise="drop"), **evaluate}


def to_filter() -> Arguments:
    tuned, base = tuned_and_base()
    return {"base": base, "tuned": tuned, "config": RMTConfig(noise="drop"), "dose": 0.9}


CALLS: dict[str, tuple[Callable[..., Any], Callable[[], Arguments]]] = {
    "compress": (compress, to_compress),
    "compress without transformers": (without_transformers.compress, to_compress),
    "search": (search, to_search),
    "filter_update": (filter_update, to_filter),
}


def broken() -> Iterator[dict[str, Tensor]]:
    yield inputs("bert")
    raise OSError("the file of the texts is gone")


BAD: Arguments = {
    "model": "bert",
    "base": "no/such/folder",
    "tuned": "bert",
    "config": "int4",
    "dry_run": "yes",
    "size": 2,
    "tolerance": -1,
    "fractions": [2.0],
    "max_evaluations": 0,
    "resume_from": "",
    "evaluate": 3,
    "early": "no/such/folder",
    "dose": 5,
}
"""A bad value of each argument."""
BAD_CALIBRATIONS: dict[str, Callable[[], Any]] = {
    "an iterator that fails": broken,
    "a batch that is no mapping": lambda: [3],
    "no batches": lambda: 3,
}


def other_model() -> Any:
    model = tiny_model("bert")
    model.encoder.layer[0].output.dense.weight.data[0, 0] += 1
    return model


OTHER: dict[str, Callable[[], Any]] = {
    "model": other_model,
    "base": other_model,
    "tuned": other_model,
    "config": lambda: RMTConfig(noise="drop", max_rank=3),
    "dry_run": lambda: True,
    "calibration": lambda: None,
    "size": lambda: 0.5,
    "tolerance": lambda: 0.2,
    "fractions": lambda: [0.5],
    "max_evaluations": lambda: 20,
    "dose": lambda: 0.5,
}
"""Another good value of each argument that must be the same on all processes."""
OWN = {
    "evaluate": "the score of process 0 counts",
    "resume_from": "process 0 alone reads and writes the file",
    "early": "a number as dose takes none",
}
"""Arguments that may differ, and why."""


def cases() -> Iterator[tuple[str, Callable[..., Any], Arguments]]:
    """Each case: its name, the function, and its arguments on this process."""
    for name, (call, good) in CALLS.items():
        for parameter in inspect.signature(call).parameters:
            values: dict[str, Callable[[], Any]] = (
                {f"bad: {kind}": make for kind, make in BAD_CALIBRATIONS.items()}
                if parameter == "calibration"
                else {"bad": lambda value=BAD[parameter]: value}
            )
            if parameter not in OWN:
                values["other"] = OTHER[parameter]
            for kind, make in values.items():
                changed = {parameter: make()} if RANK else {}
                yield f"{name} | {parameter} | {kind}", call, good() | changed


@collective
def fails_between_tensors() -> None:
    """Process 1 fails while process 0 waits for tensors from it."""
    outcomes = map_over_processes(lambda n: (n, {"n": torch.ones(2)}), range(4), [1.0] * 4)
    for item, _ in outcomes:
        if RANK and item == 1:
            raise ValueError("no room for the tensor")


def by_rank(rank: int) -> RMTConfig:
    return RMTConfig(method="svd", rank=2, noise="drop") if rank else RMTConfig(noise="drop")


def train(folder: str, **options: Any) -> None:
    made = {"train_dataset": sentences(), "callbacks": [RMTCallback(**options)]}
    Trainer(classifier(), arguments(folder, num_train_epochs=1), **made).train()


def heard_from(call: Callable[..., Any], arguments: Arguments) -> str:
    try:
        call(**arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def main(folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    heard = {name: heard_from(call, arguments) for name, call, arguments in cases()}
    heard["between tensors"] = heard_from(fails_between_tensors, {})
    filters = {"schedule": {"schedule": 2 + RANK}, "method": {"config": by_rank(RANK)}}
    for name, options in filters.items():
        heard[f"RMTCallback | {name}"] = heard_from(train, {"folder": folder, **options})
    heard["the same on both"] = heard_from(compress, to_compress() | {"size": 2})
    Path(folder, f"{RANK}.json").write_text(json.dumps(heard))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
