"""Moves tensors that are needed only to save a model from memory to a temporary file.

These tensors are the stored noise of weights; see `NoiseStore`. A tensor in such a file is called
parked. The file is mapped into memory and read on use. So a parked tensor is still an ordinary
tensor: it can be saved, copied and written to. Its pages belong to a temporary file without a name.
So they are freed together with the tensor, and they count as memory of this process only after they
are read. The mapping is private: what a forked process writes stays in that process.
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
from typing import Any

import torch
from torch import Tensor

from hf_rmt.nn.memory import trim_memory

SMALLEST = 2**16
"""`park` moves a tensor to a file only if it has at least this many bytes."""
IN_MEMORY = ("tmpfs", "ramfs")
PAGEOUT = 21

_PARKED: set[int] = set()
"""Memory addresses of all tensors that `park` has moved to a file and that still exist."""


def park(tensor: Tensor) -> Tensor:
    """A copy of the tensor in a file, or the tensor itself if this is impossible or saves nothing.

    Args:
        tensor: On any device, of any dtype. It is not changed.

    Returns:
        A tensor of the same contents. It is the argument itself if the tensor is small, is not on
        the CPU, lies in a file already, or cannot be written to a disk.
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
    """Copy a tensor that `park` moved to a file into memory; return other tensors unchanged."""
    return tensor.clone() if is_parked(tensor) else tensor


def is_parked(tensor: Tensor) -> bool:
    """Whether a tensor lies in a file that `park` made."""
    return tensor.device.type == "cpu" and tensor.untyped_storage().data_ptr() in _PARKED


def _mapped(tensor: Tensor, folder: Path) -> Tensor:
    handle, name = tempfile.mkstemp(prefix="hf_rmt_codes_", dir=folder)
    try:
        with open(handle, "wb", closefd=False) as file:
            tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tofile(file)
        memory = _private_memory(handle, tensor.nbytes)
    finally:
        os.close(handle)
        os.unlink(name)
    parked = torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape)
    let_go(parked)
    return parked


def _private_memory(handle: int, size: int) -> Any:
    """Map `size` bytes of an open file into memory, where `handle` is its file descriptor.

    The result is an array of bytes; when it is freed, the mapping ends. Torch can map files as
    well, but it cannot pass such a tensor to another process. Python's `mmap` keeps a further file
    open for each tensor.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *3 * [ctypes.c_int], ctypes.c_long)
    access = mmap.PROT_READ | mmap.PROT_WRITE
    address = libc.mmap(None, size, access, mmap.MAP_PRIVATE, handle, 0)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    memory = (ctypes.c_ubyte * size).from_address(address)
    _PARKED.add(address)
    weakref.finalize(memory, _unmap, address, size).atexit = False  # tensors may live longer
    return memory


def _unmap(address: int, size: int) -> None:
    _PARKED.discard(address)
    ctypes.CDLL(None).munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))


def let_go(tensor: Tensor) -> None:
    """Give the memory pages of a tensor that lies in a file back to the operating system.

    The pages are read from the file again on the next use. No content can be lost, because pages
    that were changed only in memory stay in memory.
    """
    _page_out(tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes)


def _page_out(start: int, stop: int) -> None:
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    if sys.platform == "linux" and stop > first:
        libc = ctypes.CDLL(None)
        libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(stop - first), PAGEOUT)


def give_back() -> None:
    """Return unused memory to the system: freed memory, and pages of safetensors files.

    A loaded checkpoint stays mapped. Some of its pages hold tensors that have been converted since,
    or that are only needed to save the model. Pages that are still used are read again on the next
    use.
    """
    if sys.platform != "linux":
        return
    for low, high, path in _mappings():
        if path.endswith(".safetensors"):
            _page_out(low, high)
    trim_memory()


def _mappings() -> list[tuple[int, int, str]]:
    """The files that are mapped into the memory of this process: start, end and path of each.

    The list is empty if the system has no list of them in `/proc`.
    """
    table = Path("/proc/self/maps")
    found = []
    for line in table.read_text(encoding="utf-8").splitlines() if table.exists() else []:
        span, _, _, _, inode, *path = line.split(maxsplit=5)
        if inode != "0" and path:
            low, high = (int(end, 16) for end in span.split("-"))
            found.append((low, high, path[0]))
    return found


def lies_in_a_file(tensor: Tensor) -> bool:
    """Whether the memory of a tensor is a mapped file already, as after loading safetensors."""
    if tensor.device.type != "cpu":
        return False
    start, stop = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    return any(low <= start and stop <= high for low, high, _ in _mappings())


@cache
def parking_folder() -> Path | None:
    """The folder in which `park` makes its files; None if no suitable folder exists.

    The folder must lie on a disk, and not in memory. The first choice is `cache_folder`, and the
    second one is the folder for temporary files.
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
    """This package's folder for files that can be made again.

    The environment variable `HF_RMT_CACHE` names it. If that is not set, it is `hf_rmt` in the
    user's cache folder, or in the folder for temporary files if the user has no home directory.
    """
    own, base = os.environ.get("HF_RMT_CACHE"), os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return (Path(own) if own else Path(base, "hf_rmt")).expanduser()
    except RuntimeError:
        return Path(tempfile.gettempdir(), "hf_rmt")


def _file_system(folder: Path) -> str:
    """Kind of the file system that holds a folder, as Linux names it; empty on other systems."""
    table = Path("/proc/mounts")
    if not table.exists():
        return ""
    best, kind = 0, ""
    for line in table.read_text(encoding="utf-8").splitlines():
        _, place, name, *_ = line.split()
        if folder.resolve().is_relative_to(place) and len(place) >= best:
            best, kind = len(place), name
    return kind
