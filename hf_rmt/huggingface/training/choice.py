"""Chooses, from the batches of a training, which directions each layer's weight keeps.

A weight is written as a sum of matrices of rank one. A direction is one term of this sum.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from hf_rmt.compression.calibration.calibrated import WHOLE
from hf_rmt.compression.calibration.excited import cut, excited_directions
from hf_rmt.compression.calibration.low_rank import LayerMoments
from hf_rmt.compression.calibration.ranks import ranks_that_lose, shared_ranks
from hf_rmt.compression.directions import kept_directions, removal
from hf_rmt.compression.execution.parallel import WorkResult, map_over_processes, matrix_cost
from hf_rmt.compression.spectrum import spectrum
from hf_rmt.huggingface.training.trained_layers import is_trained
from hf_rmt.nn.counterparts import matrix_shape, weight_matrix
from hf_rmt.plan import Cause
from hf_rmt.settings import CompressionSettings
from hf_rmt.spectra import Phase

NOT_REACHED = "no training batch reached the layer before the directions were chosen"
NOT_FINITE = "its inputs or gradients held nan or inf in a batch before the directions were chosen"
FROZEN = "its weight is frozen, and RMTCallback filters weights that are trained"
NO_GRADIENT = "the loss gave it no gradient before the directions were chosen"
TOO_SMALL = "the smaller side is below min_size"
NO_SIGNAL = "no signal stands out from the noise, so nothing would be left"
"""This text and the five before it are reasons why a layer stays dense (is not compressed)."""
CAUSES = {
    WHOLE: Cause.ALL_WORTH,
    NOT_REACHED: Cause.NOT_REACHED,
    NOT_FINITE: Cause.NOT_FINITE,
    FROZEN: Cause.FROZEN,
    NO_GRADIENT: Cause.NO_GRADIENT,
    TOO_SMALL: Cause.TOO_SMALL,
}
"""For each reason why a layer is not compressed, the cause that a report gives: one of a few fixed
words."""
LOST = 5e-4
"""The share of the worth of all directions that `size="auto"` may lose. A direction is a part of
rank one of a weight. Its worth is about how much the loss would rise without it.

With 5e-4, 47 % of the parameters of a BERT on SST-2 are left. The accuracy falls by 0.3 points,
and the 95 % interval of this fall contains 0. With 1e-3, 36 % are left. The accuracy then falls by
0.5 points, and the interval does not contain 0. See docs/results.md."""

Size = float | Literal["auto"] | None


class Choice(NamedTuple):
    """Which ranks and which directions (parts of rank one) a training keeps in each weight.

    Attributes:
        layers: For each layer, by name, a dict of JSON values. `rank` is None if the layer stays
            dense (not compressed); `cause` and `reason` then say why. A layer with a rank has
            `energy`, the squared Frobenius norm of its weight, and `rest`, the part of this energy
            that will be removed. If the eigenvalues were split into noise and signal, the dict also
            has `phase` (the verdict on them, see `SpectrumFit`), `n_spikes` (how many are signal)
            and `upper_edge` (the limit above which an eigenvalue is signal).
        probes: Two thin matrices for each layer with a rank, `<name> left` and `<name> right`. They
            store the directions that the layer keeps; the module
            `hf_rmt.compression.calibration.excited` explains how.
        share: The number of parameters that will be left, divided by their present number.
    """

    layers: dict[str, dict[str, Any]]
    probes: dict[str, Tensor]
    share: float


def choose(
    model: nn.Module,
    names: Sequence[str],
    excited: Mapping[str, LayerMoments],
    settings: CompressionSettings,
    size: Size,
    *,
    not_finite: Collection[str] = (),
) -> Choice:
    """Choose the directions (parts of rank one) that each weight keeps; processes share the work.

    Args:
        model: The model; it is not changed.
        names: Names of the layers. The weight of each can be written as a matrix.
        excited: Second moments (means of products of each two entries) of the layers' inputs and
            output gradients, as `BatchMoments` gives them. A layer without gradients stays dense
            (not compressed), because its directions cannot be compared with those of other layers.
        settings: The rule that finds the rank of a layer if no size is given.
        size: Share to keep of the parameters of all layers with gradients. The worth of a direction
            is about how much the loss would rise without it. `"auto"` keeps the smallest share that
            has at least the fraction 1 - `LOST` of the worth of all directions. None: use
            `settings`.
        not_finite: Layers that have no moments because batches gave them nan or inf.

    Returns:
        The choice, equal on every process.

    Raises:
        ValueError: If the size is too small for one direction in each layer.
        RuntimeError: On every process, if one process failed.
    """
    measured = [name for name, one in excited.items() if one.gradients is not None]

    def work(name: str) -> WorkResult:
        weight = weight_matrix(model.get_submodule(name))
        values, left, right = excited_directions(weight, excited[name])
        rank, about = (_most(weight), {}) if size is not None else _by_rule(name, weight, settings)
        kept = {"left": _thin(left, rank or 0), "right": _thin(right, rank or 0)}
        return (rank, about), {"worth": values, **kept}

    found = dict(zip(measured, shared(model, measured, work), strict=True))
    ranks = {name: plain[0] for name, (plain, _) in found.items()}
    if size is not None:
        shapes = {name: matrix_shape(model.get_submodule(name)) for name in found}
        worth = {name: tensors["worth"].cpu() for name, (_, tensors) in found.items()}
        ranks = (
            ranks_that_lose(LOST, worth, shapes)
            if size == "auto"
            else shared_ranks(worth, shapes, size)
        )
    layers: dict[str, dict[str, Any]] = {}
    probes: dict[str, Tensor] = {}
    left, dense = 0, 0
    for name in names:
        weight = weight_matrix(model.get_submodule(name))
        rank = ranks.get(name)
        told = found[name][0][1] if name in found else None
        why = _unmeasured(model, name, settings, excited, not_finite) if told is None else WHOLE
        entry = layers[name] = {"rank": rank, "cause": str(CAUSES[why]), "reason": why}
        entry |= told or {}
        if rank is not None:
            pair = [found[name][1][side][:, :rank].contiguous() for side in ("left", "right")]
            probes |= {f"{name} left": pair[0], f"{name} right": pair[1]}
            entry |= _energies(weight, *pair)
        left += weight.numel() if rank is None else rank * sum(weight.shape)
        dense += weight.numel()
    return Choice(layers, probes, left / max(1, dense))


def probes_again(
    model: nn.Module, layers: Mapping[str, Mapping[str, Any]], excited: Mapping[str, LayerMoments]
) -> dict[str, Tensor]:
    """Choose the directions again from later batches, with the ranks that were chosen before.

    Directions are parts of rank one of a weight.

    Args:
        model: The model; it is not changed.
        layers: As in `Choice`.
        excited: As in `choose`. A layer that is missing here keeps its earlier directions.

    Returns:
        `probes` as in `Choice`, for the layers that have a rank and moments.
    """

    def work(name: str) -> WorkResult:
        weight, rank = weight_matrix(model.get_submodule(name)), layers[name]["rank"]
        _, left, right = excited_directions(weight, excited[name])
        return None, {f"{name} left": _thin(left, rank), f"{name} right": _thin(right, rank)}

    names = [name for name in excited if layers[name]["rank"] is not None]
    return {key: probe for _, found in shared(model, names, work) for key, probe in found.items()}


def shared(model: nn.Module, names: Sequence[str], work: Callable[[str], WorkResult]) -> Any:
    """Yield `work(name)` for the name of each layer, in order. The processes share the layers."""
    costs = [matrix_cost(matrix_shape(model.get_submodule(name))) for name in names]
    return map_over_processes(work, names, costs, device=next(model.parameters()).device)


def _unmeasured(
    model: nn.Module,
    name: str,
    settings: CompressionSettings,
    excited: Mapping[str, LayerMoments],
    not_finite: Collection[str],
) -> str:
    """The reason, in words, why a layer has no measurements and so stays dense (not compressed).

    `excited` holds the layers that a batch reached, and `not_finite` those whose inputs or
    gradients held nan or inf.
    """
    layer = model.get_submodule(name)
    if min(matrix_shape(layer)) < settings.min_size:
        return TOO_SMALL
    if not is_trained(layer):
        return FROZEN
    if name in not_finite:
        return NOT_FINITE
    return NO_GRADIENT if name in excited else NOT_REACHED


def _by_rule(
    name: str, weight: Tensor, settings: CompressionSettings
) -> tuple[int | None, dict[str, Any]]:
    """Find the rank of a weight by the method of `settings`; None to leave it uncompressed.

    The method looks at the eigenvalues, which are the squared singular values of the weight. The
    second result is a dict of facts about them, with keys as in `Choice.layers`. If the rank is
    None, the dict also has the `cause` and the `reason`.
    """
    fit = spectrum(weight, settings)
    about: dict[str, Any] = {"phase": str(fit.phase)}
    if fit.phase == Phase.DEGENERATE:
        return None, {**about, "cause": str(Cause.DEGENERATE), "reason": fit.reason}
    if removal(settings, name) is None:
        told = {"cause": str(Cause.NOT_NAMED), "reason": "noise_removal names other layers"}
        return None, {**about, **told}
    about["n_spikes"] = fit.n_spikes
    about["upper_edge"] = fit.upper_edge if fit.law is not None else None
    rank = len(kept_directions(fit, settings, name))
    if rank == 0 or rank > _most(weight):
        cause = Cause.ALL_WORTH if rank else Cause.NO_SIGNAL
        return None, {**about, "cause": str(cause), "reason": WHOLE if rank else NO_SIGNAL}
    return rank, about


def _thin(directions: Tensor, rank: int) -> Tensor:
    """The first `rank` columns of the matrix `directions`, in float32 to take less memory."""
    return directions[:, :rank].float().contiguous()


def _most(weight: Tensor) -> int:
    """The largest rank whose two factors are no larger than the weight: 50 for (100, 100)."""
    return weight.numel() // sum(weight.shape)


def _energies(weight: Tensor, left: Tensor, right: Tensor) -> dict[str, float]:
    return {"energy": energy(weight), "rest": energy(weight - cut(weight, left, right, 0.0))}


def energy(matrix: Tensor) -> float:
    """The squared Frobenius norm of a matrix."""
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) ** 2
