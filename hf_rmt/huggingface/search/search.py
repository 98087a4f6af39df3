"""`search` finds how much noise weights can lose while a metric falls only a little.

A weight is a sum of a low-rank part, the signal, and the rest, the noise.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from numbers import Real
from statistics import fmean
from typing import Any

from torch import Tensor, nn

from hf_rmt.checks import check_integer, plain_number
from hf_rmt.compression.execution.agreement import agreed
from hf_rmt.compression.execution.rendezvous import collective
from hf_rmt.compression.methods.spectral import spectral_method_of
from hf_rmt.compression.refusals import check_module
from hf_rmt.compression.targets.selection import compressible_layers
from hf_rmt.huggingface.api import check_compressible
from hf_rmt.huggingface.config import RMTConfig
from hf_rmt.huggingface.search.trials import Log, NoiseStates, Removal
from hf_rmt.huggingface.training.start_weights import digest
from hf_rmt.plan import CompressionPlan
from hf_rmt.report.search import SearchReport, within

FRACTIONS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Fractions of the noise that are tried by default. A published experiment had the same range."""
MAX_EVALUATIONS = 100
"""Default limit on calls of `evaluate`, enough for three calls for each of 30 layers."""
DECIDED = ("noise_removal", "layers", "base_model")
"""Fields of a config that the search or the library sets, not the user."""


class SearchResult(SearchReport):
    """The result of `search`: a `SearchReport` that also has a config for `hf_rmt.compress`."""

    @property
    def config(self) -> RMTConfig:
        """The config with which `hf_rmt.compress` removes the noise that the search removed.

        Raises:
            ValueError: If nothing could be removed.
        """
        if not self.removal:
            raise ValueError(
                f"no noise can be removed within tolerance={self.tolerance:g}, so there is no "
                "config to compress with; raise the tolerance, or compress with RMTConfig(), which "
                "stores the noise"
            )
        return RMTConfig(**self.settings, noise_removal=dict(self.removal))


@collective
def search(
    model: nn.Module,
    evaluate: Callable[[Any], float],
    *,
    tolerance: float,
    config: RMTConfig | None = None,
    fractions: Iterable[float] = FRACTIONS,
    max_evaluations: int = MAX_EVALUATIONS,
    resume_from: str | os.PathLike[str] | None = None,
) -> SearchResult:
    """Find the most noise that each layer can lose while metric >= baseline - tolerance.

    The method of `config` splits a weight into its signal (a low-rank part) and its noise (the
    rest). The baseline is the metric of the model as it is. First, the search removes the same
    fraction of the noise from all layers. It does this for each fraction, which gives a curve. The
    search goes on from the largest fraction with which the metric stays within the tolerance. It
    raises the fraction of one layer at a time by bisection. Layers whose noise has the least energy
    (squared norm) come first, because losing this noise lowers the metric least. The result is
    evaluated once more at the end. The model is left exactly as it was, also after an error.

    In addition to the evaluations, the search takes the time of one `compress`. It holds in memory
    a second copy of the layers, and singular vectors of the weights. In float32 these vectors are
    at most as large as the layers. If torch.distributed runs, every process calls
    `search` on its replica and evaluates it. The metric of process 0 counts for all processes.

    Args:
        model: A model with its weights in memory.
        evaluate: A function that returns the metric of a model; higher is better. It must be
            deterministic and must not change weights. It gets the model as `compress` leaves it.
        tolerance: How far the metric may fall below the baseline, in the unit of the metric, at
            least 0.
        config: The method and the layers; `noise` must be "drop". None: `RMTConfig(noise="drop")`.
        fractions: The fractions of the noise that are tried, each in (0, 1].
        max_evaluations: Largest number of calls of `evaluate`, including the calls in a resumed
            file. Layers that are not reached keep the fraction that was found for all layers.
        resume_from: JSON file to which each evaluation is written immediately. If the same search
            is run again, it continues from this file, also with another `max_evaluations`.

    Returns:
        The result. `hf_rmt.compress(model, result.config)` removes the same noise.

    Raises:
        TypeError: If the model is not a module, or the metric is not a number.
        ValueError: If an argument is out of range, the file belongs to another search, no layer
            has noise to remove, or the baseline is not finite.
        RuntimeError: On every process, if one process failed.
    """
    config = RMTConfig(noise="drop") if config is None else config
    tolerance, max_evaluations = plain_number(tolerance), plain_number(max_evaluations)
    grid = _check_types(model, evaluate, tolerance, fractions, max_evaluations)
    check_compressible(model, config)
    _check(config, tolerance, grid, max_evaluations)
    asked = {"tolerance": tolerance, "fractions": grid, "max_evaluations": max_evaluations}
    names = agreed(model, lambda: compressible_layers(model, config), config, asked)
    identity = {} if resume_from is None else _identity(model, config, tolerance, grid)
    states = NoiseStates(model, names, config)
    log = Log(evaluate, states, most=max_evaluations, path=resume_from, identity=identity)
    try:
        return _Search(states, log, tolerance, grid).run()
    finally:
        log.bar.close()
        states.restore()


class _Search:
    """Tries one state of the model after the other, and measures the metric of each.

    A state says for each layer which fraction of its noise is removed. The noise of a layer is the
    part of its weight that is not signal.
    """

    def __init__(self, states: NoiseStates, log: Log, tolerance: float, grid: list[float]) -> None:
        self.states, self.log, self.tolerance, self.grid = states, log, tolerance, grid
        self.baseline = self._first_metric({})
        if not math.isfinite(self.baseline):
            raise ValueError(
                f"the metric of the unfiltered model must be finite, got {self.baseline}; correct "
                "evaluate"
            )
        self.grids = states.grids(grid)

    def run(self) -> SearchResult:
        """Run the search: the curve, the bisection and the final check.

        The curve removes the same fraction of noise from all layers. The bisection then raises the
        fraction of one layer after the other. The check measures the result again.
        """
        alike = [self._alike(fraction) for fraction in self.grid]
        curve = [(self._mean(state), self._first_metric(state)) for state in alike]
        held = [
            state for state, (_, metric) in zip(alike, curve, strict=True) if self._holds(metric)
        ]
        start = max(held, key=lambda state: sum(state.values()), default={})
        removal, metric = self._checked(self._refined([start] if start else []))
        removal = self.states.apply(removal)
        return SearchResult(
            baseline=self.baseline,
            tolerance=self.tolerance,
            metric=metric,
            removal=removal,
            curve=tuple(sorted(curve, key=lambda point: point[0])),
            evaluations=tuple(self.log.evaluations),
            layers=dict(self.states.shapes),
            plan=CompressionPlan(tuple(self.states.plans[name] for name in removal)),
            settings=_settings(self.states.config),
        )

    def _alike(self, fraction: float) -> Removal:
        """The state (see `_Search`) in which all layers lose the same fraction of their noise.

        The result maps layer names to this fraction. A layer that cannot lose exactly this fraction
        is left out, and loses nothing.
        """
        return {name: fraction for name, grid in self.grids.items() if fraction in grid}

    def _mean(self, state: Removal) -> float:
        """The fraction of noise that a layer loses, as a mean over all layers.

        `state` holds this fraction by the layer's name. A layer that it does not name loses 0.
        """
        return fmean(state.get(name, 0.0) for name in self.states.shapes)

    def _refined(self, accepted: list[Removal]) -> list[Removal]:
        """For one layer after the other, find the largest fraction of its noise to remove.

        The metric must stay within the tolerance. The fraction is found by bisection.

        Args:
            accepted: A list with the state to begin with (see `_Search`), or an empty list.

        Returns:
            The given state, and all states found within the tolerance. Each state removes more
            noise than the one before it.
        """
        for name, grid in self.grids.items():
            state = accepted[-1] if accepted else {}
            larger = [fraction for fraction in grid if fraction > state.get(name, 0.0)]
            low, high = 0, len(larger)
            while low < high:
                middle = (low + high) // 2
                trial = state | {name: larger[middle]}
                metric = self.log.metric(trial, spare=1)
                if metric is None:
                    return accepted
                if self._holds(metric):
                    accepted, low = [*accepted, trial], middle + 1
                else:
                    high = middle
        return accepted

    def _checked(self, accepted: list[Removal]) -> tuple[Removal, float]:
        """Measure accepted states again; return the first one that passes, and its metric.

        A state (see `_Search`) passes if its metric is within the tolerance. The last state, which
        removes most noise, is measured first. If it fails, the later half of the states is left
        out, and the last state of the rest is measured. If no state is left, the result is an empty
        state, which stands for the unchanged model, and the metric of this model.
        """
        while accepted:
            metric = self.log.metric(accepted[-1], again=True)
            if metric is not None and self._holds(metric):
                return accepted[-1], metric
            accepted = accepted[: len(accepted) // 2]
        return {}, self.baseline

    def _holds(self, metric: float) -> bool:
        return within(metric, self.baseline, self.tolerance)

    def _first_metric(self, removal: Removal) -> float:
        """The metric of a state (see `_Search`) that the search measures at its start.

        These states are the unchanged model, and those in which all layers lose the same fraction
        of their noise. `_check` made sure that the limit on evaluations allows this.
        """
        metric = self.log.metric(removal)
        return math.nan if metric is None else metric


def _check_types(
    model: object, evaluate: object, tolerance: object, fractions: object, most: object
) -> list[float]:
    """Refuse arguments of `search` of a wrong type; return its fractions, sorted and unique."""
    check_module(model)
    if not callable(evaluate):
        raise TypeError(f"evaluate must be a function of the model, got {evaluate!r}")
    if not isinstance(fractions, Iterable):
        raise TypeError(f"fractions must be several numbers in (0, 1], got {fractions!r}")
    check_integer("max_evaluations", most, 1)
    grid: list[Any] = [plain_number(fraction) for fraction in fractions]
    for name, value in [("tolerance", tolerance), *(("a fraction", entry) for entry in grid)]:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name} must be a number, got {value!r}")
    return sorted({float(fraction) for fraction in grid})


def _check(config: RMTConfig, tolerance: float, grid: list[float], most: int) -> None:
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"tolerance must be at least 0 and finite, got {tolerance}")
    if not grid or not (grid[0] > 0 and grid[-1] <= 1):
        raise ValueError(f"fractions must lie in (0, 1]; pass at least one, got {grid}")
    if most < len(grid) + 2:
        raise ValueError(
            f"max_evaluations must be at least {len(grid) + 2}, got {most}: the unfiltered model, "
            f"{len(grid)} fractions and the result are evaluated; raise it or pass fewer fractions"
        )
    if config.noise != "drop" or not spectral_method_of(config).stores_noise:
        raise ValueError(
            f"search removes noise direction by direction, which noise={config.noise!r} with "
            f"method={config.method!r} does not do; set noise='drop' and, for example, method='pdb'"
        )
    if config.noise_removal != 1.0:
        raise ValueError(
            f"search finds noise_removal itself, got noise_removal={config.noise_removal}; leave "
            "it at 1.0 and pass fractions"
        )


def _settings(config: RMTConfig) -> dict[str, Any]:
    """The fields of a config that the user chose, as plain values by name.

    Fields that the search or the library sets (`DECIDED`) are left out.
    """
    return {key: value for key, value in config.to_dict().items() if key not in DECIDED}


def _identity(
    model: nn.Module, config: RMTConfig, tolerance: float, grid: list[float]
) -> dict[str, Any]:
    """Values that identify a search in the file from which it can be resumed.

    If one of them differs, the file belongs to another search. `grid` holds the fractions to try.
    `max_evaluations` is not among the values, because it may change.
    """
    tensors = {
        name: value.cpu() for name, value in model.state_dict().items() if isinstance(value, Tensor)
    }
    return {
        "model": type(model).__name__,
        "weights_digest": digest(tensors),
        "tolerance": tolerance,
        "fractions": grid,
        **_settings(config),
    }
