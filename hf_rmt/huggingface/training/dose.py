"""Chooses how much of an update is kept, on rows (samples) that were not trained on.

An update is what training added to the weights. If labels are wrong, a part of the update is
memorised noise. Two remedies are tried. The first scales down the whole update, that is, it
interpolates between the weights before and after training (Wortsman et al., CVPR 2022). The second
keeps only the spikes of the update of each selected layer. Spikes are the few large singular values
of an update; they are also made smaller. The rows may have wrong labels too. If labels are wrong
equally often in all classes, the scores change, but not their order.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn

from hf_rmt.checks import check_number, checked_score
from hf_rmt.compression.decision import rewritten_plan
from hf_rmt.compression.execution.parallel import of_first
from hf_rmt.compression.execution.rendezvous import n_processes
from hf_rmt.compression.shrinkage import shrunk_update
from hf_rmt.compression.targets.names import some
from hf_rmt.huggingface.training.choice import shared
from hf_rmt.nn.dense_matrix import to_matrix, to_weight
from hf_rmt.plan import CompressionPlan

SCALES = (1.0, 0.8, 0.65, 0.5, 0.35, 0.2)
"""The factors that are tried, one after the other, to scale an update. An update is what training
added to the weights."""
EARLY = 0.25
"""Part of the training after which the leading directions (singular vectors) of updates are
stored. An update is what training added to a weight. What training adds so early is taken as
signal."""

UNCHANGED = "unchanged at the early checkpoint, so all of its update stays"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dose:
    """What was kept of an update, which is what training added to the weights.

    Attributes:
        scale: The factor by which the whole update was multiplied.
        spikes: Whether the selected layers kept only the spikes of their updates. Spikes are the
            few large singular values, which were also made smaller.
        scores: The score of each scale that was tried, by a name: "0.5" for the whole update,
            "0.5 spikes" for its shrunk spikes only. Empty if nothing was tried.
    """

    scale: float
    spikes: bool
    scores: Mapping[str, float] = field(default_factory=dict)


def check_dose(dose: Any) -> None:
    """Refuse a dose that is neither "auto", a number in (0, 1] nor None.

    A dose says how much is kept of what training added to the weights.

    Raises:
        TypeError: If the dose has another type.
        ValueError: If the dose has another value.
    """
    if dose is None or dose == "auto":
        return
    if isinstance(dose, str):
        raise ValueError(f"dose must be 'auto', a number in (0, 1] or None, got {dose!r}")
    check_number("dose", dose, "(0")


def worse(before: float, after: float) -> bool:
    """Whether a dose lowered the score on held-out rows; if so, a warning is logged.

    A dose cuts down the update of each layer, which is what training added to the weight. Process 0
    decides for all processes.

    Args:
        before: The score of the model as it was trained; higher is better.
        after: The score after each update was cut to the leading singular directions that it had
            after a quarter of the training.
    """
    verdict = [not after >= before]  # a score of nan is worse than any
    if n_processes() > 1:
        distributed.broadcast_object_list(verdict, src=0)
    if verdict[0]:
        logger.warning(
            "dose='auto' lowers the score on the evaluation rows (accuracy, else minus the loss) "
            "from %.4g to %.4g, so the model stays as it was trained. Either few labels are wrong, "
            "or a quarter of the training was too short to learn the task",
            before,
            after,
        )
    return verdict[0]


def warn_unchanged(names: Sequence[str]) -> None:
    """Warn of layers that had not changed, or held nan or inf, after a quarter of the training."""
    if names:
        logger.warning(
            "%s: no early directions, because these layers had not changed after a quarter of the "
            "training, or held nan or inf; all of what they learnt stays",
            some(names),
        )


class DosedUpdate:
    """Moves a trained model to weights between those before and after training.

    Args:
        model: The trained model.
        starts: Parameters of the model before training, by name. Parameters that are not given
            stay as they were trained.
        names: The layers whose updates (what training added) may be cut to their spikes, a few
            large singular values.
    """

    def __init__(
        self, model: nn.Module, starts: Mapping[str, Tensor], names: Sequence[str]
    ) -> None:
        self.parameters = dict(model.named_parameters())
        self.starts = {name: start for name, start in starts.items() if name in self.parameters}
        self.ends = {name: self.parameters[name].detach().clone() for name in self.starts}
        self.model, self.names = model, [name for name in names if f"{name}.weight" in self.starts]
        self._cut: dict[str, Tensor] | None = None

    def apply(self, dose: float | Literal["auto"], evaluate: Callable[[], float]) -> Dose:
        """Scale the update, which is what training added to the weights, by a number.

        Args:
            dose: The number. `"auto"` tries several numbers, for the whole update and for its few
                large singular values alone, and takes what gives the best score.
            evaluate: A function that returns the score of the present model; higher is better.

        Returns:
            The `Dose` that was taken; the model now has the scaled update. After an error, the
            model has the weights that training gave it.

        Raises:
            TypeError: If a score is not a number.
            ValueError: If no score is finite.
            RuntimeError: On every process, if the score failed on one of several processes.
        """
        if dose != "auto":
            self.place(dose, spikes=False)
            return Dose(dose, False)
        try:
            scores = self._scores(evaluate)
        except BaseException:
            self.place(1.0)
            raise
        scale, cut = max(scores, key=lambda key: _number(scores[key]))
        self.place(scale, spikes=cut)
        told = {f"{one}{' spikes' if two else ''}": score for (one, two), score in scores.items()}
        return Dose(scale, cut, told)

    def _scores(self, evaluate: Callable[[], float]) -> dict[tuple[float, bool], float]:
        """Scores of the model, each for one pair (scale, whether only the spikes are kept).

        Before each score, the update is scaled. It is what training added to the weights, and its
        spikes are a few large singular values.
        """
        scores = {}
        for spikes in (False, True):
            for scale in SCALES:
                self.place(scale, spikes=spikes)
                scores[scale, spikes] = of_first(
                    lambda: checked_score(evaluate()), doing="ran evaluate"
                )
        if not any(map(math.isfinite, scores.values())):
            raise ValueError(
                f"evaluate gave no finite score at {len(scores)} doses, but nan or inf; return an "
                "accuracy, or minus a loss, on rows with labels"
            )
        return scores

    @torch.no_grad()
    def place(self, scale: float, *, spikes: bool = False) -> None:
        """Set the weights to start + scale * update, where the update is what training added.

        With `spikes`, only a few large singular values of the update are kept, made smaller.
        """
        cut = self._spikes() if spikes else {}
        for name, start in self.starts.items():
            end = self.ends[name]
            if scale == 1 and name not in cut:
                self.parameters[name].copy_(end)
                continue
            begin = start.to(end)
            update = cut[name] if name in cut else end - begin
            self.parameters[name].copy_(begin + scale * update)

    def plan(self, dose: Dose) -> CompressionPlan:
        """A plan that says how each layer's update was scaled and what was cut off, for a report.

        The update of a layer is what training added to its weight.
        """
        reason = f"update scaled by {dose.scale:g}" + ", shrunk spikes only" * dose.spikes
        plans = []
        for name in self.names:
            start, end = self.starts[f"{name}.weight"], self.ends[f"{name}.weight"]
            layer = self.model.get_submodule(name)
            update = to_matrix(layer, end - start.to(end)).float()
            rest = update - to_matrix(
                layer, self.parameters[f"{name}.weight"].detach() - start.to(end)
            )
            whole, lost = (float(part.square().sum(dtype=torch.float64)) for part in (update, rest))
            plan = rewritten_plan(name, update.to(end.dtype), reason)
            plans.append(replace(plan, dropped_energy=lost / whole if whole else 0.0))
        return CompressionPlan(tuple(plans))

    def _spikes(self) -> dict[str, Tensor]:
        """A dictionary from the name of each weight to the filtered update of this weight.

        The update is what training added. Its spikes, a few large singular values, are kept and
        made smaller. This is computed once, and the processes share the work.
        """
        if self._cut is not None:
            return self._cut

        def work(name: str) -> Any:
            layer = self.model.get_submodule(name)
            end = self.ends[f"{name}.weight"]
            update = to_matrix(layer, end - self.starts[f"{name}.weight"].to(end))
            return None, {"update": shrunk_update(update)[0]}

        outcomes = shared(self.model, self.names, work)
        self._cut = {
            f"{name}.weight": to_weight(self.model.get_submodule(name), tensors["update"])
            for name, (_, tensors) in zip(self.names, outcomes, strict=True)
        }
        return self._cut


def _number(score: float) -> float:
    return score if math.isfinite(score) else -math.inf
