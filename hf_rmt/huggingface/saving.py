"""What a saved or pushed model carries beside its tensors: alarm, remote code, card, picture."""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from hf_rmt.huggingface.card import CARD_TAG, PICTURE, card_of, draw_picture, foreign_card
from hf_rmt.huggingface.loader import ALARM
from hf_rmt.huggingface.lora.merged import record_ranks
from hf_rmt.huggingface.remote_code import REMOTE_CONFIG, REMOTE_FILE, remote_code

PUSH_OPTIONS = ("private", "commit_message", "commit_description", "revision", "create_pr", "tags")


def install_saving(model: Any) -> None:
    """Make `save_pretrained` and `push_to_hub` of one model write what loads everywhere."""
    # partials, unlike bound methods of a name that the class lacks, can be copied and pickled
    model.save_pretrained = partial(_save_pretrained, model)
    model.push_to_hub = partial(_push_to_hub, model)


def _save_pretrained(
    model: Any,
    save_directory: str | Path,
    is_main_process: bool = True,
    push_to_hub: bool = False,
    **kwargs: Any,
) -> None:
    """`PreTrainedModel.save_pretrained`, and the files that make the folder load anywhere."""
    folder = Path(save_directory)
    if folder.is_file():
        raise NotADirectoryError(f"save_directory must be a folder, {folder} is a file")
    repo_id = kwargs.pop("repo_id", folder.name)
    push = {key: kwargs.pop(key) for key in PUSH_OPTIONS if key in kwargs}
    record_ranks(model)
    type(model).save_pretrained(model, save_directory, is_main_process=is_main_process, **kwargs)
    if is_main_process:
        _write_companions(model, folder)
        if push_to_hub:
            _push_to_hub(model, repo_id, token=kwargs.get("token"), **push)


def _push_to_hub(
    model: Any,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    max_shard_size: int | str = "50GB",
    tags: list[str] | None = None,
    **kwargs: Any,
) -> Any:
    """`PreTrainedModel.push_to_hub` with the generated card in place of an empty template."""
    from transformers.utils.hub import hf_api

    repo_id = hf_api().create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        card: Any = foreign_card(repo_id, token)
        card = card or card_of(model, Path(folder), repo_id=repo_id, token=token)
        card.data["tags"] = sorted({*(card.data.get("tags") or []), *(tags or [])})
        card.save(Path(folder, "README.md"))
        return model._upload_modified_files(
            folder, repo_id, files_timestamps={}, token=token, **kwargs
        )


def _write_companions(model: Any, folder: Path) -> None:
    """Alarm and remote code into the folder, and a card unless the user has written one."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["auto_map"] = {**(config.get("auto_map") or {}), "AutoConfig": REMOTE_CONFIG}
    if not config.get("output_attentions"):  # those models refuse any but eager attention
        config["attn_implementation"] = ALARM
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / REMOTE_FILE).write_text(remote_code(), encoding="utf-8")
    readme = folder / "README.md"
    if not readme.exists() or CARD_TAG in (ModelCard.load(readme).data.get("tags") or []):
        draw_picture(model, folder / PICTURE)
        card_of(model, folder).save(readme)
