"""Checks if a folder or Hub id holds a readable model; copies its tokenizer and other files."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import AutoImageProcessor, AutoTokenizer
from transformers.tokenization_utils_base import (
    FULL_TOKENIZER_FILE,
    TOKENIZER_CONFIG_FILE,
    PreTrainedTokenizerBase,
)
from transformers.utils import has_file

from hf_rmt.huggingface.saving.card import PICTURE
from hf_rmt.huggingface.saving.record import QUANT_METHOD, REMOTE_MODULE

CONFIG, ADAPTER, MODULES = "config.json", "adapter_config.json", "modules.json"
WEIGHTS = re.compile(
    r".*\.(safetensors|bin|h5|msgpack|ot|onnx|onnx_data|pt|pth|ckpt|gguf|tflite|mlmodel|npz)"
    r"|.*(safetensors|bin)\.index(\..+)?\.json"
)
"""Names of files with weights in any format, and of the index files of shards."""
OF_ONE_MODEL = re.compile(
    rf"README\.md|{re.escape(PICTURE)}|{REMOTE_MODULE}\.py|optimizer\.pt|scheduler\.pt|"
    r"rng_state.*\.pth|trainer_state\.json|training_args\.bin|all_results\.json|"
    r"(train|eval|test)_results\.json"
)
"""Names of files that describe one model, such as its card, and are wrong for any other model."""
ADAPTER_WEIGHTS = re.compile(r"adapter_model\..*")
"""Names of the files with the weights of an adapter."""
FOLDERS_LEFT = re.compile(r"checkpoint-\d+|runs|\..*|__pycache__")


def check_source(path: str | PathLike[str]) -> None:
    """Refuse a local path that holds no transformers model, and say what it holds instead.

    Raises:
        ValueError: If the path holds weights in a form that cannot be read here.
        OSError: If the path is a file, or a folder without a model.
    """
    if not str(path).strip():
        raise ValueError("the name of the model is empty; pass a folder or a Hub id")
    place = Path(path)
    if place.suffix == ".gguf" or (place.is_dir() and _only_gguf(place)):
        raise ValueError(
            f"{place} holds a GGUF file, whose weights are quantized already; pass the folder of "
            "the model that it was made from"
        )
    if place.is_file():
        raise OSError(f"{place} is a file; pass the folder of the model, which holds {CONFIG}")
    if not place.is_dir():
        return
    if (place / ADAPTER).exists() and not _has_weights(place, besides=ADAPTER_WEIGHTS):
        raise ValueError(
            f"{place} holds an adapter and no model; merge it into its base first: "
            "PeftModel.from_pretrained(base, folder).merge_and_unload().save_pretrained(new)"
        )
    if (place / CONFIG).exists():
        return
    raise OSError(
        f"{place} is a folder without {CONFIG}, so it holds no transformers model; pass the folder "
        "that save_pretrained has written"
    )


def check_entries(entries: Mapping[str, Any]) -> None:
    """Refuse a config.json with a malformed `quantization_config`.

    Args:
        entries: The entries of config.json.

    Raises:
        TypeError: If its `quantization_config` is no mapping.
    """
    quantization = entries.get("quantization_config")
    if not isinstance(quantization, dict | None):
        raise TypeError(
            f"quantization_config must be a mapping, got {quantization!r}; remove it if the "
            "weights are not quantized"
        )


def check_method(path: str | PathLike[str], quantization: Any) -> None:
    """Refuse a model that another method has quantized.

    Args:
        path: The folder or Hub id of the model, for the message.
        quantization: The `quantization_config` of the model, or None.

    Raises:
        ValueError: If the config belongs to another method.
    """
    if quantization is None:
        return
    given = quantization if isinstance(quantization, dict) else vars(quantization)
    method = given.get("quant_method") or ("bitsandbytes" if "load_in_8bit" in given else None)
    method = getattr(method, "value", method)
    if method != QUANT_METHOD:
        raise ValueError(
            f"{path} is quantized with {method!r}; hf_rmt reads full-precision weights: pass the "
            "model that it was made from, or dequantize and save it first"
        )


def holds_model(folder: Path) -> bool:
    """Whether a folder holds a model or an adapter of any format."""
    if not folder.is_dir():
        return False
    names = [entry.name for entry in folder.iterdir()]
    return any(name in (CONFIG, ADAPTER) or WEIGHTS.fullmatch(name) for name in names)


def carry(source: str | PathLike[str], target: Path) -> tuple[list[str], list[str]]:
    """Copy files that a save did not write: sentence encoder modules, vocabularies, templates.

    The configs of models and of adapters are not copied. If a folder with an adapter had the config
    of a model, transformers would take it for a model, and the other way round.

    Args:
        source: Folder or Hub id of the model.
        target: Folder in which the new model and its tokenizer have been saved.

    Returns:
        Two lists of names: the files that were copied, and what was left out. The second list has
        weights, the source's config and card, files that a training wrote, and folders with another
        model.
    """
    folder = _local(source)
    if folder is None:
        return [], []
    modules = _modules(folder)
    others = _other_models(folder, modules)
    copied, left = [], [f"{name.as_posix()}/" for name in others]
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if any(name.is_relative_to(other) for other in others):
            continue
        if not path.is_file() or any(FOLDERS_LEFT.fullmatch(part) for part in name.parts):
            continue
        if (target / name).exists():
            continue
        module = name.parts[0] in modules
        config = str(name) in (CONFIG, ADAPTER)
        of_source = WEIGHTS.fullmatch(path.name) or OF_ONE_MODEL.fullmatch(path.name)
        if config or (of_source and not module):
            left.append(name.as_posix())
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / name)
        copied.append(name.as_posix())
    return copied, left


def _other_models(folder: Path, modules: set[str]) -> list[Path]:
    """Folders inside a model's folder that hold another model, such as an earlier output.

    Folders of a sentence encoder's modules (`modules`) and of checkpoints do not count. The paths
    are relative to `folder`.
    """
    found = {
        path.relative_to(folder).parent
        for path in folder.rglob("*")
        if path.name == CONFIG and path.parent != folder and _has_weights(path.parent)
    }
    kept = (name for name in sorted(found) if name.parts[0] not in modules)
    return [name for name in kept if not any(FOLDERS_LEFT.fullmatch(part) for part in name.parts)]


def _has_weights(folder: Path, *, besides: re.Pattern[str] | None = None) -> bool:
    names = [entry.name for entry in folder.iterdir() if entry.is_file()]
    return any(WEIGHTS.fullmatch(n) and not (besides and besides.fullmatch(n)) for n in names)


def _modules(folder: Path) -> set[str]:
    """Names of the folders inside `folder` that hold the modules of a sentence encoder.

    They belong to the model, so their weights are copied too. For other models the set is
    empty.
    """
    try:
        entries = json.loads((folder / MODULES).read_text(encoding="utf-8"))
        return {Path(entry["path"]).parts[0] for entry in entries if entry["path"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _local(source: str | PathLike[str]) -> Path | None:
    """The folder of a model on this machine; a Hub id is downloaded without its weights.

    It is None if the Hub id cannot be read.
    """
    if Path(source).is_dir():
        return Path(source)
    formats = ("safetensors", "bin", "h5", "msgpack", "ot", "onnx", "onnx_data", "pt", "gguf")
    try:
        found = snapshot_download(
            str(source), ignore_patterns=[f"*.{kind}" for kind in formats] + ["*/*.pb", "*.tflite"]
        )
    except (OSError, ValueError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError):
        return None
    return Path(found)


def _only_gguf(folder: Path) -> bool:
    return not (folder / CONFIG).exists() and any(folder.glob("*.gguf"))


def processors(source: str | PathLike[str]) -> list[Any]:
    """List the tokenizer and the image processor of a folder or Hub id, if they exist."""
    found = []
    for processor in (AutoTokenizer, AutoImageProcessor):
        try:
            found.append(processor.from_pretrained(source, trust_remote_code=False))
        except (OSError, ValueError, ImportError):
            continue
    return [part for part in found if not _is_made_up(part, source)]


def _is_made_up(part: Any, source: str | PathLike[str]) -> bool:
    """Whether `part` is the empty tokenizer that transformers makes if no tokenizer was saved."""
    if not isinstance(part, PreTrainedTokenizerBase) or not part.vocab_files_names:
        return False  # tokenizers of bytes or characters need no file
    files = (TOKENIZER_CONFIG_FILE, FULL_TOKENIZER_FILE, *part.vocab_files_names.values())
    return not any(has_file(source, file) for file in files)
