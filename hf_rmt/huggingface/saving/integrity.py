"""Checks that a record and its weights are complete and come from the same save.

A record is the `quantization_config` in the config.json of a compressed model. This module is part
of `hf_rmt_remote.py`, the code file that is saved with a compressed model.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_rmt.nn.counterparts import compressed_layers
from hf_rmt.nn.layers.compressed_layer import CompressedLayer
from hf_rmt.nn.layers.ternary import TernaryLinear
from hf_rmt.nn.stores.codebooks import CODEBOOKS, FINE_CODES, TRITS
from hf_rmt.nn.stores.noise_store import NoiseStore

STORED = {"codes": "U8", "fine": "U8", "coarse": "U8", "base": "I32"}
"""The dtype that a safetensors file must give for each tensor of a layer's packed noise, by the
name of the tensor (see `NoiseStore`). U8 is an unsigned byte, and I32 an integer of 32 bits."""


def digest_of(layers: Mapping[str, Any]) -> str:
    """A short SHA-256 digest of `layers`, which says how each layer of a model was compressed."""
    text = json.dumps(layers, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest_of_file(path: str | Path) -> str:
    """The SHA-256 of a file, as `sha256sum` and the Hub show it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_one_save(record: Any, files: Iterable[str | Path]) -> None:
    """Refuse a record of a compression that was changed, or weights that come from another save.

    Args:
        record: The `quantization_config` that was read from config.json.
        files: The files with the weights.

    Raises:
        ValueError: If a digest differs from the recorded one. A record without digests passes.
    """
    digest = getattr(record, "digest", None)
    if digest is not None and digest != digest_of(record.layers):
        raise ValueError(
            "config.json: quantization_config.layers was changed after it was saved: its digest "
            "differs. Get the file again, or, if you changed it on purpose, remove the field "
            "'digest' from quantization_config"
        )
    known = getattr(record, "files", None)
    if known is None:
        return
    if not isinstance(known, dict):
        raise ValueError(
            f"config.json, quantization_config.files must be a mapping of names to digests, got "
            f"{known!r}; get the file again"
        )
    for path in map(Path, files):
        if known.get(path.name) != digest_of_file(path):
            raise ValueError(
                f"config.json and {path.name} do not come from the same save: the SHA-256 "
                f"of {path.name} is not the recorded one. The file is damaged or of another model. "
                "Get both files again. If you rewrote the weights yourself, remove the field "
                "'files' from quantization_config"
            )


def check_types(files: Iterable[str | Path]) -> None:
    """Refuse files in which the integer codes of stored noise have a wrong dtype.

    `NoiseStore` explains these codes. transformers would convert them without an error.

    Args:
        files: The files with the weights. Only safetensors files are checked.

    Raises:
        ValueError: If a tensor with packed noise has another dtype than `STORED` says.
    """
    for path in map(Path, files):
        for name, entry in _header(path).items():
            layer, _, key = name.rpartition(".noise.")
            wanted = STORED.get(key) if layer else None
            if wanted and entry.get("dtype") != wanted:
                raise ValueError(
                    f"layer {layer!r}: tensor {name!r} of {path.name} has dtype "
                    f"{entry.get('dtype')} instead of {wanted}; the file is damaged, so get it "
                    "again"
                )


def names_of_tensors(files: Iterable[str | Path]) -> set[str]:
    """The names of all tensors in safetensors files; other files are skipped."""
    return {name for path in map(Path, files) for name in _header(path)}


def _header(path: Path) -> dict[str, Any]:
    """What the header of a safetensors file says about each tensor (dtype, shape), by its name.

    The result is empty for other files and for unreadable headers.
    """
    if path.suffix != ".safetensors":
        return {}
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            content = json.loads(file.read(size)) if size < path.stat().st_size else {}
    except ValueError:
        return {}  # transformers says what is wrong
    entries = content.items() if isinstance(content, dict) else ()
    return {name: entry for name, entry in entries if isinstance(entry, dict)}


def kinds_of_tensors(model: nn.Module) -> dict[str, tuple[torch.dtype, torch.Size]]:
    """Dtype and shape of each tensor of the compressed layers, by its name in the model."""
    return {
        f"{name}.{key}": (tensor.dtype, tensor.shape)
        for name, layer in compressed_layers(model).items()
        for key, tensor in layer.state_dict(keep_vars=True).items()
    }


def check_found(model: nn.Module, missing: Iterable[str], where: str) -> None:
    """Refuse a file that lacks tensors of a compressed layer.

    Args:
        model: The model, with its compressed layers.
        missing: Names of the tensors that the file lacks, or holds in another shape.
        where: The name of the file, for the error message.

    Raises:
        ValueError: If one of these tensors belongs to a compressed layer.
    """
    for owner, key in _owned(model, missing):
        latent = isinstance(model.get_submodule(owner), TernaryLinear)
        also = "; a checkpoint of TernaryCallback can only resume its training" if latent else ""
        raise ValueError(
            f"layer {owner!r}: {where} has no tensor {key!r} of the recorded shape; the file is "
            f"damaged or of another model, so get it again{also}"
        )


def check_none_extra(model: nn.Module, unexpected: Iterable[str], where: str) -> None:
    """Refuse a file that holds additional tensors for a compressed layer.

    transformers would ignore these tensors. The layer would then compute something else than
    before it was saved.

    Args:
        model: The model, with its compressed layers.
        unexpected: Names of the tensors in the file that the model does not have.
        where: The name of the file, for the error message.

    Raises:
        ValueError: If one of these tensors belongs to a compressed layer.
    """
    for owner, key in _owned(model, unexpected):
        raise ValueError(
            f"layer {owner!r}: {where} holds {key!r}, and a {type(model).__name__} that is made "
            "from its config.json has no such tensor, so something was added to the layer before "
            "it was saved; remove it there and save again, or load into a model that has it too"
        )


def check_none_left(mismatched: Iterable[tuple[str, Any, Any]], where: str) -> None:
    """Refuse a compressed tensor for which this model has a dense (not compressed) layer.

    With `ignore_mismatched_sizes=True` transformers would give the dense layer random weights.

    Args:
        mismatched: Each tensor whose shapes differ: name, shape in the file, shape in the model.
        where: The name of the file, for the error message.

    Raises:
        ValueError: If one of these tensors is the weight of a compressed layer.
    """
    for key, found, wanted in mismatched:
        if len(wanted) < 2 or not key.endswith("weight"):
            continue
        out, columns = wanted[0], math.prod(wanted[1:])
        spiked = len(found) == 2 and found[1] == out + columns
        ternary = tuple(found) == (-(-out * columns // 5),)
        if spiked or ternary:
            raise ValueError(
                f"{key!r} of {where} belongs to a compressed layer, but this model has a dense "
                "layer there; load the model with the class it was saved from"
            )


def check_values(
    model: nn.Module, expected: Mapping[str, tuple[torch.dtype, torch.Size]], where: str
) -> None:
    """Refuse compressed layers whose tensors were damaged in the file.

    Args:
        model: The loaded model.
        expected: What `kinds_of_tensors` returned before the weights were loaded.
        where: The name of the file, for the error message.

    Raises:
        ValueError: If a tensor has another dtype or shape, is not finite, or holds codes (integers
            that stand for entries of a weight) that saving never writes.
    """
    for name, layer in compressed_layers(model).items():
        state = layer.state_dict(keep_vars=True)
        for key, tensor in state.items():
            full = f"{name}.{key}"
            if full in expected and (fault := _fault(tensor, *expected[full])):
                raise _damaged(name, key, fault, where)
        for key, fault in _faulty_codes(layer):
            raise _damaged(name, key, fault, where)


def _damaged(name: str, key: str, fault: str, where: str) -> ValueError:
    return ValueError(
        f"layer {name!r}: tensor {f'{name}.{key}'!r} of {where} {fault}; the file is damaged, so "
        "get it again"
    )


def _fault(tensor: torch.Tensor, dtype: torch.dtype, shape: torch.Size) -> str:
    """What is wrong with a loaded tensor, in words for an error; empty if nothing is wrong.

    The tensor must have `dtype` and `shape`, and no nan or inf. All floating dtypes count as equal.
    """
    if tensor.is_floating_point() != dtype.is_floating_point or (
        not dtype.is_floating_point and tensor.dtype != dtype
    ):
        return f"has dtype {tensor.dtype} instead of {dtype}"
    if tensor.shape != shape:
        return f"has shape {tuple(tensor.shape)} instead of {tuple(shape)}"
    if tensor.device.type == "meta" or not dtype.is_floating_point:
        return ""
    return "" if bool(torch.isfinite(tensor).all()) else "holds nan or inf"


def _faulty_codes(layer: CompressedLayer) -> Iterable[tuple[str, str]]:
    """Yield (name, fault) for each tensor of a layer with values that saving never writes.

    Integer codes and scales are checked. Codes stand for the entries of the noise (`NoiseStore`
    explains them and the scales) or of a ternary weight (entries -1, 0, 1). `fault` is the text for
    an error message.
    """
    packed = layer.weight if isinstance(layer, TernaryLinear) else None
    if packed is not None and packed.dim() == 1 and _most(packed) >= len(TRITS):
        yield "weight", "holds invalid codes"
    store = getattr(layer, "noise", None)
    if not isinstance(store, NoiseStore) or store.kind not in CODEBOOKS:
        return
    if store.base.device.type != "meta":
        base = float(store.base.view(torch.float32))
        if not 0 <= base < float("inf"):
            yield "noise.base", f"is the scale {base}, which must be finite and not negative"
    if _most(store.coarse) > 256 - FINE_CODES:
        yield "noise.coarse", "holds invalid codes of scales"
    if store.kind == "ternary" and _most(store.codes) >= len(TRITS):
        yield "noise.codes", "holds codes that stand for no weights"


def _most(codes: torch.Tensor) -> int:
    """The largest byte in a tensor of integers; 0 if the tensor is empty or not loaded yet."""
    if codes.device.type == "meta" or not codes.numel():
        return 0
    return int(codes.view(torch.uint8).amax())


def _owned(model: nn.Module, keys: Iterable[str]) -> Iterable[tuple[str, str]]:
    """Yield (layer, tensor) for each name in `keys` that belongs to a compressed layer.

    Both are full names, such as `encoder.fc` and `encoder.fc.weight`.
    """
    names = compressed_layers(model)
    for key in sorted(keys):
        if owner := next((name for name in _above(key) if name in names), None):
            yield owner, key


def _above(key: str) -> Iterable[str]:
    """The names of all modules around the tensor `key`, the innermost module first.

    For "a.b.weight" these are "a.b", "a" and "", the model itself.
    """
    parts = key.split(".")
    return (".".join(parts[:end]) for end in range(len(parts) - 1, -1, -1))
