"""Filters a model's weights, or what training added to them, at times that a schedule gives."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hf_rmt.compression.apply import compress_shared
from hf_rmt.compression.decision import Decision
from hf_rmt.compression.execution.parallel import WorkResult
from hf_rmt.compression.refilter import filter_weight, first_plan
from hf_rmt.compression.shrinkage import along, leading_directions
from hf_rmt.compression.spectrum import spectrum
from hf_rmt.huggingface.training.choice import shared
from hf_rmt.huggingface.training.dose import EARLY, DosedUpdate, warn_unchanged, worse
from hf_rmt.huggingface.training.spectral_logs import spectral_logs
from hf_rmt.huggingface.training.start_weights import carry_start, digest, home, keep_start
from hf_rmt.huggingface.training.trainer import held_out_score, warn_unjudged
from hf_rmt.nn.counterparts import weight_matrix
from hf_rmt.nn.dense_matrix import set_matrix, to_weight
from hf_rmt.plan import CompressionPlan, LayerPlan
from hf_rmt.report import CompressionReport
from hf_rmt.settings import CompressionSettings

logger = logging.getLogger(__name__)

EARLY_FILE = "_rmt_early.safetensors"
OTHER = "parameter:"
"""Prefix for the names of start values of parameters other than the filtered weights."""
HARMFUL = 0.1
"""A warning is logged if one filter removes more than this share of the squared norm of the
weights."""


class ScheduledFilter:
    """Removes noise from weights, or from updates, at times that a schedule gives.

    An update is what training added to a weight; `RMTCallback` tells what noise is. During training
    no weight changes its shape. After training, `finish` can replace layers by compressed ones.

    Args:
        settings: The method that filters, and its options.
        schedule: `"epoch"`, `"end"`, or a number of update steps between two filters.
        target: `"weights"` or `"update"`.
        dose: What happens to the update when training ends. A number scales the whole update.
            `"auto"` keeps the part of each layer's update that lies in the leading singular
            directions that it had after a quarter of the training. None removes noise instead.
    """

    def __init__(
        self,
        settings: CompressionSettings,
        schedule: Literal["epoch", "end"] | int,
        target: Literal["weights", "update"],
        dose: float | Literal["auto"] | None = None,
    ) -> None:
        self.settings, self.schedule, self.target = settings, schedule, target
        self.dose = dose
        self.memory: dict[str, Any] = {}
        self.filtered_at = -1
        self._start: dict[str, Tensor] = {}
        self._names: list[str] = []
        self._early: dict[str, Tensor] = {}

    def begin(
        self, args: Any, state: Any, model: nn.Module, names: Sequence[str], saved: Any
    ) -> None:
        """Begin a run, or resume one from `saved`, the state in a checkpoint (None: a new run)."""
        self._names, self.filtered_at = list(names), -1
        blank: dict[str, Any] = {"first_filter": None, "first_plans": {}, "start_digest": None}
        folder, began = home(args, saved)
        self.memory = {**blank, **(saved or {}), "folder": folder}
        if self.target == "update" and saved is not None:
            self._start = carry_start(args, began, self.memory["start_digest"])
        elif self.target == "update":
            self._keep_start(args, model)
        early = self.memory.get("early_digest")
        self._early = carry_start(args, began, early, name=EARLY_FILE) if early else {}

    def step_begins(self, state: Any) -> None:
        """Do nothing before a training step, because no batch is measured."""

    def stop(self) -> None:
        """Do nothing, because nothing is measured during a training step."""

    def saved(self, args: Any, state: Any) -> None:
        """Do nothing, because a checkpoint holds everything that is needed."""

    def step_ends(self, args: Any, state: Any, control: Any, model: nn.Module) -> dict[str, float]:
        """If the schedule says so, remove noise after this step; return the numbers to log."""
        if self.dose == "auto" and state.global_step == max(1, round(EARLY * state.max_steps)):
            self._keep_early(args, model)
        every = self.schedule if isinstance(self.schedule, int) else None
        epoch_ends = self.schedule == "epoch" and float(state.epoch).is_integer()
        due = epoch_ends or (every and state.global_step % every == 0)
        return self.filter(state, model) if due else {}

    def epoch_ends(self, state: Any, control: Any, model: nn.Module) -> dict[str, float]:
        """At the end of an epoch, remove noise if `step_ends` did not; return numbers to log."""
        due = self.schedule == "epoch" and self.filtered_at != state.global_step
        return self.filter(state, model) if due and not control.should_training_stop else {}

    def finish(
        self,
        args: Any,
        state: Any,
        model: Any,
        *,
        loaded_best: bool,
    ) -> CompressionReport | None:
        """Remove noise from the trained model; return a report if its layers were compressed.

        `loaded_best` tells whether the model is the best checkpoint instead of the last one.
        """
        if self.dose is not None:
            self._apply_dose(args, state, model)
            return None
        step = (state.best_global_step or 0) if loaded_best else state.global_step
        first = self.memory["first_filter"]
        if first is not None and step < first:
            self.memory |= {"first_filter": None, "first_plans": {}}
        if self.target == "weights":
            report = compress_shared(model, self._names, self.settings, decide=self._decide)
            if self.memory["first_filter"] is None:
                _warn_of_harm(report.plan.dropped_energy)
            return report
        if loaded_best or self.filtered_at != step:
            self.filter(state, model)
        return None

    def observe(self, model: nn.Module) -> dict[str, float]:
        """Return numbers to log about the eigenvalues of each layer; nothing is filtered."""

        def work(name: str) -> WorkResult:
            return spectrum(self._matrix(model, name), self.settings), {}

        outcomes = shared(model, self._names, work)
        fits = {name: fit for name, (fit, _) in zip(self._names, outcomes, strict=True)}
        return spectral_logs(fits)

    def filter(self, state: Any, model: nn.Module) -> dict[str, float]:
        """Remove noise from all layers in place; return what to log. Processes share the work."""

        def work(name: str) -> WorkResult:
            matrix = self._matrix(model, name)
            result = self._decide(name, matrix, self.settings)
            filtered = result.dense(matrix)
            new = name not in self.memory["first_plans"]
            plan = first_plan(result, self.settings) if new else None
            lost = 0.0 if filtered is None else _lost(matrix, filtered)
            found = result.fit, plan, lost
            return found, {} if filtered is None else {"weight": filtered}

        fits, plans, losses = {}, [], []
        outcomes = shared(model, self._names, work)
        for name, ((fit, plan, lost), tensors) in zip(self._names, outcomes, strict=True):
            fits[name] = fit
            if tensors:
                self._replace(model, name, tensors["weight"])
                losses.append(lost)
            if plan is not None:
                plans.append(plan)
        new = CompressionPlan(tuple(plans)).to_dict()
        self.memory["first_plans"] = {**self.memory["first_plans"], **new}
        dropped = fmean(losses) if losses else 0.0
        if self.memory["first_filter"] is None:
            self.memory["first_filter"] = state.global_step
            if self.target == "weights":
                _warn_of_harm(dropped)
        self.filtered_at = state.global_step
        return {**spectral_logs(fits), "rmt/energy_dropped": dropped}

    def _keep_start(self, args: Any, model: nn.Module) -> None:
        """Keep the weights at the start of training in memory and beside the checkpoints."""
        weights = {name: weight_matrix(model.get_submodule(name)) for name in self._names}
        if self.dose not in (None, "auto"):
            layers = {f"{name}.weight" for name in self._names}
            weights |= {
                f"{OTHER}{name}": part.detach()
                for name, part in model.named_parameters()
                if name not in layers
            }
        self._start = {
            name: weight.to("cpu", copy=True).contiguous() for name, weight in weights.items()
        }
        self.memory["start_digest"] = digest(self._start)
        keep_start(self._start, args)

    def _keep_early(self, args: Any, model: nn.Module) -> None:
        """Store the leading singular vectors of what training has added to each layer so far."""

        def work(name: str) -> WorkResult:
            left, right = leading_directions(self._matrix(model, name))
            return None, {"left": left, "right": right}

        outcomes = shared(model, self._names, work)
        self._early = {
            f"{name} {side}": tensor.cpu()
            for name, (_, tensors) in zip(self._names, outcomes, strict=True)
            for side, tensor in tensors.items()
        }
        self.memory["early_digest"] = digest(self._early)
        keep_start(self._early, args, name=EARLY_FILE)

    def _apply_dose(self, args: Any, state: Any, model: nn.Module) -> None:
        """Scale the whole update (what training added), or keep only a part of it.

        The part lies in the leading singular directions that a layer's update had after a quarter
        of the training. If the model with this part scores worse on evaluation rows than the
        trained model, the trained model stays.
        """
        if self.dose != "auto":
            DosedUpdate(model, self._parameters(model), self._names).place(self.dose or 1.0)
            return
        if not self._early:
            logger.warning(
                "training ended before a quarter of its steps, so dose='auto' has no early "
                "directions: the model stays as it was trained; train longer"
            )
            return

        led = [name for name in self._names if self._early[f"{name} left"].shape[1]]
        warn_unchanged([name for name in self._names if name not in led])

        def work(name: str) -> WorkResult:
            left, right = (self._early[f"{name} {side}"] for side in ("left", "right"))
            return None, {"update": along(self._matrix(model, name), left, right)}

        outcomes = list(shared(model, led, work)) if led else []
        score = held_out_score(args, state)
        trained = {name: weight_matrix(model.get_submodule(name)).clone() for name in led}
        before = None if score is None else score()
        for name, (_, tensors) in zip(led, outcomes, strict=True):
            self._replace(model, name, tensors["update"])
        if score is None or before is None:
            return
        if math.isnan(before):
            warn_unjudged("its score on the evaluation rows is nan")
            return
        stays = False
        try:
            stays = not worse(before, score())
        finally:  # after an error too, the model is as it was trained
            for name in () if stays else led:
                set_matrix(model.get_submodule(name), trained[name])

    def _parameters(self, model: nn.Module) -> dict[str, Tensor]:
        """A dict from names of parameters to their values at the start of training."""
        found = {}
        for name, start in self._start.items():
            if name.startswith(OTHER):
                found[name.removeprefix(OTHER)] = start
            else:
                found[f"{name}.weight"] = to_weight(model.get_submodule(name), start)
        return found

    def _decide(self, name: str, weight: Tensor, settings: CompressionSettings) -> Decision:
        first = self._first_plan(name)
        return filter_weight(name, weight, settings, first, of_update=self.target == "update")

    def _first_plan(self, name: str) -> LayerPlan | None:
        entry: Mapping[str, Any] | None = self.memory["first_plans"].get(name)
        return None if entry is None else CompressionPlan.from_dict({name: entry}).layers[0]

    def _matrix(self, model: nn.Module, name: str) -> Tensor:
        """The matrix of a layer that is filtered: its weight, or what training added to it."""
        weight = weight_matrix(model.get_submodule(name))
        return weight if self.target == "weights" else weight - self._start[name].to(weight)

    def _replace(self, model: nn.Module, name: str, matrix: Tensor) -> None:
        whole = matrix if self.target == "weights" else self._start[name].to(matrix) + matrix
        set_matrix(model.get_submodule(name), whole)


def _lost(matrix: Tensor, filtered: Tensor) -> float:
    """Share of the squared Frobenius norm that a filter removed."""
    whole, rest = (
        float(torch.linalg.vector_norm(part, dtype=torch.float64)) ** 2
        for part in (matrix, matrix - filtered)
    )
    return rest / whole if whole else 0.0


def _warn_of_harm(dropped: float) -> None:
    """Warn if a filter removed much of the energy (squared norm) of the weights at once."""
    if dropped > HARMFUL:
        logger.warning(
            "this filter removed %.0f %% of the energy of the weights at once, which destroys "
            "most pretrained models; instead, use RMTCallback(), which keeps what the inputs need "
            "and scales the rest down slowly, or RMTCallback(target='update'), which filters only "
            "what training added",
            100 * dropped,
        )
