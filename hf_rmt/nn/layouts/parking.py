"""Codes that only saving needs lie in a file, mapped into memory and read when somebody asks.

A parked tensor is an ordinary tensor: it can be saved, copied and written to. Its pages belong to
a nameless temporary file, so they go when the tensor goes, and they count as memory of this
process only after they were read.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import tempfile
import weakref
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

SMALLEST = 2**16
"""Tensors of fewer bytes stay in memory."""
IN_MEMORY = ("tmpfs", "ramfs")
DONTNEED = 4

_PARKED: set[int] = set()
"""Addresses of the parked storages that are alive."""


def park(tensor: Tensor) -> Tensor:
    """The same tensor in a file, or itself where that is impossible or saves nothing.

    Args:
        tensor: On any device, of any dtype. It is not changed.

    Returns:
        A tensor of the same contents. It is the argument if that is small, not on the CPU,
        parked already, or if no disk takes it.
    """
    if tensor.device.type != "cpu" or tensor.nbytes < SMALLEST or is_parked(tensor):
        return tensor
    folder = parking_folder()
    if folder is None:
        return tensor
    try:
        return _mapped(tensor, folder)
    except (OSError, RuntimeError):  # the disk is full, or this system maps no files
        return tensor


def unpark(tensor: Tensor) -> Tensor:
    """The inverse of `park`: a copy in memory of a parked tensor, any other as it is."""
    return tensor.clone() if is_parked(tensor) else tensor


def is_parked(tensor: Tensor) -> bool:
    """Whether a tensor lies in a file that `park` made."""
    return tensor.device.type == "cpu" and tensor.untyped_storage().data_ptr() in _PARKED


def _mapped(tensor: Tensor, folder: Path) -> Tensor:
    handle, name = tempfile.mkstemp(prefix="hf_rmt_codes_", dir=folder)
    try:
        os.posix_fallocate(handle, 0, tensor.nbytes)  # or a full disk would end the process
        storage = torch.UntypedStorage.from_file(name, shared=True, nbytes=tensor.nbytes)
    finally:
        os.close(handle)
        os.unlink(name)
    parked = torch.empty(0, dtype=tensor.dtype).set_(storage)  # type: ignore[call-overload]
    parked = parked.view(tensor.shape).copy_(tensor)
    address = storage.data_ptr()
    _PARKED.add(address)
    weakref.finalize(storage, _PARKED.discard, address)
    let_go(parked)
    return parked


def let_go(parked: Tensor) -> None:
    """Give the pages of a parked tensor back to the system; they are read again when needed."""
    start = parked.untyped_storage().data_ptr()
    if sys.platform == "linux" and start % mmap.PAGESIZE == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(parked.nbytes), DONTNEED)


@cache
def parking_folder() -> Path | None:
    """Where parked tensors lie: a cache folder on a disk; None if there is none.

    The first of `HF_RMT_CACHE`, the user's cache folder and the folder for temporary files that
    can be written to and is no memory.
    """
    if sys.platform == "win32":  # a file that is mapped cannot be unlinked there
        return None
    for folder in (cache_folder(), Path(tempfile.gettempdir())):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK) and _file_system(folder) not in IN_MEMORY:
            return folder
    return None


def cache_folder() -> Path:
    """This package's folder for what can be made again."""
    if own := os.environ.get("HF_RMT_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hf_rmt"


def _file_system(folder: Path) -> str:
    """Kind of the file system that holds a folder, as Linux says it; else nothing."""
    table = Path("/proc/mounts")
    if not table.exists():
        return ""
    best, kind = 0, ""
    for line in table.read_text(encoding="utf-8").splitlines():
        _, place, name, *_ = line.split()
        if folder.resolve().is_relative_to(place) and len(place) >= best:
            best, kind = len(place), name
    return kind
