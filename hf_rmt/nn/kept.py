"""A value that was made of tensors, kept until one of them is replaced or written to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from hf_rmt.nn.tensor_checks import version_of

NOTHING: tuple[Any, Any, tuple[Tensor, ...]] = (None, None, ())


class Kept:
    """One value, the key under which it was kept, and the tensors that the key describes.

    The tensors are held, so that no other tensor can get their addresses while the key is known.
    """

    def __init__(self) -> None:
        self._state = NOTHING

    def get(self, key: Any) -> Any:
        """The value that was kept under this key; None if there is none."""
        known, value, _ = self._state
        return value if known == key else None

    def put(self, key: Any, value: Any, tensors: Iterable[Tensor]) -> None:
        """Keep a value in place of the last one, unless a tensor records no writes to it."""
        tensors = tuple(tensors)
        if not any(tensor.is_inference() for tensor in tensors):
            self._state = key, value, tuple(tensor.detach() for tensor in tensors)

    def reset(self) -> None:
        """Forget the value."""
        self._state = NOTHING

    def __getstate__(self) -> dict[str, Any]:
        return {"_state": NOTHING}


def identity(tensor: Tensor) -> tuple[int, int]:
    """Values that change if a tensor is replaced, while the old one exists, or is written to."""
    return tensor.data_ptr(), version_of(tensor)


def identities(tensors: Iterable[Tensor | None]) -> list[tuple[int, int]]:
    """The `identity` of each tensor that is there."""
    return [identity(tensor) for tensor in tensors if tensor is not None]
