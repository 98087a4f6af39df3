"""Calls LAPACK, the library of linear algebra in SciPy, from several threads at a time.

SciPy's own wrappers hold Python's global lock (GIL), so that only one thread at a time computes.
Here the lock is free during a call. NumPy and SciPy have threads of their own for matrix products,
and the last bits of a result depend on how many they use. `numpy_threads` sets this number.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import cython_lapack
from threadpoolctl import ThreadpoolController

_CAPSULE = ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p


def lapack(name: str, *arguments: bytes | int | NDArray[Any]) -> None:
    """Call a routine of LAPACK; other Python threads can run meanwhile.

    Args:
        name: Name of the routine with the letter of its dtype, such as `dsterf`.
        *arguments: The routine's arguments in LAPACK's order, without the last one, `info`. Arrays
            are contiguous, with the dtypes of the routine, and are overwritten as LAPACK says.

    Raises:
        torch.linalg.LinAlgError: If the routine reports an error.
    """
    info = ctypes.c_int(0)
    _routine(name)(*map(_pointer, arguments), ctypes.byref(info))
    if info.value:
        raise torch.linalg.LinAlgError(
            f"LAPACK's {name} ended with info={info.value}, so the matrix cannot be decomposed; "
            "look for nan, inf or huge entries in the weights"
        )


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


def numpy_threads(number: int) -> AbstractContextManager[Any]:
    """A context in which NumPy and SciPy use `number` threads, in the whole process.

    If another Python thread has such a context open, its number stays, and the new context does
    nothing. So a thread that hands out work to others opens the context for all of them.

    Args:
        number: Number of threads for a matrix product.
    """
    context: AbstractContextManager[Any] = _libraries().limit(limits=number, user_api="blas")
    return context


@cache
def _libraries() -> Any:
    return ThreadpoolController().select(user_api="blas")
