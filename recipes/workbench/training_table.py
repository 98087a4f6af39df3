"""The table of `bench_training.py` and `bench_wrong_labels.py`: one row a way of training."""

from __future__ import annotations

from typing import Any

from workbench.common import paired_bootstrap

import numpy as np


def table(task: str, results: dict[str, list[dict[str, Any]]]) -> str:
    """Accuracies, differences to the first row with intervals, shares and times."""
    base = next(iter(results.values()))
    lines = [f"{task:18}accuracy  difference (95 %)          share   time"]
    for row, runs in results.items():
        ours, theirs = ([run["correct"] for run in part] for part in (runs, base))
        gap = paired_bootstrap(ours, theirs)
        share = np.mean([run["share"] for run in runs])
        ratio = np.median(
            [run["seconds"] / other["seconds"] for run, other in zip(runs, base, strict=True)]
        )
        interval = f"{gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]"
        lines.append(f"{row:18}{np.mean(ours):.4f}    {interval}   {share:5.3f}  {ratio:5.2f}")
    return "\n".join(lines)
