"""Keeps a value that was made from tensors, until one of the tensors is replaced or changed."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from operator import attrgetter
from typing import Any

from torch import Tensor

from hf_rmt.nn.tensor_checks import version_of

_address = Tensor.data_ptr
_version = attrgetter("_version")
NOTHING: tuple[Any, Any, tuple[Tensor, ...]] = (None, None, ())


class Kept:
    """A cache of one value that was made from tensors.

    The value is found by a key that describes the tensors; see `identities`. The cache also holds
    the tensors: if they were freed, other tensors could get the same addresses.
    """

    __slots__ = ("_state",)

    def __init__(self) -> None:
        self._state = NOTHING

    def get(self, key: Any) -> Any:
        """The value that was kept under this key; None if there is none."""
        known, value, _ = self._state
        return value if known == key else None

    def put(self, key: Any, value: Any, tensors: Iterable[Tensor]) -> None:
        """Keep `value`, which was made from `tensors`, in place of the value kept before.

        Do nothing if one of the tensors is an inference tensor: torch does not count writes to it,
        so `key` (see `identities`) would not change with it.
        """
        tensors = tuple(tensors)
        if not any(tensor.is_inference() for tensor in tensors):
            self._state = key, value, tuple(tensor.detach() for tensor in tensors)

    def reset(self) -> None:
        """Forget the value that was kept."""
        self._state = NOTHING

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return Kept, ()  # a copy, or an object that was pickled, keeps nothing


def identities(tensors: Collection[Tensor]) -> list[int]:
    """The addresses of the tensors, then their versions, which count the writes to them.

    Two tensors that exist at the same time have different addresses. Layers compute this in each
    forward pass, so functions written in C do the work.
    """
    try:
        return [*map(_address, tensors), *map(_version, tensors)]
    except RuntimeError:  # an inference tensor counts no writes
        return [*map(_address, tensors), *map(version_of, tensors)]
