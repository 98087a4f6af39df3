"""Damage a saved repository in many ways: it loads as it was, or an error names the file.

    python -m tests.fuzz.mutate --cases 2000

Three kinds of damage: to a field of the record in config.json, to another field of it, and to the
weights. Half of the damaged weights have no digest in the record, as in a model of an older
version: then values may differ, but they must be finite and the same at each load.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.fuzz.repository import State, compressed, equal, load, quieten

NOISES = ("int8", "int4", "ternary", "keep", "drop")
VALUES: list[Any] = [
    None,
    "",
    "x",
    -1,
    0,
    3,
    1e308,
    float("nan"),
    2**70,
    True,
    [],
    {},
    [1],
    {"a": 1},
]
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the values of nested JSON stand."""
    if not isinstance(value, dict | list):
        return [path]
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    return [path] * bool(path) + [
        found for key, entry in inner for found in places(entry, (*path, key))
    ]


def damage_fields(root: Any, paths: list[tuple[Any, ...]], rng: random.Random) -> str:
    *above, last = path = rng.choice(paths)
    holder = root
    for key in above:
        holder = holder[key]
    if rng.random() < 0.3:
        del holder[last]
        return f"{path} deleted"
    holder[last] = rng.choice(VALUES)
    return f"{path} = {holder[last]!r}"


def damage_record(folder: Path, rng: random.Random) -> str:
    config = json.loads((folder / CONFIG).read_text())
    paths = [path for path in places(config) if path[0] == "quantization_config"]
    told = damage_fields(config, paths, rng)
    (folder / CONFIG).write_text(json.dumps(config))
    return f"record {told}"


def damage_config(folder: Path, rng: random.Random) -> str:
    path = folder / CONFIG
    content = path.read_bytes()
    if rng.random() < 0.3:
        start = rng.randrange(len(content))
        path.write_bytes(content[:start] + rng.choice([b"", b"\xff", b"}", content[:9]]))
        return f"config cut at {start}"
    config = json.loads(content)
    others = [key for key in config if key not in ("quantization_config", "auto_map")]
    told = damage_fields(config, [(key,) for key in others], rng)
    path.write_text(json.dumps(config))
    return f"config {told}"


def damage_bytes(folder: Path, rng: random.Random) -> str:
    path = folder / WEIGHTS
    content = bytearray(path.read_bytes())
    place = rng.randrange(len(content))
    if rng.random() < 0.3:
        path.write_bytes(content[:place])
        return f"weights cut at {place}"
    content[place] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return f"weights, bit of byte {place}"


def damage_tensor(folder: Path, rng: random.Random) -> str:
    path = folder / WEIGHTS
    tensors = load_file(path)
    key = rng.choice(sorted(tensors))
    value = tensors.pop(key)
    way = rng.choice(["gone", "shape", "dtype", "nan", "full", "renamed"])
    if way == "shape":
        tensors[key] = torch.cat([value.flatten(), value.flatten()])
    elif way == "dtype":
        tensors[key] = value.to(torch.int16 if value.is_floating_point() else torch.float32)
    elif way == "nan":
        tensors[key] = torch.full_like(value, float("nan")) if value.is_floating_point() else ~value
    elif way == "full":
        whole = not value.is_floating_point()
        tensors[key] = torch.full_like(value, torch.iinfo(value.dtype).max if whole else 1.0)
    elif way == "renamed":
        tensors[f"{key}.x"] = value
    save_file(tensors, path, metadata={"format": "pt"})
    return f"tensor {key} {way}"


def forget_digests(folder: Path) -> None:
    config = json.loads((folder / CONFIG).read_text())
    config["quantization_config"].pop("files")
    (folder / CONFIG).write_text(json.dumps(config))


def verdict(folder: Path, before: State, *, same: bool, common: bool) -> str:
    """`equal`, `refused`, or what is wrong."""
    try:
        found = load(folder)
    except Exception as error:
        named = any(name in str(error) for name in (CONFIG, WEIGHTS, folder.name))
        return "refused" if named else f"no file named: {type(error).__name__}: {error}"
    if common:
        shared = before.keys() & found.keys()
        if not shared:
            return "nothing in common"
        return (
            "equal"
            if equal({k: found[k] for k in shared}, {k: before[k] for k in shared})
            else "differs"
        )
    if equal(found, before):
        return "equal"
    if same:
        return "differs"
    layers = [key for key in before if "encoder.layer" in key and ".LayerNorm" not in key]
    if not all(torch.isfinite(found[key].float()).all() for key in layers if key in found):
        return "not finite"
    again = load(folder)
    mine = {key: found[key] for key in layers}
    return "plausible" if equal(mine, {key: again[key] for key in layers}) else "not the same twice"


def run(cases: int, seed: int, parent: Path) -> tuple[Counter[str], list[str]]:
    rng, counts, faults = random.Random(seed), Counter[str](), []
    sources = {}
    for noise in NOISES:
        compressed(noise).save_pretrained(parent / noise)
        sources[noise] = load(parent / noise)
    for number in range(cases):
        noise, folder = rng.choice(NOISES), parent / f"case{number}"
        shutil.copytree(parent / noise, folder)
        kind = rng.choice(
            [damage_record, damage_record, damage_config, damage_bytes, damage_tensor]
        )
        told = kind(folder, rng)
        forgotten = kind is damage_tensor and rng.random() < 0.5
        if forgotten:
            forget_digests(folder)
        result = verdict(folder, sources[noise], same=not forgotten, common=kind is damage_config)
        good = result in ("equal", "refused") or (forgotten and result == "plausible")
        counts[f"{kind.__name__}: {result if good else 'FAULT'}"] += 1
        if not good:
            faults.append(f"case {number} ({noise}): {told}: {result}")
        shutil.rmtree(folder)
    return counts, faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=200, help="repositories to damage")
    parser.add_argument("--seed", type=int, default=0, help="of the damages")
    arguments = parser.parse_args()
    quieten()
    with tempfile.TemporaryDirectory() as folder:
        counts, faults = run(arguments.cases, arguments.seed, Path(folder))
    for name, count in sorted(counts.items()):
        print(f"{count:6} {name}")
    print(*faults, sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
