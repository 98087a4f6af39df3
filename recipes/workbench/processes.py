"""Sets up the processes of a run: chooses the CPU if it is the only device, and joins them."""

from __future__ import annotations

import os
from typing import Any

import torch
from accelerate import PartialState


def begin(arguments: Any) -> None:
    """Set up this process; call it before other code chooses a device.

    Without an accelerator, `arguments.use_cpu` becomes true. If it stayed false, accelerate and the
    Trainer would not connect processes on a CPU, and each would train alone in the same folder.

    Args:
        arguments: The options of the recipe, with a field `use_cpu`.

    Raises:
        SystemExit: If accelerate does not see all processes that were launched.
    """
    arguments.use_cpu = arguments.use_cpu or not torch.accelerator.is_available()
    check_processes(accelerate=PartialState(cpu=arguments.use_cpu).num_processes)


def check_processes(**seen: int) -> None:
    """Stop at once if a library does not see all the processes that were launched.

    Args:
        **seen: For each library, the number of processes that it works with.

    Raises:
        SystemExit: If one of these numbers differs from that of the launched processes.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    wrong = {name: count for name, count in seen.items() if count != launched}
    if wrong:
        told = ", ".join(f"{name} works with {count}" for name, count in wrong.items())
        raise SystemExit(
            f"the launcher started {launched} processes, but {told}: each would train alone, in "
            "the same folder. On a CPU pass --use_cpu; on GPUs launch as many processes as there "
            "are GPUs; or start one process with `python`"
        )


def share_of(batch_size: int) -> int:
    """The rows of a batch that one process takes.

    Args:
        batch_size: Rows of a batch over all processes.

    Returns:
        Rows for each process.

    Raises:
        SystemExit: If the batch cannot be shared out evenly.
    """
    processes = PartialState().num_processes
    if batch_size % processes:
        raise SystemExit(
            f"--batch_size is that of all {processes} processes together and must be a multiple "
            f"of them, got {batch_size}; pass {processes * batch_size}"
        )
    return batch_size // processes


def one_process() -> None:
    """Stop if several processes were launched for a recipe that works in one process.

    Raises:
        SystemExit: If WORLD_SIZE says that there are several processes.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > 1:
        raise SystemExit(
            f"this recipe works in one process, got {launched}; start it with `python`, not with "
            "`accelerate launch` or `torchrun`"
        )
