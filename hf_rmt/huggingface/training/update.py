"""`filter_update`: remove from a tuned model the noise that fine-tuning added."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_rmt.compression.decision import rewritten_plan
from hf_rmt.compression.execution.agreement import agreed, check_agreed, digest
from hf_rmt.compression.execution.parallel import (
    WorkResult,
    is_silent,
    map_over_processes,
    matrix_cost,
)
from hf_rmt.compression.execution.rendezvous import collective
from hf_rmt.compression.execution.undisturbed import undisturbed
from hf_rmt.compression.refilter import filter_weight
from hf_rmt.compression.shrinkage import along, leading_directions
from hf_rmt.compression.targets.selection import compressible_layers
from hf_rmt.huggingface.api import ModelOrPath, check_compressible, load_if_path, unwrapped
from hf_rmt.huggingface.config import RMTConfig
from hf_rmt.huggingface.lora.differences import paired
from hf_rmt.huggingface.training.dose import UNCHANGED, DosedUpdate, check_dose, warn_unchanged
from hf_rmt.nn.counterparts import weight_matrix
from hf_rmt.nn.dense_matrix import set_matrix
from hf_rmt.plan import CompressionPlan
from hf_rmt.report import CompressionReport, LayerSpectrum, SpectralReport


@collective
@undisturbed
def filter_update(
    base: ModelOrPath,
    tuned: nn.Module,
    config: RMTConfig | None = None,
    *,
    dose: float | Literal["auto"] | None = None,
    early: ModelOrPath | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
) -> CompressionReport:
    """Filter what fine-tuning added, in place: W = W_base + filtered(W_tuned - W_base).

    The difference W_tuned - W_base is the update of a layer. By default, the filter splits its
    singular values into signal and noise (see `hf_rmt.spectra`), and removes the noise.
    `RMTCallback(config, target="update", schedule="end")` does the same at the end of training.
    This function is for a model that was trained without that callback. Embeddings, norms, biases
    and heads stay as tuned, and the weights keep their shape. If torch.distributed runs, every
    process calls `filter_update` on its replica. The processes share the work and end with the same
    weights.

    Args:
        base: The model that training began with, a folder or a Hub id; it is not changed.
        tuned: The fine-tuned model, changed in place.
        config: The layers, and what happens to the noise of their updates. None:
            `RMTConfig(noise="drop")`.
        dose: A remedy for wrong labels, used instead of the filter. The config then only names the
            layers. A number in (0, 1] scales what training added to every parameter that the base
            has. `"auto"` needs either `early` or `evaluate`.
        early: With `dose="auto"`: the model after about a quarter of the training, such as a
            checkpoint. Each layer keeps the part of its update that lies in the leading singular
            directions of its early update, early - base. The number of these directions is
            (sum s^2)^2 / sum s^4 for the singular values s of the early update.
        evaluate: With `dose="auto"`: a function that returns the score of a model, higher is
            better, on rows that it was not trained on. Several scales are tried, for the whole
            update and for its spikes alone. The spikes are the few large singular values of an
            update; here they are made smaller. The best is kept. If the rows are few and their
            labels are wrong, the choice is bad.

    Returns:
        A report. Its ranks, energies (squared norms) and bits are those of the updates, not of the
        weights. An update without signal is dropped as a whole. With a dose, the report says for
        every layer which share of the update's energy was removed, and gives the dose as reason.

    Raises:
        TypeError: If `tuned` is not a module, or `config` is not an `RMTConfig`.
        ValueError: If the models differ in architecture or sizes, a model is quantized already, no
            selected layer was changed by training, or `early` and `evaluate` do not fit `dose`.
        OSError: If a path or id cannot be loaded.
        RuntimeError: On every process, if one process failed.
    """
    config = RMTConfig(noise="drop") if config is None else config
    check_dose(dose)
    _check_told(dose, early, evaluate)
    tuned = unwrapped(tuned)
    check_compressible(tuned, config)
    asked = {"dose": dose, "early": early is not None, "evaluate": evaluate is not None}
    names = agreed(tuned, lambda: compressible_layers(tuned, config), config, asked)
    original = unwrapped(load_if_path(base))
    check_compressible(original, config)
    starts = _starts(original, tuned, names)
    check_agreed(lambda: {"the weights of base": digest(starts)})
    _check_changed(starts, tuned, names)
    if dose is not None:
        _check_finite(tuned, names)
    if early is not None:
        earlier = unwrapped(load_if_path(early))
        return _persistent(starts, earlier, tuned, names)
    if dose is not None:
        return _dosed(original, tuned, names, dose, evaluate)
    return _filtered(starts, tuned, names, config)


def _filtered(
    starts: Sequence[Tensor], tuned: nn.Module, names: Sequence[str], config: RMTConfig
) -> CompressionReport:
    """Remove noise from the update of each layer, which is what training added to its weight.

    The eigenvalues of an update tell noise from signal (see `hf_rmt.spectra`). `starts` are the
    base weights, to which the filtered updates are added again.
    """
    layers = [tuned.get_submodule(name) for name in names]
    start_of = dict(zip(names, starts, strict=True))

    def work(name: str) -> WorkResult:
        weight = weight_matrix(tuned.get_submodule(name))
        update = weight - start_of[name].to(weight)
        result = filter_weight(name, update, config, of_update=True)
        filtered = result.dense(update)
        return (result.plan, result.fit), {} if filtered is None else {"weight": filtered}

    costs = [matrix_cost(start.shape) for start in starts]
    outcomes = map_over_processes(work, names, costs, device=weight_matrix(layers[0]).device)
    plans, spectra = [], []
    shown = tqdm(outcomes, "Filtering", len(names), disable=is_silent())
    for layer, start, ((plan, fit), tensors) in zip(layers, starts, shown, strict=True):
        plans.append(plan)
        if fit is not None:
            spectra.append(LayerSpectrum(plan.name, plan.shape, fit))
        if tensors:
            update = tensors["weight"]
            set_matrix(layer, start.to(update) + update)
    return CompressionReport(
        CompressionPlan(tuple(plans)), SpectralReport(tuple(spectra)), of_update=True
    )


def _check_told(dose: object, early: object, evaluate: object) -> None:
    """Refuse arguments of `filter_update` that do not fit each other.

    The dose "auto" needs exactly one of `early` and `evaluate`, and any other dose takes neither.
    """
    given = [key for key, value in (("early", early), ("evaluate", evaluate)) if value is not None]
    if len(given) != (dose == "auto"):
        raise ValueError(
            "dose='auto' needs exactly one of early and evaluate, and no other dose takes them; "
            f"got dose={dose!r} with {' and '.join(given) or 'neither'}; pass early=MODEL, the "
            "model after a quarter of training, or evaluate=FUNCTION, which takes a model and "
            "returns its score on rows it was not trained on"
        )


def _persistent(
    starts: Sequence[Tensor], early: nn.Module, tuned: nn.Module, names: Sequence[str]
) -> CompressionReport:
    """Keep the part of each update that lies in the leading directions of the early update.

    The update of a layer is its weight in `tuned` minus its base weight, which is in `starts`. The
    early update is its weight in `early`, an earlier checkpoint, minus the base weight. Directions
    are singular vectors.
    """
    earlier = _starts(early, tuned, names)
    check_agreed(lambda: {"the weights of early": digest(earlier)})
    if _all_equal(starts, earlier):
        raise ValueError(
            f"base and early are equal in all {len(names)} selected layers; as early, pass a "
            "checkpoint from about a quarter of the training"
        )
    layers = [tuned.get_submodule(name) for name in names]
    start_of = dict(zip(names, zip(starts, earlier, strict=True), strict=True))

    def work(name: str) -> WorkResult:
        weight = weight_matrix(tuned.get_submodule(name))
        start, then = (entry.to(weight) for entry in start_of[name])
        update = weight - start
        pair = leading_directions(then - start)
        count = pair[0].shape[1]
        kept = along(update, *pair) if count else update
        whole, rest = (float(part.double().square().sum()) for part in (update, update - kept))
        reason = f"along {count} early directions" if count else UNCHANGED
        plan = rewritten_plan(name, update, reason)
        return replace(plan, dropped_energy=rest / whole if whole else 0.0), {"update": kept}

    costs = [matrix_cost(start.shape) for start in starts]
    outcomes = map_over_processes(work, names, costs, device=weight_matrix(layers[0]).device)
    plans = []
    for layer, start, (plan, tensors) in zip(layers, starts, outcomes, strict=True):
        plans.append(plan)
        set_matrix(layer, start.to(tensors["update"]) + tensors["update"])
    warn_unchanged([plan.name for plan in plans if plan.reason == UNCHANGED])
    return CompressionReport(CompressionPlan(tuple(plans)), of_update=True)


def _dosed(
    base: nn.Module,
    tuned: nn.Module,
    names: Sequence[str],
    dose: float | Literal["auto"],
    evaluate: Callable[[nn.Module], float] | None,
) -> CompressionReport:
    """Scale all that training added by `dose`; "auto" tries several factors and takes the best.

    "auto" also tries to keep only the spikes, the few large singular values of what training added
    to a layer. The best trial is the one to which `evaluate` gives the highest score.
    """
    update = DosedUpdate(tuned, parameters_of(base, tuned), names)
    chosen = update.apply(dose, lambda: evaluate(tuned) if evaluate is not None else 0.0)
    return CompressionReport(update.plan(chosen), of_update=True)


def parameters_of(base: nn.Module, tuned: nn.Module) -> dict[str, Tensor]:
    """The parameters of the base that have the same shape in `tuned`, by their names in `tuned`."""
    found = {}
    for name, original in paired(base, tuned).items():
        ours = dict(tuned.get_submodule(name).named_parameters(recurse=False))
        for key, value in original.named_parameters(recurse=False):
            if key in ours and ours[key].shape == value.shape:
                found[f"{name}.{key}" if name else key] = value.detach()
    return found


def _starts(base: nn.Module, tuned: nn.Module, names: Sequence[str]) -> list[Tensor]:
    """The weights of the base, in the order of `names`, which are layers of the tuned model."""
    originals, starts = paired(base, tuned), []
    for name in names:
        after, original = weight_matrix(tuned.get_submodule(name)), originals.get(name)
        start = None if original is None else weight_matrix(original)
        if start is None or start.shape != after.shape:
            found = "missing" if start is None else f"of shape {tuple(start.shape)}"
            raise ValueError(
                f"'{name}.weight' has shape {tuple(after.shape)} in tuned and is {found} in base; "
                "pass the model that tuned was fine-tuned from, or name the layer in "
                "modules_to_not_convert"
            )
        starts.append(start)
    return starts


def _check_changed(starts: Sequence[Tensor], tuned: nn.Module, names: Sequence[str]) -> None:
    """Refuse two models that are equal in all selected layers."""
    if _all_equal(starts, [weight_matrix(tuned.get_submodule(name)) for name in names]):
        raise ValueError(
            f"base and tuned are equal in all {len(names)} selected layers; pass the pretrained "
            "and the fine-tuned model"
        )


def _all_equal(starts: Sequence[Tensor], weights: Sequence[Tensor]) -> bool:
    return all(
        torch.equal(start.to(after), after) for start, after in zip(starts, weights, strict=True)
    )


def _check_finite(tuned: nn.Module, names: Sequence[str]) -> None:
    """Refuse a model with nan or inf in a selected layer, as after a training that diverged."""
    for name in names:
        if not torch.isfinite(weight_matrix(tuned.get_submodule(name))).all():
            raise ValueError(
                f"the weight of {name!r} in the tuned model holds nan or inf, so what training "
                "added to it cannot be filtered; take an earlier checkpoint, or train with a lower "
                "learning rate"
            )
