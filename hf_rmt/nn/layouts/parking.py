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

from hf_rmt.nn.memory import trim_memory

SMALLEST = 2**16
"""Tensors of fewer bytes stay in memory."""
IN_MEMORY = ("tmpfs", "ramfs")
PAGEOUT = 21

_PARKED: set[int] = set()
"""Addresses of the parked storages that are alive."""


def park(tensor: Tensor) -> Tensor:
    """The same tensor in a file, or itself where that is impossible or saves nothing.

    Args:
        tensor: On any device, of any dtype. It is not changed.

    Returns:
        A tensor of the same contents. It is the argument if that is small, not on the CPU,
        in a file already, or if no disk takes it.
    """
    if tensor.device.type != "cpu" or tensor.nbytes < SMALLEST:
        return tensor
    if is_parked(tensor) or lies_in_a_file(tensor):
        let_go(tensor)
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
    parked = torch.empty(0, dtype=tensor.dtype).set_(storage)  # type: ignore[arg-type]
    parked = parked.view(tensor.shape).copy_(tensor)
    address = storage.data_ptr()
    _PARKED.add(address)
    weakref.finalize(storage, _PARKED.discard, address)
    let_go(parked)
    return parked


def let_go(tensor: Tensor) -> None:
    """Give the pages of a tensor that lies in a file back to the system.

    They are read from the file again when somebody needs them. No content can get lost: pages
    that were changed in memory alone stay there.
    """
    _page_out(tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes)


def _page_out(start: int, stop: int) -> None:
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    if sys.platform == "linux" and stop > first:
        libc = ctypes.CDLL(None)
        libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(stop - first), PAGEOUT)


def give_back() -> None:
    """Return what nobody needs to the system: freed memory, and pages of safetensors files.

    A checkpoint that was loaded stays mapped, with the pages of tensors that were since converted
    or that only saving needs. Those that are in use are read again on the next use.
    """
    if sys.platform != "linux":
        return
    for low, high, path in _mappings():
        if path.endswith(".safetensors"):
            _page_out(low, high)
    trim_memory()


def _mappings() -> list[tuple[int, int, str]]:
    """Start, end and path of all that is mapped from files, where the system tells it."""
    table = Path("/proc/self/maps")
    found = []
    for line in table.read_text(encoding="utf-8").splitlines() if table.exists() else []:
        span, _, _, _, inode, *path = line.split(maxsplit=5)
        if inode != "0" and path:
            low, high = (int(end, 16) for end in span.split("-"))
            found.append((low, high, path[0]))
    return found


def lies_in_a_file(tensor: Tensor) -> bool:
    """Whether a tensor's memory is that of a file already, as after loading safetensors."""
    if tensor.device.type != "cpu":
        return False
    start, stop = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    return any(low <= start and stop <= high for low, high, _ in _mappings())


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
