"""Writes a folder so that it has the old or the new files, also after a kill or on a full disk.

All files are written into a temporary folder on the same file system, and put in place at the end.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

RECORDS = ("config.json", "adapter_config.json")
"""Files that describe how to read the other files; they are put in place last."""
AT_FDCWD, RENAME_EXCHANGE = -100, 2


@contextmanager
def staged(
    folder: str | os.PathLike[str], *, stale: Callable[[str], bool] = lambda name: False
) -> Iterator[Path]:
    """Give a temporary folder to write into; at the end its files are put into `folder`.

    If `folder` is new or empty, one rename puts the temporary folder in its place. If `folder`
    holds files, they stay, except stale files and files that are written again. Both folders are
    then exchanged in one step if the system can do so. If it cannot, the files are moved one by
    one, configs (`RECORDS`) last.

    Args:
        folder: The target; missing parents are made.
        stale: A function that gets the name of a file of an earlier save. It says whether this
            file must be removed if it is not written again.

    Yields:
        The temporary folder. After an error in the `with` block it is removed, and `folder` is
        unchanged.

    Raises:
        NotADirectoryError: If `folder` is a file.
        OSError: If `folder` cannot be written to.
    """
    target = Path(folder)
    if target.is_file():
        raise NotADirectoryError(
            f"the target must be a folder, got the file {target}; pass another path"
        )
    target = target.resolve()
    made = _make_parents(target)
    aside = _aside(target)
    try:
        aside.mkdir()
        yield aside
        publish(aside, target, stale=stale)
        made = []
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()


def publish(aside: Path, target: Path, *, stale: Callable[[str], bool]) -> None:
    """Put the files of `aside` into `target`, as described in `staged`."""
    if not _is_worked_in(target):
        with contextlib.suppress(OSError):  # the target exists and is not empty
            aside.rename(target)
            return
    if not (_can_be_exchanged(target) and _exchange_with(aside, target, stale)):
        _move_files(aside, target, stale)


def _exchange_with(aside: Path, target: Path, stale: Callable[[str], bool]) -> bool:
    """Replace the files in `target` by those in `aside` in one step; return False on failure.

    `aside` is the temporary folder of `staged`. First, the files in `target` that must stay are
    hard-linked into it: those that are not written again and not stale (see `staged`). Then the two
    folders exchange their names.
    """
    written = {entry.name for entry in aside.iterdir()}
    try:
        for entry in target.iterdir():
            if entry.name not in written and not stale(entry.name):
                os.link(entry, aside / entry.name, follow_symlinks=False)
        shutil.copymode(target, aside)
        _exchange(aside, target)
    except OSError:  # no hard links, or no exchange on this file system
        for entry in aside.iterdir():
            if entry.name not in written:
                entry.unlink()
        return False
    _rescue(aside, target, stale)
    return True


def _rescue(old: Path, target: Path, stale: Callable[[str], bool]) -> None:
    """Move to `target` the files that another process wrote into the old folder during the save.

    The old folder is `old`; it had the name `target` before the new folder took this name. Stale
    files (see `staged`) and files that `target` has already are not moved.
    """
    for entry in old.iterdir():
        if not (target / entry.name).exists() and not stale(entry.name):
            entry.rename(target / entry.name)


def _move_files(aside: Path, target: Path, stale: Callable[[str], bool]) -> None:
    target.mkdir(exist_ok=True)
    files = [path for path in aside.rglob("*") if not path.is_dir()]
    for path in sorted(files, key=lambda path: (path.name in RECORDS, path)):
        place = target / path.relative_to(aside)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.replace(place)
    written = {path.relative_to(aside).parts[0] for path in files}
    for entry in target.iterdir():
        if entry.name not in written and entry.is_file() and stale(entry.name):
            entry.unlink()


def _can_be_exchanged(target: Path) -> bool:
    """Whether a folder may exchange its name with another folder in one step.

    It must hold only files, and be neither a mount point nor a folder that this process works in.
    """
    flat = not any(entry.is_dir() and not entry.is_symlink() for entry in target.iterdir())
    return flat and not _is_worked_in(target) and not os.path.ismount(target)


def _is_worked_in(target: Path) -> bool:
    """Whether the working folder of this process is `target` or lies below it."""
    return Path.cwd().is_relative_to(target)


def _exchange(one: Path, other: Path) -> None:
    """Exchange the names of two folders in one system call; only Linux has this call."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        raise OSError(errno.ENOSYS, "this system cannot exchange two folders at once")
    first, second = os.fsencode(one), os.fsencode(other)
    if rename(AT_FDCWD, first, AT_FDCWD, second, RENAME_EXCHANGE):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(other))


def _aside(target: Path) -> Path:
    """The path of the temporary folder for a save; the folder itself is not created.

    It lies beside the target, or in the target if the parent is read-only or on another disk.
    Temporary folders that killed processes left behind are removed.
    """
    parent = target.parent
    device = target.stat().st_dev if target.exists() else parent.stat().st_dev
    if target.exists() and (parent.stat().st_dev != device or not os.access(parent, os.W_OK)):
        parent = target
    of_this_machine = f".{target.name}.saving-{socket.gethostname()}-"
    pattern = re.compile(re.escape(of_this_machine) + r"(\d+)-\d+")
    found = [(entry, pattern.fullmatch(entry.name)) for entry in parent.iterdir()]
    others = [(entry, int(match[1])) for entry, match in found if match]
    _remove_left_over(others)
    taken = sum(process == os.getpid() for _, process in others)
    return parent / f"{of_this_machine}{os.getpid()}-{taken}"


def _remove_left_over(folders: Iterable[tuple[Path, int]]) -> None:
    """Remove temporary folders whose process is not alive any more, because it was killed.

    `folders` are pairs of a folder and the id of the process that made it.
    """
    for folder, process in folders:
        if not _is_alive(process):
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _make_parents(target: Path) -> list[Path]:
    """Make the missing folders above `target`; return the folders made, the deepest first."""
    missing = [parent for parent in target.parents if not parent.exists()]
    for parent in reversed(missing):
        parent.mkdir(exist_ok=True)
    return missing
