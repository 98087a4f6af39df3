"""Writes complete files and folders: first under a temporary name, which is changed at the end.

A run that is interrupted leaves the old file or the new file, never a part of one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_rmt.report.figures.style import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def replaced(path: str | Path) -> Iterator[Path]:
    """Give a temporary path; its file replaces `path` if the `with` block ends without an error.

    Args:
        path: The file to write. Its folder is made if it does not exist.

    Yields:
        The temporary path, in the same folder and with the same ending.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.stem}.{os.getpid()}.part{target.suffix}")
    try:
        yield part
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def replaced_folder(path: str | Path, *, keep: bool = True) -> Iterator[Path]:
    """Give a temporary folder; it replaces `path` if the `with` block ends without an error.

    The old folder is then removed with all its files. Use this only for folders that belong to the
    recipe alone.

    Args:
        path: The folder to write.
        keep: Whether this process writes. If there are several processes, one of them must write;
            the others only get the same path.

    Yields:
        The folder to write into. It is the same in all processes.
    """
    target = Path(path).resolve()
    part, old = (target.with_name(f".{target.name}.{kind}") for kind in ("part", "old"))
    if not keep:
        yield part
        return
    if old.exists() and not target.exists():  # killed between the two renames
        old.rename(target)
    for left in (part, old):
        shutil.rmtree(left, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        with _uninterrupted():
            if target.exists():
                target.rename(old)
            part.rename(target)
    finally:
        for left in (part, old):
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def replaced_files(path: str | Path, *, keep: bool = True) -> Iterator[Path]:
    """Give a temporary folder; its files move to `path` if the `with` block ends without an error.

    Other files of the folder stay there. Use this for a folder that the user named.

    Args:
        path: The folder to write into.
        keep: Whether this process writes, as for `replaced_folder`.

    Yields:
        The folder to write into. It is the same in all processes.
    """
    target = Path(path).resolve()
    part = target.with_name(f".{target.name}.part")
    if not keep:
        yield part
        return
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        files = [file for file in part.rglob("*") if file.is_file()]
        with _uninterrupted():
            # weights are moved before the config that describes them
            for file in sorted(files, key=lambda file: (file.name == "config.json", file)):
                place = target / file.relative_to(part)
                place.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, place)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Make Ctrl-C and SIGTERM wait until the block has ended, if this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def write_text(path: str | Path, text: str) -> None:
    """Write a text with one newline at its end."""
    with replaced(path) as part:
        part.write_text(text.rstrip("\n") + "\n", encoding="utf-8", newline="\n")


def written(text: str, path: str | Path | None) -> str:
    """Write the text to the path, if there is one, and return the text."""
    if path is not None:
        write_text(path, text)
    return text


def write_json(path: str | Path, payload: Any, *, indent: int | None = 2) -> None:
    """Write plain values as JSON."""
    write_text(path, json.dumps(payload, indent=indent))


def write_tensors(path: str | Path, tensors: Any) -> None:
    """Write what `torch.load` reads: a state dict, or a tuple of tensors."""
    import torch

    with replaced(path) as part:
        torch.save(tensors, part)


def write_figure(figure: Figure, folder: str | Path, name: str, *kinds: str) -> None:
    """Write a figure into a folder, once for each kind of file.

    Args:
        figure: The figure to write.
        folder: The folder to write to.
        name: The file name without its ending.
        *kinds: Endings without the dot; default: svg and png.
    """
    for kind in kinds or ("svg", "png"):
        with replaced(Path(folder) / f"{name}.{kind}") as part:
            save_figure(figure, part)
