"""Python in processes of its own: scripts, recipes, workers of torch.distributed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
RECIPES = REPOSITORY / "recipes"
TIMEOUT = 600


def run_python(
    script: str | Path, *options: str | Path, processes: int = 1
) -> subprocess.CompletedProcess[str]:
    """Run a script, with this checkout first on the path, and wait for it.

    Args:
        script: File of Python code.
        *options: Its command line.
        processes: Of torchrun, if more than one.

    Returns:
        What it said and its exit status.
    """
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, *_launcher(processes), str(script), *map(str, options)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def succeed(
    script: str | Path, *options: str | Path, processes: int = 1
) -> subprocess.CompletedProcess[str]:
    """Run a script that must end well."""
    result = run_python(script, *options, processes=processes)
    assert result.returncode == 0, result.stderr[-3000:]
    return result


def _launcher(processes: int) -> list[str]:
    if processes == 1:
        return []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = ["--master_addr=127.0.0.1", f"--master_port={port}"]
    return ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", *address]
