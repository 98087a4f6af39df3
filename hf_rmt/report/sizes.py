"""The sizes of a compressed model, as numbers and in words: of its file and of its layers."""

from __future__ import annotations

from dataclasses import dataclass

from hf_rmt.plan import CompressionPlan
from hf_rmt.report.tables import percent, size_text

Fact = tuple[str, str, str]
"""A size in words: a label, the numbers, and a remark."""
FILE, LAYERS = "weights in the file", "compressed layers"
COVERED = "share of the model covered"


@dataclass(frozen=True)
class Sizes:
    """Sizes of a whole model. An unknown size is None, and reports do not mention it.

    Args:
        file: Bytes of the saved weights before and after compression, without file headers.
        model_parameters: Number of parameters of the whole model before compression, embeddings,
            task heads and experts included.

    Raises:
        ValueError: If a size in `file` is negative, or `model_parameters` is below 1.
    """

    file: tuple[int, int] | None = None
    model_parameters: int | None = None

    def __post_init__(self) -> None:
        if self.file is not None and min(self.file) < 0:
            raise ValueError(
                f"file must be the bytes before and after, each at least 0, got {self.file}; pass "
                "None if they are unknown"
            )
        if self.model_parameters is not None and self.model_parameters < 1:
            raise ValueError(
                "model_parameters must be the number of parameters of the whole model, at least "
                f"1, got {self.model_parameters}; pass None if it is unknown"
            )

    def share(self, weights: int) -> float | None:
        """A number of weights divided by `model_parameters`; None if that is unknown.

        If several layers share a weight, `model_parameters` counts it only once. Then the quotient
        can exceed 1, so it is limited to 1.

        Examples:
            >>> Sizes(model_parameters=200).share(50)
            0.25
        """
        return None if self.model_parameters is None else min(weights / self.model_parameters, 1.0)

    def facts(self, plan: CompressionPlan) -> list[Fact]:
        """Say in words the sizes of the file and the layers, and which share of the model changed.

        Args:
            plan: What happens to which layer.

        Returns:
            Three texts for each known size: a label, the numbers and a remark.
        """
        found = [_before_after(FILE, self.file), _layers(plan), self._covered(plan)]
        return [fact for fact in found if fact]

    def line(self, plan: CompressionPlan, name: str) -> str:
        """Write one of the `facts` as a line of text; empty if the size is not known.

        Args:
            plan: What happens to which layer.
            name: The label of the size, `FILE` or `COVERED`.

        Returns:
            The line.
        """
        found = [fact for fact in self.facts(plan) if fact[0] == name]
        return "".join(
            f"{name.capitalize()}: {numbers} ({remark})" for name, numbers, remark in found
        )

    def _covered(self, plan: CompressionPlan) -> Fact | None:
        share = self.share(plan.changed_weights)
        if share is None:
            return None
        rest = "all of it" if share == 1 else f"the other {percent(1 - share)} stays as it was"
        return (COVERED, percent(share), rest)


def _layers(plan: CompressionPlan) -> Fact | None:
    weights = sum(layer.entries for layer in plan.compressed)
    if not weights:
        return None
    dense = sum(layer.dense_bits for layer in plan.compressed) / weights
    ratio = f"{percent(plan.size_ratio)} of their dense size"
    return (LAYERS, f"{dense:.3g} → {plan.bits_per_weight:.3g} bits a weight", ratio)


def _before_after(name: str, sizes: tuple[int, int] | None) -> Fact | None:
    if sizes is None:
        return None
    before, after = sizes
    remark = f"{percent(after / before)} of the size before" if before else "it was empty before"
    return (name, f"{size_text(before)} → {size_text(after)}", remark)
