"""Saves and pushes a compressed model or its parts, with what they need to load without hf_rmt."""

from __future__ import annotations

import copy
import logging
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from pathlib import Path
from typing import Any

from hf_rmt.checks import check_folder
from hf_rmt.huggingface.loader import PART
from hf_rmt.huggingface.saving.before_saving import make_savable, warn_of_latent
from hf_rmt.huggingface.saving.card import PICTURE, card_of, foreign_card
from hf_rmt.huggingface.saving.companions import (
    CHECKPOINT,
    has_config,
    write_companions,
    writes_card,
)
from hf_rmt.huggingface.saving.record import CompressionRecord, drop_records, is_record, sub_configs
from hf_rmt.nn.counterparts import compressed_layers
from hf_rmt.staging import staged

PUSH_OPTIONS = ("private", "commit_message", "commit_description", "revision", "create_pr", "tags")
NOT_OF_A_PUSH = ("save_peft_format", "distributed_checkpoint", "token")

logger = logging.getLogger(__name__)


def install_saving(model: Any) -> None:
    """Make `save_pretrained` and `push_to_hub` of a model add files to load it without hf_rmt."""
    # a partial can be copied and pickled; a bound method whose name the class lacks cannot
    model.save_pretrained = partial(_save_pretrained, model)
    model.push_to_hub = partial(_push_to_hub, model)


def _save_pretrained(
    model: Any,
    save_directory: str | Path,
    is_main_process: bool = True,
    state_dict: dict[str, Any] | None = None,
    push_to_hub: bool = False,
    max_shard_size: int | str = "50GB",
    variant: str | None = None,
    **kwargs: Any,
) -> None:
    """Save as `PreTrainedModel.save_pretrained` does; add files for loading without hf_rmt.

    All files are written into a temporary folder and moved at the end; see `hf_rmt.staging`.
    """
    check_folder("save_directory", save_directory)
    folder = Path(save_directory)
    make_savable(model, state_dict)
    if not CHECKPOINT.fullmatch(folder.name):
        warn_of_latent(model)
    repo_id = kwargs.pop("repo_id", folder.name)
    push = {key: kwargs.pop(key) for key in PUSH_OPTIONS if key in kwargs}
    options = {"max_shard_size": max_shard_size, "variant": variant, **kwargs}
    if kwargs.get("distributed_checkpoint"):  # every process writes a part of its own
        with _given(model, state_dict):
            type(model).save_pretrained(model, folder, is_main_process, **options)
        return
    if is_main_process:
        with staged(folder, stale=_stale(folder, variant)) as aside, _given(model, state_dict):
            type(model).save_pretrained(model, aside, state_dict=state_dict, **options)
            if has_config(aside):
                write_companions(model, aside, folder)
    else:  # this process helps to gather the weights and keeps no files
        with tempfile.TemporaryDirectory() as nowhere, _given(model, state_dict):
            type(model).save_pretrained(model, nowhere, False, state_dict=state_dict, **options)
    if is_main_process and push_to_hub:
        passed = {key: value for key, value in options.items() if key not in NOT_OF_A_PUSH}
        passed["state_dict"] = state_dict
        _push_to_hub(model, repo_id, token=kwargs.get("token"), save_options=passed, **push)


def _push_to_hub(
    model: Any,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    max_shard_size: int | str = "50GB",
    tags: list[str] | None = None,
    save_options: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """Push as `PreTrainedModel.push_to_hub` does, but with a generated model card.

    If a person wrote the card in the repository, it stays.
    """
    from transformers.utils.hub import hf_api

    make_savable(model, (save_options or {}).get("state_dict"))  # before a repository is made
    repo_id = hf_api().create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, **{"max_shard_size": max_shard_size, **(save_options or {})})
        if has_config(Path(folder)):
            card: Any = foreign_card(repo_id, token)
            card = card or card_of(model, Path(folder), repo_id=repo_id, token=token)
            card.data["tags"] = sorted({*(card.data.get("tags") or []), *(tags or [])})
            card.save(Path(folder, "README.md"))
        return model._upload_modified_files(
            folder, repo_id, files_timestamps={}, token=token, **kwargs
        )


@contextmanager
def _given(model: Any, state_dict: dict[str, Any] | None) -> Iterator[None]:
    """A context in which the tensors of `state_dict` are saved, not the model's own tensors.

    `state_dict` is what the caller passed to `save_pretrained`. None means the model's own tensors.
    """
    model.hf_quantizer.given_state = state_dict
    try:
        yield
    finally:
        model.hf_quantizer.given_state = None


def _stale(folder: Path, variant: str | None) -> Callable[[str], bool]:
    """Return a function that takes a file's name and says whether a new save must remove the file.

    The files to remove are the weights of the same variant (such as fp16), their index, and the
    picture on the generated card.

    If the old weights stayed, a save in one file would lie beside the shards of an earlier save, or
    shards beside an earlier single file. transformers would read the old weights.
    """
    picture = PICTURE if writes_card(folder) else ""
    middle = rf"\.{re.escape(variant)}" if variant else ""
    shard = r"-\d{5}-of-\d{5}"
    pattern = rf"model({middle}({shard})?|{shard}{middle})\.safetensors"
    index = rf"model\.safetensors\.index{middle}\.json"
    weights = re.compile(f"{pattern}|{index}")
    return lambda name: name == picture or weights.fullmatch(name) is not None


def keep_records_true(model_class: Any) -> None:
    """Make each transformers model save the record of its own layers and no other record.

    A record is the `quantization_config` that says how each layer was compressed.

    A dense model that was built from the config of a compressed one saves no record. A part of a
    compressed model saves the record of its own layers.

    Args:
        model_class: `PreTrainedModel`.
    """
    save = model_class.save_pretrained
    if getattr(save, "keeps_records_true", False):
        return

    @wraps(save)
    def save_pretrained(model: Any, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        own = getattr(model, "hf_quantizer", None)
        if own is None and PART not in model.__dict__ and compressed_layers(model):
            from hf_rmt.huggingface.conclude import adopt

            adopt(model)  # a part of the model was compressed by itself
            return model.save_pretrained(save_directory, *args, **kwargs)
        if own is not None or (not _is_recorded(model.config) and PART not in model.__dict__):
            return save(model, save_directory, *args, **kwargs)
        if PART in model.__dict__:
            with _on_its_own(model):
                return _save_pretrained(model, save_directory, *args, **kwargs)
        _warn_of_unused(model)
        with _config_of_its_own(model):
            drop_records(model.config)
            return save(model, save_directory, *args, **kwargs)

    save_pretrained.keeps_records_true = True  # type: ignore[attr-defined]
    model_class.save_pretrained = save_pretrained


def _is_recorded(config: Any) -> bool:
    """Whether a config, or the config of a part, holds a record of how layers were compressed."""
    if is_record(getattr(config, "__dict__", {}).get("quantization_config")):
        return True
    return any(_is_recorded(part) for part in sub_configs(config).values())


def _warn_of_unused(model: Any) -> None:
    """Warn if the `RMTConfig` in a model's config was never used to compress the model."""
    held = getattr(model.config, "__dict__", {}).get("quantization_config")
    if isinstance(held, CompressionRecord) and held.layers is None:
        logger.warning(
            "%s is saved dense: its config holds an RMTConfig with which nothing was "
            "compressed; call hf_rmt.compress(model, config) and save again, or load the model "
            "with the config for one part, such as encoder_quantization_config=config in "
            "from_encoder_decoder_pretrained",
            type(model).__name__,
        )


@contextmanager
def _config_of_its_own(model: Any) -> Iterator[None]:
    """A context in which a model has a copy of its config, which may be changed.

    At the end, the model gets its unchanged config back.
    """
    shared = model.config
    model.config = copy.deepcopy(shared)
    try:
        yield
    finally:
        model.config = shared


@contextmanager
def _on_its_own(part: Any) -> Iterator[None]:
    """A context in which a part of a compressed model can be saved as a model of its own.

    In it, the part has a quantizer and the record of how its own layers were compressed.
    """
    from hf_rmt.huggingface.quantizer import RMTQuantizer

    record = copy.deepcopy(part.__dict__[PART])
    with _config_of_its_own(part):
        drop_records(part.config)
        part.hf_quantizer = RMTQuantizer(record, pre_quantized=True)
        part.config.quantization_config = part.hf_quantizer.quantization_config
        try:
            yield
        finally:
            del part.hf_quantizer
