"""The schedule by which the noise in a model's weights becomes zero during a training.

The noise is the part of a weight that the compressed model will not keep.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from hf_rmt.checks import check_choice

UNITS = ("run", "steps", "epochs")


@dataclass(frozen=True)
class Anneal:
    """When the noise begins to shrink and when it is gone, with the unit of these two times.

    Args:
        start: The time at which the directions (the parts of rank one that a weight keeps) are
            chosen, and the noise (the rest of the weight) begins to shrink.
        stop: The time at which the noise is gone; equal to start if it is removed at once.
        unit: The unit of both: `run` for fractions of the whole training, `steps` for update steps,
            or `epochs`.

    Raises:
        TypeError: If start or stop is not a number.
        ValueError: If the unit is unknown, or the two times are out of order or out of range.

    Examples:
        >>> anneal = Anneal(0.2, 0.8)
        >>> anneal.steps(max_steps=100, epochs=2)
        (20, 80)
    """

    start: float
    stop: float
    unit: str = "run"

    def __post_init__(self) -> None:
        check_choice("unit of anneal", self.unit, UNITS)
        for end in (self.start, self.stop):
            if isinstance(end, bool) or not isinstance(end, int | float):
                raise TypeError(f"anneal must hold two numbers, got {end!r}; pass (0.6, 0.95)")
        if not 0 <= self.start <= self.stop or (self.unit == "run" and self.stop > 1):
            raise ValueError(
                f"anneal must be (start, stop) with 0 <= start <= stop, and stop <= 1 for parts of "
                f"a run, got ({self.start}, {self.stop}) in {self.unit!r}; for update steps pass "
                "integers, for epochs (1, 3, 'epochs')"
            )

    @classmethod
    def of(cls, given: Any) -> Anneal:
        """Make an `Anneal` from its start and its stop, with or without a unit.

        Args:
            given: `(0.2, 0.8)` means parts of the run. `(100, 400)`, two integers, means update
                steps. `(1, 3, "epochs")` names its unit. An `Anneal` is returned as it is.

        Returns:
            The schedule.

        Raises:
            TypeError: If `given` has none of these forms.

        Examples:
            >>> Anneal.of((100, 400)).unit
            'steps'
        """
        if isinstance(given, cls):
            return given
        if not isinstance(given, tuple | list) or len(given) not in (2, 3):
            raise TypeError(
                f"anneal must be (start, stop), (start, stop, unit) or None, got {given!r}; "
                "pass (0.6, 0.95)"
            )
        start, stop, *unit = given
        whole = all(isinstance(end, int) and not isinstance(end, bool) for end in (start, stop))
        natural = "steps" if whole and stop > 1 else "run"
        return cls(start, stop, unit[0] if unit else natural)

    def steps(self, *, max_steps: int, epochs: float) -> tuple[int, int]:
        """The start and the stop as numbers of update steps.

        Args:
            max_steps: Update steps of the whole training.
            epochs: Epochs of the whole training.

        Returns:
            (first, last): directions (the parts of rank one that a weight keeps) are chosen after
            update step `first`, and the noise is gone after update step `last`. `first` is at least
            1, because at least one batch must be measured before.
        """
        unit = {"run": max_steps, "steps": 1, "epochs": max_steps / max(epochs, 1e-9)}[self.unit]
        first, last = (min(round(end * unit), max_steps) for end in (self.start, self.stop))
        first = max(first, min(1, max_steps))
        return first, max(first, last)


def amount(step: int, first: int, last: int) -> float:
    """Share of the noise that is left after an update step: a cosine from 1 to 0.

    The noise is the part of a weight that the training removes.

    Args:
        step: Number of update steps done.
        first: Update step up to which all the noise is there.
        last: Update step after which no noise is left.

    Returns:
        The share, in [0, 1].

    Examples:
        >>> [round(amount(step, 10, 20), 2) for step in (10, 15, 20)]
        [1.0, 0.5, 0.0]
    """
    if step < first:
        return 1.0
    return 0.0 if step >= last else 0.5 * (1 + math.cos(math.pi * (step - first) / (last - first)))


def choice_steps(first: int, last: int) -> list[int]:
    """The update steps after which directions are chosen: first, half-way to last, and last.

    The directions are the parts of rank one that a weight keeps.

    Examples:
        >>> choice_steps(113, 179), choice_steps(5, 5)
        ([113, 146, 179], [5])
    """
    return sorted({first, (first + last) // 2, last})
