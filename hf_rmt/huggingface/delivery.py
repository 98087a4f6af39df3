"""Checks early that the command line can write its output, and writes the output at the end."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined] # lacks __all__

from hf_rmt.checks import check_folder, check_path
from hf_rmt.huggingface.saving.companions import CARD, writes_card
from hf_rmt.huggingface.source import (
    ADAPTER,
    CONFIG,
    OF_ONE_MODEL,
    WEIGHTS,
    carry,
    holds_model,
    processors,
)
from hf_rmt.staging import staged


def check_output(output: str | None, sources: Sequence[str], *, overwrite: bool) -> None:
    """Refuse a target folder that is an input, holds another model, or cannot be written to.

    Args:
        output: The target folder; None if there is none.
        sources: The folders or Hub ids that will be read.
        overwrite: Whether a model in the target may be replaced.

    Raises:
        ValueError: If the target is one of the sources, or its name is empty.
        FileExistsError: If the target holds a model that may not be replaced.
        OSError: If the target cannot be written to.
    """
    if output is None:
        return
    check_path("OUTPUT", output)
    target = Path(output)
    for source in sources:
        if target.resolve() == Path(source).resolve():
            raise ValueError(
                f"OUTPUT {target} is the folder that is read, so its model would be lost; choose "
                "another folder"
            )
    if holds_model(target) and not overwrite:
        raise FileExistsError(
            f"OUTPUT {target} holds a model already; choose another folder, or pass --overwrite"
        )
    check_writable(output)


def check_writable(folder: str | None, *, argument: str = "OUTPUT") -> None:
    """Check before the long work whether a folder can be written to.

    Args:
        folder: The folder; None if nothing is written.
        argument: The name of the argument for this folder, for the messages.

    Raises:
        NotADirectoryError: If the path is a file or lies below a file.
        PermissionError: If nothing can be written there.
        ValueError: If the name is empty.
    """
    if folder is None:
        return
    there = check_folder(argument, folder)
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"0")
    except OSError as error:
        raise PermissionError(
            f"{argument} {folder} cannot be written to ({error.strerror}); choose another folder"
        ) from error


def check_repo(repo: str | None) -> None:
    """Refuse, before the long work, a text that cannot be the name of a repository on the Hub.

    Args:
        repo: The name; None if nothing is pushed.

    Raises:
        ValueError: If the Hub does not allow this name.
    """
    if repo is None:
        return
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(
            f"--push-to-hub must be the name of a repository, owner/name or name, got {repo!r}: "
            f"{error}"
        ) from error


def deliver(
    result: Any, source: str, output: str | None, *, repo: str | None, private: bool | None
) -> Iterator[str]:
    """Write a model or an adapter and the files of its source to a folder, to the Hub, or to both.

    Args:
        result: The model or adapter, with `save_pretrained` and `push_to_hub`.
        source: Folder or Hub id with the tokenizer and the other files.
        output: The folder; None for no folder. All files are written into a temporary folder first
            and moved at the end.
        repo: The repository; None for no repository.
        private: Whether a new repository is private.

    Yields:
        Lines for the user that say what was done.
    """
    parts = (result, *processors(source))
    with tempfile.TemporaryDirectory() as nowhere:
        target = Path(output or Path(nowhere, "model"))
        theirs = not writes_card(target)
        with staged(target, stale=partial(_is_stale, keep=CARD if theirs else "")) as folder:
            for part in parts:
                part.save_pretrained(folder)
            copied, left = carry(source, folder)
            if theirs:
                (folder / CARD).unlink(missing_ok=True)
        if output:
            yield f"written to {output}"
        if left:
            yield f"not copied from {source}: {', '.join(left)}"
        if repo:
            yield f"pushing to {repo}"
            for part in parts:
                part.push_to_hub(repo, private=private)
            _push_files(target, copied, repo)
            yield f"pushed to {repo}"


def _is_stale(name: str, *, keep: str) -> bool:
    """Whether a file in the target folder belongs to the replaced model and must be removed.

    `name` is the name of the file. Configs, weights and cards are such files; the file `keep`
    stays.
    """
    of_it = name in (CONFIG, ADAPTER) or WEIGHTS.fullmatch(name) or OF_ONE_MODEL.fullmatch(name)
    return name != keep and bool(of_it)


def _push_files(folder: Path, names: list[str], repo: str) -> None:
    """Push the files `names` of a folder to a repository of the Hub; do nothing without names."""
    if names:
        api = HfApi()
        repo_id = api.create_repo(repo, exist_ok=True).repo_id
        api.upload_folder(repo_id=repo_id, folder_path=folder, allow_patterns=names)
