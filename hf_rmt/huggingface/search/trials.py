"""Removes a part of the noise from a model's weights, and measures the metric of the result.

A weight is a sum of a low-rank part, the signal, and the rest, the noise. A trial is defined by a
dict. It tells, for each layer, what fraction of its noise is removed. The layers of a trial are the
same as those that `compress` would make. Each weight is decomposed once; later trials compute only
singular vectors. The model's own weights are kept unchanged.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from tqdm.auto import tqdm

from hf_rmt.checks import check_path, checked_score
from hf_rmt.compression.apply import apply_decision
from hf_rmt.compression.directions import kept_directions
from hf_rmt.compression.eigensystem import eigenvectors_of
from hf_rmt.compression.execution.parallel import (
    WorkResult,
    is_silent,
    map_over_processes,
    matrix_cost,
    of_first,
)
from hf_rmt.compression.execution.rendezvous import n_processes
from hf_rmt.compression.spectrum import Decomposition, decompose
from hf_rmt.compression.weight import keep_directions
from hf_rmt.huggingface.config import RMTConfig
from hf_rmt.nn.counterparts import matrix_shape, weight_matrix
from hf_rmt.nn.swap import swap_module
from hf_rmt.plan import LayerPlan, Outcome
from hf_rmt.report import records
from hf_rmt.report.search import Evaluation, evaluations_of
from hf_rmt.spectra import SpectrumFit

Removal = dict[str, float]
"""By layer name, the fraction of its noise that it loses. Other layers stay as they are."""


class NoiseStates:
    """Removes fractions of the noise from layers of a model, and restores the layers.

    The noise of a weight is the weight minus its low-rank signal.

    Attributes:
        model: The model, as the last call of `apply` or `restore` left it.
        plans: For each changed layer, by its name, how it was compressed.
        shapes: The shape (out, in) of each layer's weight, by the name of the layer.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], config: RMTConfig) -> None:
        self.model, self.config = model, config
        self.plans: dict[str, LayerPlan] = {}
        self._originals: dict[str, Any] = {name: model.get_submodule(name) for name in names}
        self.shapes: dict[str, tuple[int, int]] = {
            name: matrix_shape(layer) for name, layer in self._originals.items()
        }
        self._weights = {name: layer.weight for name, layer in self._originals.items()}
        self._modes = [(module, module.training) for module in model.modules()]
        self._decompositions: dict[str, Decomposition] = {}
        self._applied: Removal = {}

    def apply(self, removal: Mapping[str, float]) -> Removal:
        """Remove a part of the noise from layers; all others get their original weights back.

        Args:
            removal: The fraction of its noise that each layer loses, by the name of the layer.

        Returns:
            The entries of `removal` whose layers differ from the original ones after this call.
        """
        for name in self.shapes:
            if removal.get(name) != self._applied.get(name):
                self._put(name, removal.get(name))
        self._applied = dict(removal)
        return {name: removal[name] for name in self.shapes if name in self.plans}

    def restore(self) -> None:
        """Put the original modules, weights and training modes (as in `train()`) back."""
        for name in self._originals:
            self._reset(name)
        for module, training in self._modes:
            module.training = training

    def grids(self, fractions: Sequence[float]) -> dict[str, list[float]]:
        """For each layer, the fractions of its noise whose removal lowers the rank, but not to 0.

        Args:
            fractions: The fractions to choose from, ascending.

        Returns:
            The fractions by layer name. First come the layers whose noise has the least share of
            the squared norm. The order is the same on every process. A layer without such a
            fraction is left out.

        Raises:
            ValueError: If no layer has such a fraction.
        """

        def work(name: str) -> WorkResult:
            decomposition = self._decompose(name)
            if decomposition is None or decomposition.basis is None:
                return None, {}
            grid = self._grid(name, decomposition.fit, fractions)
            if not grid:
                return None, {}
            return (decomposition.fit, grid), decomposition.basis.tensors()

        found = {}
        costs = [matrix_cost(shape) for shape in self.shapes.values()]
        device = next(iter(self._originals.values())).weight.device
        outcomes = map_over_processes(work, list(self.shapes), costs, device=device)
        for name, (plain, tensors) in zip(self.shapes, outcomes, strict=True):
            if plain is not None:
                self._decompositions[name] = Decomposition(plain[0], eigenvectors_of(tensors))
                found[name] = plain[1]
        if not found:
            raise ValueError(
                f"none of {len(self.shapes)} layers has noise to remove; see hf_rmt.analyze(model) "
                "for the reasons"
            )
        quiet = sorted(found, key=lambda name: -self._decompositions[name].fit.signal_energy)
        return {name: found[name] for name in quiet}

    def _settings(self, name: str, fraction: float) -> RMTConfig:
        return self.config.replace(noise_removal={name: fraction})

    def _decompose(self, name: str) -> Decomposition | None:
        """Compute the eigenvalues (squared singular values) of a layer's weight.

        They come with what is needed to compute singular vectors later. The result is None for a
        layer that `compress` would not touch, such as one below `min_size`.
        """
        if min(self.shapes[name]) < self.config.min_size:
            return None
        try:
            return decompose(weight_matrix(self._originals[name]), self.config)
        except torch.linalg.LinAlgError:
            return None

    def _grid(self, name: str, fit: SpectrumFit, fractions: Sequence[float]) -> list[float]:
        ranks = {
            fraction: len(kept_directions(fit, self._settings(name, fraction), name))
            for fraction in fractions
        }
        return [f for f, rank in ranks.items() if 0 < rank < len(fit.eigenvalues)]

    def _put(self, name: str, fraction: float | None) -> None:
        """Put the layer `name`, with this fraction of its noise removed, into the model.

        If `fraction` is None, the original layer is put back.
        """
        original = self._originals[name]
        training = self.model.get_submodule(name).training
        self._reset(name)
        if fraction is not None:
            matrix, decomposition = weight_matrix(original), self._decompositions[name]
            settings = self._settings(name, fraction)
            kept = kept_directions(decomposition.fit, settings, name)
            result = keep_directions(name, matrix, decomposition, kept, settings)
            if result.plan.outcome is not Outcome.KEPT:
                self.plans[name] = result.plan
                # keep the module itself, because a hook of accelerate is bound to it
                original.weight = nn.Parameter(original.weight.detach().clone())
                apply_decision(self.model, result, matrix)
        self.model.get_submodule(name).train(training)

    def _reset(self, name: str) -> None:
        self._originals[name].weight = self._weights[name]
        swap_module(self.model, name, self._originals[name])
        self.plans.pop(name, None)


class Log:
    """All evaluations of a metric in one search, made now or read from a file.

    Args:
        evaluate: A function from a model to its metric.
        states: The object that removes noise from the model.
        most: Largest number of evaluations, including those in the file.
        path: JSON file from which evaluations are read and to which they are written; None for no
            file.
        identity: Plain values that distinguish this search from another.

    Raises:
        ValueError: If the file belongs to another search.
    """

    def __init__(
        self,
        evaluate: Callable[[Any], float],
        states: NoiseStates,
        *,
        most: int,
        path: str | os.PathLike[str] | None,
        identity: dict[str, Any],
    ) -> None:
        self.evaluate, self.states, self.most = evaluate, states, most
        self.path, self.identity = None if path is None else _file(path), identity
        self.evaluations = list(of_first(self._read, doing="read resume_from"))
        made = len(self.evaluations)
        self.bar = tqdm(total=max(most, made), desc="Searching", initial=made, disable=is_silent())

    def known(self, removal: Removal) -> list[float]:
        """The metrics that were measured so far with these fractions of noise removed."""
        return [entry.metric for entry in self.evaluations if entry.removal == removal]

    def metric(self, removal: Removal, *, again: bool = False, spare: int = 0) -> float | None:
        """Metric of a state (the model with some noise removed), measured unless it is known.

        Args:
            removal: The state, as for `NoiseStates.apply`.
            again: Whether to measure a second time if it was measured once.
            spare: Number of evaluations to leave for later.

        Returns:
            The metric on process 0; None if no evaluation is left for it.

        Raises:
            TypeError: If the metric is not a number.
        """
        known = self.known(removal)
        if len(known) > again:
            return known[again]
        if len(self.evaluations) + spare >= self.most:
            return None
        metric = of_first(lambda: self._measure(removal), doing="ran evaluate")
        self.evaluations.append(Evaluation(dict(removal), metric))
        self.bar.set_postfix(metric=f"{metric:.4g}", refresh=False)
        self.bar.update()
        return metric

    def _measure(self, removal: Removal) -> float:
        self.states.apply(removal)
        metric = checked_score(self.evaluate(self.states.model))
        if self.path is not None and _is_first():
            self._write(self.path, [*self.evaluations, Evaluation(dict(removal), metric)])
        return metric

    def _write(self, path: Path, evaluations: list[Evaluation]) -> None:
        """Write all evaluations to the file of the search, in place of its old content.

        The file is replaced in one step: a run that is killed leaves the old or the new file.
        """
        content = {"search": self.identity, "evaluations": evaluations}
        part = path.with_name(f"{path.name}.part")
        records.written(records.json_text(content), part)
        part.replace(path)

    def _read(self) -> tuple[Evaluation, ...]:
        if self.path is None or not _is_first() or not self.path.exists():
            return ()
        found, evaluations = _content(self.path)
        own = records.plain(self.identity)
        if differing := [key for key in {**own, **found} if found.get(key) != own.get(key)]:
            shown = ", ".join(f"{key} ({found.get(key)}, now {own.get(key)})" for key in differing)
            raise ValueError(
                f"{self.path} belongs to another search, which differs in {shown}; name another "
                "file, or repeat that search"
            )
        return evaluations


def _content(path: Path) -> tuple[dict[str, Any], tuple[Evaluation, ...]]:
    """Read the file of a search: the values that identify the search, and its evaluations."""
    try:
        content = records.read(path)
        return dict(content["search"].items()), evaluations_of(content["evaluations"])
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged or is not a file of a search ({type(error).__name__}: {error}); "
            "delete it to start anew, or name another file"
        ) from error


def _file(path: str | os.PathLike[str]) -> Path:
    """Check the path of the file of a search before anything is evaluated, and return it.

    It must not be a folder, and the folder in which it lies must exist.
    """
    check_path("resume_from", path)
    file = Path(path)
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise ValueError(
            f"resume_from must name a file in a folder that exists, got {str(path)!r}; make the "
            "folder, or name another file"
        )
    return file


def _is_first() -> bool:
    return n_processes() == 1 or distributed.get_rank() == 0
