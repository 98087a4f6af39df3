"""Accuracy and macro F1 without the Hub, and the difference of two models with its interval."""

from __future__ import annotations

from typing import Any, NamedTuple

import datasets
import evaluate
import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import accuracy_score, f1_score

DRAWS, LEVEL = 10_000, 0.95


class Interval(NamedTuple):
    """A difference and its bootstrap interval."""

    mean: float
    low: float
    high: float


class Correctness(evaluate.Metric):
    """Accuracy and macro F1 without the Hub, from which `evaluate.load` would fetch its code."""

    def _info(self) -> evaluate.MetricInfo:
        kinds = {key: datasets.Value("int64") for key in ("predictions", "references")}
        return evaluate.MetricInfo(
            description="Accuracy and macro F1.",
            citation="",
            inputs_description="Predicted and true classes.",
            features=datasets.Features(kinds),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {
            "accuracy": float(accuracy_score(references, predictions)),
            "f1": float(f1_score(references, predictions, average="macro")),
        }


def metric() -> Correctness:
    """The metric `Correctness` for one process; it leaves no file behind."""
    return Correctness(keep_in_memory=True)


def paired_bootstrap(
    ours: ArrayLike, base: ArrayLike, *, draws: int = DRAWS, level: float = LEVEL, seed: int = 0
) -> Interval:
    """Difference of two accuracies, with its bootstrap interval.

    Args:
        ours: Correctness (1 or 0) of every example, shape (examples,) or (seeds, examples).
        base: Correctness of the same examples (and seeds) for the model to compare with.
        draws: Number of resamples.
        level: Share of the resampled differences inside the interval.
        seed: Seed of the resampling.

    Returns:
        The difference and the interval. Examples are resampled, and all seeds of an example stay
        together. So more seeds do not count as more examples.
    """
    ours, base = np.atleast_2d(np.asarray(ours, float)), np.atleast_2d(np.asarray(base, float))
    if ours.shape != base.shape or not ours.size:
        raise ValueError(
            f"need the same examples twice, got shapes {ours.shape} and {base.shape}; pass arrays "
            "of the same shape"
        )
    # a resample is determined by how often it contains each value of the difference
    values, counts = np.unique((ours - base).mean(0).round(12), return_counts=True)
    examples = ours.shape[1]
    generator = np.random.default_rng(seed)
    means = generator.multinomial(examples, counts / examples, size=draws) @ values / examples
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values @ counts / examples), float(low), float(high))
