"""Keeps a value that was made from tensors, until one of the tensors is replaced or changed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from hf_rmt.nn.tensor_checks import version_of

NOTHING: tuple[Any, Any, tuple[Tensor, ...]] = (None, None, ())


class Kept:
    """One value, the key under which it was kept, and the tensors that the key describes.

    The key holds the addresses of the tensors. The tensors are kept as well: if they were freed,
    other tensors could get the same addresses.
    """

    def __init__(self) -> None:
        self._state = NOTHING

    def get(self, key: Any) -> Any:
        """The value that was kept under this key; None if there is none."""
        known, value, _ = self._state
        return value if known == key else None

    def put(self, key: Any, value: Any, tensors: Iterable[Tensor]) -> None:
        """Keep a value in place of the last one.

        Do nothing if one of the tensors is an inference tensor, which does not count writes.
        """
        tensors = tuple(tensors)
        if not any(tensor.is_inference() for tensor in tensors):
            self._state = key, value, tuple(tensor.detach() for tensor in tensors)

    def reset(self) -> None:
        """Forget the value that was kept."""
        self._state = NOTHING

    def __getstate__(self) -> dict[str, Any]:
        return {"_state": NOTHING}


def identity(tensor: Tensor) -> tuple[int, int]:
    """The address of a tensor, and its version, which counts the writes to the tensor.

    Two tensors that exist at the same time have different addresses.
    """
    return tensor.data_ptr(), version_of(tensor)


def identities(tensors: Iterable[Tensor | None]) -> list[tuple[int, int]]:
    """The `identity` of each tensor; entries that are None are left out."""
    return [identity(tensor) for tensor in tensors if tensor is not None]
