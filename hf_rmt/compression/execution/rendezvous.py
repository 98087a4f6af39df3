"""Points at which all processes meet, exchange plain values and learn of each other's errors.

Each operation that all processes do together begins with such a meeting. If a process fails between
two meetings, it goes to the next meeting and reports its error there. So no process waits for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, NamedTuple, TypeVar

from torch import distributed

F = TypeVar("F", bound=Callable[..., Any])
_TOLD = "_hf_rmt_told"
"""Name of an attribute that is set on an error when all processes know it, so that it is not
reported again."""
_transfers: list[Iterator[Any]] = []
"""An iterator over the last series of broadcasts. A process that fails must still run it to its
end, because other processes wait for these broadcasts."""


class Failure(NamedTuple):
    """An error of this process, and what the process was doing, such as "ran evaluate"."""

    error: Exception
    doing: str


def n_processes() -> int:
    """Number of processes in the default group of torch.distributed; 1 if there is no group."""
    ready = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if ready else 1


def exchange(value: Any, failure: Failure | None = None) -> list[Any]:
    """Give a plain value to all processes, or report an error to them.

    Args:
        value: Anything that can be pickled.
        failure: The error of this process, if it failed.

    Returns:
        The values of all processes, in the order of their ranks.

    Raises:
        RuntimeError: On every process, if one process failed. If all processes failed with the same
            error, each raises its own error.
    """
    said: list[Any] = [None] * n_processes()
    distributed.all_gather_object(said, (_said(failure), value))
    failed = {rank: told for rank, (told, _) in enumerate(said) if told}
    if not failed:
        return [entry for _, entry in said]
    alike = len(failed) == len(said) and len({text for _, text in failed.values()}) == 1
    if failure is not None and alike:
        vars(failure.error)[_TOLD] = True
        raise failure.error
    error = RuntimeError(
        "; ".join(
            f"process {rank} failed while it {doing}: {text}"
            for rank, (doing, text) in failed.items()
        )
    )
    vars(error)[_TOLD] = True
    raise error from (failure.error if failure else None)


def collective(function: F) -> F:
    """A decorator for a function that all processes call: an error on one is raised on all.

    Args:
        function: Any function that exchanges data between processes only through this package.

    Returns:
        The wrapped function. If there is only one process, it just calls the function.
    """

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if n_processes() == 1:
            return function(*args, **kwargs)
        try:
            result = function(*args, **kwargs)
        except Exception as error:
            if not vars(error).get(_TOLD):
                _finish_transfers()
                exchange(None, Failure(error, f"ran {function.__name__}"))
            raise
        exchange(None)
        return result

    return run  # type: ignore[return-value]


def begin_transfers(series: Iterator[Any]) -> Iterator[Any]:
    """Remember an iterator over broadcasts that other processes wait for, and return it.

    If this process fails, it must still run the iterator to its end.
    """
    _transfers[:] = [series]
    return series


def _finish_transfers() -> None:
    for series in _transfers:
        for _ in series:
            pass


def _said(failure: Failure | None) -> tuple[str, str] | None:
    """What this process was doing when it failed, and its error as text; None without an error."""
    if failure is None:
        return None
    error, doing = failure
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", []))
    return doing, f"{type(error).__name__}: {error}{notes}"
