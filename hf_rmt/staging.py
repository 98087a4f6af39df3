"""Writing a folder so that a kill or a full disk leaves what was there before, or what is new.

Everything is written into a folder aside, on the same file system, and put in place at the end.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

RECORDS = ("config.json", "adapter_config.json")
"""Files that say how the others are read; they are put in place last."""
AT_FDCWD, RENAME_EXCHANGE = -100, 2


@contextmanager
def staged(
    folder: str | os.PathLike[str], *, stale: Callable[[str], bool] = lambda name: False
) -> Iterator[Path]:
    """A folder to write into, whose files are in `folder` at the end.

    If `folder` is new or empty, it is put in place by one rename. If it holds files, they stay,
    except those that are written anew and the stale ones. Both folders are then exchanged at once
    where the system can do so. Elsewhere the files are moved one by one, those of `RECORDS` last.

    Args:
        folder: The target; missing parents are made.
        stale: Whether a file of an earlier save, by its name, must go unless it is written anew.

    Yields:
        The folder to write into. It is removed after an error, and `folder` is as before.

    Raises:
        NotADirectoryError: If there is a file of that name.
        OSError: If it cannot be written to.
    """
    target = Path(folder)
    if target.is_file():
        raise NotADirectoryError(f"the target must be a folder, {target} is a file")
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
    """Put the files of one folder into another one, as `staged` says."""
    if not _is_worked_in(target):
        with contextlib.suppress(OSError):  # it is there, and not empty
            aside.rename(target)
            return
    if not (_can_be_exchanged(target) and _exchange_with(aside, target, stale)):
        _move_files(aside, target, stale)


def _exchange_with(aside: Path, target: Path, stale: Callable[[str], bool]) -> bool:
    """Exchange the folders, once the new one has all that stays of the old one."""
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
    """Move over what another process wrote into the old folder meanwhile."""
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
    """Whether the folder may become another one: nobody works in it, and it holds files only."""
    flat = not any(entry.is_dir() and not entry.is_symlink() for entry in target.iterdir())
    return flat and not _is_worked_in(target) and not os.path.ismount(target)


def _is_worked_in(target: Path) -> bool:
    """Whether this process works in the folder; it would be left in one that is removed."""
    return Path.cwd().is_relative_to(target)


def _exchange(one: Path, other: Path) -> None:
    """Exchange two folders by one call of the system; only Linux has one."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        raise OSError(errno.ENOSYS, "this system cannot exchange two folders at once")
    first, second = os.fsencode(one), os.fsencode(other)
    if rename(AT_FDCWD, first, AT_FDCWD, second, RENAME_EXCHANGE):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(other))


def _aside(target: Path) -> Path:
    """Where to write meanwhile: beside the target, or in it if its parent is closed to us."""
    parent = target.parent
    device = target.stat().st_dev if target.exists() else parent.stat().st_dev
    if target.exists() and (parent.stat().st_dev != device or not os.access(parent, os.W_OK)):
        parent = target
    host = socket.gethostname()
    _remove_left_over(parent.glob(f".{target.name}.saving-{host}-*"))
    name = f".{target.name}.saving-{host}-{os.getpid()}"
    taken = len(list(parent.glob(f"{name}*")))
    return parent / f"{name}-{taken}"


def _remove_left_over(folders: Iterable[Path]) -> None:
    """Remove what processes of this machine left that were killed while they wrote."""
    for folder in folders:
        process = folder.name.split("-")[-2]
        if process.isdigit() and not _is_alive(int(process)):
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
    """Make the folders above the target; those that were made, the deepest first."""
    missing = [parent for parent in target.parents if not parent.exists()]
    for parent in reversed(missing):
        parent.mkdir(exist_ok=True)
    return missing
