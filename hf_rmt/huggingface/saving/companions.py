"""Adds to a saved model what is not a tensor: code file, digests, alarm, card and its picture.

The module `alarm` beside this one describes the alarm, and `remote_code` the code file.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from hf_rmt.huggingface.saving.alarm import ALARM
from hf_rmt.huggingface.saving.card import CARD_TAG, PICTURE, card_of, picture_of
from hf_rmt.huggingface.saving.integrity import digest_of, digest_of_file
from hf_rmt.huggingface.saving.record import OWN_CONFIG, REMOTE_MODULE, sub_configs
from hf_rmt.huggingface.saving.remote_code import (
    REMOTE_CONFIG,
    REMOTE_FILE,
    remote_code,
    version_of_code,
)
from hf_rmt.plan import CompressionPlan

logger = logging.getLogger(__name__)

CONFIG, CARD = "config.json", "README.md"
CHECKPOINT = re.compile(r"checkpoint-\d+")
"""Names of the checkpoint folders of a `Trainer`. A model card there gets no picture, because
drawing it takes seconds."""


def has_config(folder: Path) -> bool:
    """Whether `folder` has a config.json: it has none if only an adapter was saved."""
    return (folder / CONFIG).exists()


def write_companions(model: Any, folder: Path, target: Path) -> None:
    """Add the code file, the card and more entries of config.json to a saved model.

    With the code file, the model loads without this package.

    Args:
        model: The compressed model.
        folder: The folder into which the config and the weights of the model have been written.
        target: The folder into which all files will be moved. If a person wrote a card there, the
            card is not changed.
    """
    (folder / REMOTE_FILE).write_text(remote_code(), encoding="utf-8")
    _complete_config(model, folder, target)
    try:
        _write_card(model, folder, target)
    except Exception as error:
        logger.warning("the model is saved, but not its card: %s: %s", type(error).__name__, error)
        (folder / CARD).unlink(missing_ok=True)


def _complete_config(model: Any, folder: Path, target: Path) -> None:
    """Add what loading needs to a saved config.json: alarm, file digests, name of the code file.

    The alarm is a text that stops loading where neither this package nor the code file is used
    (see the module `remote_code`). `folder` holds the new files, and `target` may hold files of an
    earlier save.
    """
    path = folder / CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    config["auto_map"] = _with_ours(config.get("auto_map") or {})
    record = config["quantization_config"]
    record["files"] = _other_variants(record, target) | {
        file.name: digest_of_file(file) for file in sorted(folder.glob("*.safetensors"))
    }
    record["digest"], record["code"] = digest_of(record["layers"]), version_of_code()
    _alarm(config)
    _complete_parts(model, config, record)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _with_ours(auto_map: dict[str, Any]) -> dict[str, Any]:
    """Return the `auto_map` of a config.json with `REMOTE_CONFIG` under the key `AutoConfig`.

    `REMOTE_CONFIG` names a class of the code file (see the module `remote_code`). If the user has a
    class under this key, it moves to the key `OWN_CONFIG`.
    """
    before = auto_map.get("AutoConfig")
    own = {} if before is None or REMOTE_MODULE in str(before) else {OWN_CONFIG: before}
    return {**auto_map, **own, "AutoConfig": REMOTE_CONFIG}


def _alarm(config: dict[str, Any]) -> None:
    if not config.get("output_attentions"):  # such models accept only eager attention
        config["attn_implementation"] = ALARM


def _other_variants(record: dict[str, Any], target: Path) -> dict[str, str]:
    """Digests of files with weights that already lie in `target`, such as an fp16 variant.

    They are read from the config.json in `target`. `record` is the `quantization_config` of the new
    save. If config.json records other layers than `record`, the result is empty.
    """
    try:
        before = json.loads((target / CONFIG).read_text(encoding="utf-8"))["quantization_config"]
        files = before["files"] if before["layers"] == record["layers"] else {}
        return {name: digest for name, digest in files.items() if (target / name).exists()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _complete_parts(model: Any, config: dict[str, Any], record: dict[str, Any]) -> None:
    """Write into the config of each part of a model how the layers of this part were compressed.

    So the part, such as an image encoder, can be loaded alone. `config` is the model's config,
    which holds the configs of the parts. `record` is the `quantization_config` of the whole model.
    """
    plan = CompressionPlan.from_dict(record["layers"])
    for key, part in sub_configs(model.config).items():
        inner = config.get(key)
        if not isinstance(inner, dict):
            continue
        inner.pop("quantization_config", None)
        layers = _layers_of(model, part, plan)
        if layers:
            inner["quantization_config"] = record | {"layers": layers, "digest": digest_of(layers)}
            _alarm(inner)


def _layers_of(model: Any, config: Any, plan: CompressionPlan) -> dict[str, Any]:
    """The records in `plan` about the layers of one part of a model, by their names in the part.

    `plan` says how each layer of the whole model was compressed. A part is a submodule that has
    `config` as its config. For example, in the part `encoder` the layer `encoder.fc` has the name
    `fc`.
    """
    found: dict[str, Any] = {}
    outer: list[str] = []
    for name, module in model.named_modules():
        mine = name and getattr(module, "config", None) is config
        if mine and not any(name.startswith(f"{other}.") for other in outer):
            outer.append(name)
    for name in outer:
        below = [layer for layer in plan if layer.name.startswith(f"{name}.")]
        own = (replace(layer, name=layer.name.removeprefix(f"{name}.")) for layer in below)
        found |= CompressionPlan(tuple(own)).to_dict()
    return found


def _write_card(model: Any, folder: Path, target: Path) -> None:
    """Write a model card and its picture into `folder`, unless a person wrote a card in `target`.

    The files in `folder` are moved to `target` later. Checkpoints of a Trainer get no picture.
    """
    if not writes_card(target):
        return
    picture = folder / PICTURE
    if not CHECKPOINT.fullmatch(target.name):
        content = picture_of(model)
        if content:
            picture.write_bytes(content)
    card_of(model, folder).save(folder / CARD)


def writes_card(target: Path) -> bool:
    """Whether a card may be written: the folder has no card, or only a generated card."""
    return not (target / CARD).exists() or is_generated(target / CARD)


def is_generated(readme: Path) -> bool:
    """Whether this package generated a card. An unreadable card counts as a person's own."""
    try:
        return CARD_TAG in (ModelCard.load(readme).data.get("tags") or [])
    except Exception as error:
        logger.warning(
            "%s cannot be read as a model card (%s: %s); it is not changed",
            readme,
            type(error).__name__,
            str(error).splitlines()[0] if str(error) else "",
        )
        return False
