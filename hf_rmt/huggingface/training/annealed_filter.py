"""Shrinks a part of each weight, its noise, to zero in training; the batches tell which part."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hf_rmt.compression.apply import compress_shared
from hf_rmt.compression.calibration.excited import cut
from hf_rmt.compression.calibration.low_rank import LayerMoments
from hf_rmt.compression.calibration.ranks import shared_ranks
from hf_rmt.compression.decision import Decision, dense_plan
from hf_rmt.compression.execution.parallel import WorkResult
from hf_rmt.compression.methods.truncation import of_rank
from hf_rmt.compression.weight import compress_weight
from hf_rmt.huggingface.training.anneal import Anneal, amount, choice_steps
from hf_rmt.huggingface.training.batch_moments import measurable
from hf_rmt.huggingface.training.choice import Size, choose, energy, probes_again, shared
from hf_rmt.huggingface.training.moment_windows import GATHERED, MomentWindows
from hf_rmt.huggingface.training.start_weights import carry_start, digest, home, keep_start
from hf_rmt.huggingface.training.trainer import is_compiled
from hf_rmt.nn.counterparts import matrix_shape, weight_matrix
from hf_rmt.nn.dense_matrix import set_matrix
from hf_rmt.plan import Cause
from hf_rmt.report import CompressionReport
from hf_rmt.settings import CompressionSettings

logger = logging.getLogger(__name__)

EVERY, CUTS = 8, 16
"""A cut shrinks the noise in the weights. At most `EVERY` update steps lie between two cuts. If
there are enough steps, at least `CUTS` cuts are made. Each evaluation and save follows a cut."""
RETURNED = 0.05
"""If noise again has more than this share of the weights' squared norm after it was all removed,
then something else writes old weights back, and a warning is logged."""
MOSTLY_DENSE = 0.75
"""If more than this share of the parameters is kept, little is saved, and a warning is logged."""
PROBES_FILE = "_rmt_probes-{step}.safetensors"


class AnnealedFilter:
    """Chooses directions (parts of rank one) that weights keep, and shrinks the rest, the noise.

    While the noise shrinks, the model goes on learning. So the directions are chosen two more
    times, with the same ranks: half-way and at the end.

    Args:
        settings: Which layers are filtered, and how their ranks are found if no size is given.
        anneal: When the noise begins to shrink, and when it is gone.
        size: Share of the layers' parameters to keep; `"auto"` to find it from the batches; None
            if the settings decide.
    """

    def __init__(self, settings: CompressionSettings, anneal: Anneal, size: Size) -> None:
        self.settings, self.anneal, self.size = settings, anneal, size
        self.memory: dict[str, Any] = {}
        self.first = self.last = 0
        self._warned = False
        self._names: list[str] = []
        self._probes: dict[str, Tensor] = {}
        self._windows: MomentWindows | None = None

    @property
    def chosen(self) -> dict[str, dict[str, Any]]:
        """What was decided for each layer, such as the rank to keep; empty before the decision."""
        return self.memory.get("layers", {})

    def begin(
        self, args: Any, state: Any, model: nn.Module, names: Sequence[str], saved: Any
    ) -> None:
        """Start a training, or continue one; then `saved` is the `memory` from its checkpoint."""
        self.first, self.last = self.anneal.steps(
            max_steps=state.max_steps, epochs=state.num_train_epochs
        )
        joined = saved.get("joined_at", 0) if saved else state.global_step
        if joined:  # this callback came when a run without it was resumed
            soon = min(joined + GATHERED, state.max_steps)
            self.first, self.last = max(self.first, soon), max(self.last, soon)
        self._names = list(names)
        folder, began = home(args, saved)
        blank = {"cut_at": None, "left": 1.0, "joined_at": joined}
        self.memory = {**blank, **(saved or {}), "folder": folder}
        self._probes = {}
        reached = measurable(model, names, self.settings.min_size)
        self._check_size(model, reached)
        chosen_at = self.memory.get("chosen_at")
        self._windows = MomentWindows(
            model,
            reached,
            choice_steps(self.first, self.last),
            chosen_at=chosen_at,
            compiled=is_compiled(args, model),
        )
        if self.chosen:
            name = PROBES_FILE.format(step=chosen_at)
            probes = carry_start(args, began, self.memory["probes"], name=name)
            device = next(model.parameters()).device
            self._probes = {name: probe.to(device) for name, probe in probes.items()}
        if saved and self._windows.gathers(state.global_step - 1):
            self._windows.load(args, began, state.global_step)

    def _check_size(self, model: nn.Module, names: Sequence[str]) -> None:
        """Before training, refuse a size that is too small to keep rank one in each layer."""
        if self.size is not None:
            shapes = {name: matrix_shape(model.get_submodule(name)) for name in names}
            least = 1.0 if self.size == "auto" else self.size
            shared_ranks({name: torch.ones(1) for name in names}, shapes, least)

    def step_begins(self, state: Any) -> None:
        """Measure layers' inputs and gradients in the last steps before directions are chosen."""
        if self._windows is not None:
            self._windows.step_begins(state.global_step)

    def step_ends(self, args: Any, state: Any, control: Any, model: nn.Module) -> dict[str, float]:
        """At planned steps, choose what weights keep or shrink the rest; return numbers to log."""
        assert self._windows is not None
        step = state.global_step
        if self._windows.due(step):
            self._choose(args, model, step, self._windows.take(step))
        if not self.chosen:
            return {}
        wanted = control.should_save or control.should_evaluate or step >= state.max_steps
        every = min(EVERY, max(1, (self.last - self.first) // CUTS))
        if (step - self.first) % every == 0 or wanted or step == self.last:
            self._cut(model, step)
        if step == self.last:
            forget_best(state)
        logs = step in (self.first, self.last) or control.should_log
        return self._numbers() if logs and step >= self.first else {}

    def epoch_ends(self, state: Any, control: Any, model: nn.Module) -> None:
        """Shrink the noise in weights before they are evaluated or saved at the end of an epoch."""
        if control.should_save or control.should_evaluate or control.should_training_stop:
            self._cut(model, state.global_step)

    def saved(self, args: Any, state: Any) -> None:
        """Save the measured sums (see `BatchMoments`) in the folder of a checkpoint."""
        if self._windows is not None:
            self._windows.save(args, state.global_step)

    def stop(self) -> None:
        """Stop measuring batches and remove the hooks; to be called after an error, too."""
        if self._windows is not None:
            self._windows.stop()

    def finish(
        self, args: Any, state: Any, model: Any, *, loaded_best: bool
    ) -> CompressionReport | None:
        """Compress the trained model and return a report; None if no ranks were chosen yet."""
        self.stop()
        if not self.chosen:
            logger.warning(
                "training ended after step %d, but RMTCallback chooses what to keep after step "
                "%d: the model stays as it was trained; train longer, or let anneal start earlier",
                state.global_step,
                self.first,
            )
            return None
        self._finish_cut(state, model, loaded_best=loaded_best)
        return compress_shared(model, self._names, self.settings, decide=self._decide)

    def _finish_cut(self, state: Any, model: nn.Module, *, loaded_best: bool) -> None:
        """Remove noise that is left in weights after training; log a warning if there is any."""
        step, left = state.global_step, self.memory["left"]
        if loaded_best:
            step = state.best_global_step or 0
            left = amount(step, self.first, self.last)
        if left > 0:
            logger.warning(
                "the final model is that of step %d and still has %.0f %% of its noise, which "
                "would be gone after step %d; this noise is removed now, so evaluate again, or "
                "let anneal end earlier",
                step,
                100 * left,
                self.last,
            )
        if left > 0 or (not loaded_best and self.memory["cut_at"] != step):
            self._shrink(model, 0.0)
            self.memory |= {"left": 0.0, "cut_at": step}

    def _cut(self, model: nn.Module, step: int) -> None:
        """Shrink the noise in weights to the share that the schedule gives for this update step."""
        if not self.chosen or self.memory["cut_at"] == step:
            return
        left = amount(step, self.first, self.last)
        before = self.memory["left"]
        if left < 1:
            lost = self._shrink(model, left / before if before > 0 else 0.0)
            if before == 0 and lost > RETURNED and not self._warned:
                self._warned = True
                _warn_returned(lost)
        self.memory |= {"left": left, "cut_at": step}

    def _shrink(self, model: nn.Module, ratio: float) -> float:
        """Multiply the noise in weights by `ratio`; return the share of squared norm lost."""

        def work(name: str) -> WorkResult:
            weight = weight_matrix(model.get_submodule(name))
            left, right = (self._probes[f"{name} {side}"] for side in ("left", "right"))
            new = cut(weight, left, right, ratio)
            return [energy(weight), energy(weight - new)], {"weight": new}

        names = [name for name, entry in self.chosen.items() if entry["rank"] is not None]
        whole = gone = 0.0
        for name, (energies, tensors) in zip(names, shared(model, names, work), strict=True):
            set_matrix(model.get_submodule(name), tensors["weight"])
            whole, gone = whole + energies[0], gone + energies[1]
        return gone / whole if whole else 0.0

    def _choose(
        self, args: Any, model: nn.Module, step: int, excited: Mapping[str, LayerMoments]
    ) -> None:
        """Choose the parts of rank one that weights keep; the first call also chooses the ranks.

        `excited` holds, by layer, second moments of inputs and gradients in recent batches.
        """
        assert self._windows is not None
        if not_finite := self._windows.not_finite:
            _warn_not_finite(not_finite, step)
        if self.chosen:
            self._probes |= probes_again(model, self.chosen, excited)
        else:
            rule = self.settings, self.size
            choice = choose(model, self._names, excited, *rule, not_finite=not_finite)
            if self.size == "auto" and choice.share > MOSTLY_DENSE and not not_finite:
                _warn_mostly_dense(choice.share)
            self._probes = choice.probes
            self.memory |= {"left": 1.0, "layers": choice.layers, "share": choice.share}
        kept = {
            name: probe.to("cpu", copy=True).contiguous() for name, probe in self._probes.items()
        }
        self.memory |= {"cut_at": None, "chosen_at": step, "probes": digest(kept)}
        keep_start(kept, args, name=PROBES_FILE.format(step=step))

    def _numbers(self) -> dict[str, float]:
        """Numbers to log: noise left, share of squared norm lost, parameters kept, mean rank."""
        kept = [entry for entry in self.chosen.values() if entry["rank"] is not None]
        # A checkpoint sorts the layers by name, and fsum does not depend on their order.
        whole = math.fsum(entry["energy"] for entry in kept)
        rest = math.fsum(entry["rest"] for entry in kept)
        left = self.memory["left"]
        return {
            "rmt/noise_left": left,
            "rmt/energy_scaled_away": (1 - left**2) * rest / whole if whole else 0.0,
            "rmt/parameter_share": self.memory["share"],
            "rmt/rank": sum(entry["rank"] for entry in kept) / max(1, len(kept)),
        }

    def _decide(self, name: str, weight: Tensor, settings: CompressionSettings) -> Decision:
        """The decision on one layer: its exact low-rank factors, or why it is not compressed."""
        entry = self.chosen[name]
        if entry["rank"] is None:
            cause, phase = Cause(entry["cause"]), entry.get("phase", "")
            return Decision(dense_plan(name, weight, cause, entry["reason"], phase=phase))
        told = of_rank(settings, entry["rank"])
        result = compress_weight(name, weight, told.replace(noise_removal=1.0, max_rank=None))
        about = {key: entry[key] for key in ("phase", "n_spikes", "upper_edge") if key in entry}
        lost = entry["rest"] / entry["energy"] if entry["energy"] else 0.0
        return replace(result, plan=replace(result.plan, dropped_energy=lost, **about))


def forget_best(state: Any) -> None:
    """Clear the best checkpoint from the Trainer's `state`: its weights still contain noise."""
    state.best_metric = state.best_global_step = state.best_model_checkpoint = None


def _warn_not_finite(names: Sequence[str], step: int) -> None:
    logger.warning(
        "the batches before step %d gave nan or inf to %d layers, such as %r: these layers stay "
        "dense, or keep the parts that earlier batches chose; check the loss, lower the learning "
        "rate, or train in bfloat16 or float32",
        step,
        len(names),
        names[0],
    )


def _warn_returned(share: float) -> None:
    logger.warning(
        "the noise came back after it was removed: it has %.0f %% of the weights' energy. Does the "
        "optimizer keep a copy of the weights, as for mixed precision, Lookahead or an average? "
        "All this noise is removed at once when training ends, so train without such a copy, or "
        "without RMTCallback and then call hf_rmt.compress",
        100 * share,
    )


def _warn_mostly_dense(share: float) -> None:
    logger.warning(
        "size='auto' keeps %.0f %% of the parameters, because most of them matter; pass "
        "size=0.5 and compare the accuracy, or train without RMTCallback and store 4 bits a weight "
        "with hf_rmt.compress(model, RMTConfig(noise='int4'), calibration=batches)",
        100 * share,
    )
