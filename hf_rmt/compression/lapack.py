"""Calls LAPACK, the library of linear algebra in SciPy, from several threads at a time.

SciPy's own wrappers hold the lock of the interpreter, so that only one thread at a time computes.
Here the lock is free during a call. NumPy and SciPy have threads of their own for matrix products,
and the last bits of a result depend on how many they use. So they use as many as torch does.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import cython_lapack
from threadpoolctl import ThreadpoolController

_CAPSULE = ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p
_LOCK = threading.Lock()
_CONTEXTS: list[Any] = []
"""The contexts of `torch_threads_for_numpy` that are open now. The first of them knows how many
threads NumPy had before."""


def lapack(name: str, *arguments: bytes | int | NDArray[Any]) -> None:
    """Call a routine of LAPACK, with as many threads as torch uses.

    Args:
        name: Name of the routine with the letter of its dtype, such as `dsterf`.
        *arguments: The routine's arguments in LAPACK's order, without the last one, `info`. Arrays
            are contiguous, with the dtypes of the routine, and are overwritten as LAPACK says.

    Raises:
        torch.linalg.LinAlgError: If the routine reports an error.
    """
    info = ctypes.c_int(0)
    with torch_threads_for_numpy():
        _routine(name)(*map(_pointer, arguments), ctypes.byref(info))
    if info.value:
        raise torch.linalg.LinAlgError(f"LAPACK's {name} ended with info={info.value}")


@cache
def _routine(name: str) -> Callable[..., None]:
    capsule = cython_lapack.__pyx_capi__[name]
    title = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)
    address = ctypes.PYFUNCTYPE(*_CAPSULE)
    signature = title(("PyCapsule_GetName", ctypes.pythonapi))(capsule)
    found = address(("PyCapsule_GetPointer", ctypes.pythonapi))(capsule, signature)
    return ctypes.CFUNCTYPE(None)(found)


def _pointer(argument: bytes | int | NDArray[Any]) -> Any:
    if isinstance(argument, np.ndarray):
        return ctypes.c_void_p(argument.ctypes.data)
    made = ctypes.c_char(argument) if isinstance(argument, bytes) else ctypes.c_int(argument)
    return ctypes.byref(made)


@contextmanager
def torch_threads_for_numpy() -> Iterator[None]:
    """A context in which NumPy and SciPy use as many threads as torch does on this thread.

    The number belongs to the whole process. So the first of several contexts at a time sets it, and
    the last one restores it.
    """
    with _LOCK:
        limits = None if _CONTEXTS else torch.get_num_threads()
        _CONTEXTS.append(_libraries().limit(limits=limits, user_api="blas"))
    try:
        yield
    finally:
        with _LOCK:
            entry = _CONTEXTS.pop()
            if not _CONTEXTS:  # only the first entry is left, so this is it
                entry.restore_original_limits()


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()
