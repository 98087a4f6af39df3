"""Kill a process at random times while it saves: the folder holds the old model or the new one.

    python -m tests.fuzz.kill --kills 100

A forked child saves two models into one folder by turns, of different ranks and kinds of noise,
one of them in shards, until it is killed. Needs `os.fork`.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.fuzz.repository import compressed, equal, load, quieten

LONGEST = 0.4
"""Seconds until a kill; a save takes some 0.05."""


def save_for_ever(models: list[Any], folder: Path) -> None:
    while True:
        models[0].save_pretrained(folder)
        models[1].save_pretrained(folder, max_shard_size="60KB")


def run(kills: int, seed: int, parent: Path) -> Counter[str]:
    """How often the folder held which model, or what else was found."""
    rng, counts = random.Random(seed), Counter[str]()
    models = [compressed("int8", rank=8), compressed("ternary", rank=5)]
    folder, states = parent / "model", []
    for model in models:
        model.save_pretrained(folder)
        states.append(load(folder))
    for _ in range(kills):
        child = os.fork()
        if child == 0:
            save_for_ever(models, folder)
        time.sleep(rng.uniform(0, LONGEST))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        counts[_found(folder, states)] += 1
    models[0].save_pretrained(folder)
    if left := [path.name for path in parent.iterdir() if path != folder]:
        counts[f"left behind: {left}"] += 1
    return counts


def _found(folder: Path, states: list[Any]) -> str:
    try:
        state = load(folder)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    names = [
        name for name, known in zip(("first", "second"), states, strict=True) if equal(state, known)
    ]
    return names[0] if names else "a mixture"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="processes to kill")
    parser.add_argument("--seed", type=int, default=0, help="of the times")
    arguments = parser.parse_args()
    quieten()
    with tempfile.TemporaryDirectory() as folder:
        counts = run(arguments.kills, arguments.seed, Path(folder))
    for name, count in counts.most_common():
        print(f"{count:6} {name}")
    return 0 if set(counts) <= {"first", "second"} else 1


if __name__ == "__main__":
    sys.exit(main())
