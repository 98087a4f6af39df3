"""Makes a head (the last layers of a model) ternary, and refits its last layer.

Weights become -1, 0 and 1, times a scale, and step activations (with a few values) take the place
of activations. Theory takes the inputs of an activation as normally distributed, N(0, tau^2). Here
tau is measured. Let W be the weight of the layer before the activation, and C the covariance of
this layer's inputs. Then tau^2 is the mean of the diagonal of W C W' (W' is the transpose), plus
the variance of the neurons' means. Biases are shifted so that these means stay the same.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from hf_rmt.compression.apply import decide_shared
from hf_rmt.compression.calibration.batches import Batch
from hf_rmt.compression.calibration.calibrated import on_first_batch, repeatable
from hf_rmt.compression.decision import Decision
from hf_rmt.compression.summary import compression_report
from hf_rmt.report import CompressionReport
from hf_rmt.settings import CompressionSettings
from hf_rmt.ternary.choice import choose
from hf_rmt.ternary.fitting import Decided, Head, by_name, last_of
from hf_rmt.ternary.forward_trace import Position, layer_positions, positions_without_data
from hf_rmt.ternary.regression import outputs_of
from hf_rmt.ternary.steps import arguments_from_norm, stepped
from hf_rmt.ternary.weight import made, ternarize_weight

logger = logging.getLogger(__name__)

NO_DATA = "without calibration, an activation after it is kept"


def compress_head(
    model: nn.Module,
    names: Sequence[str],
    settings: CompressionSettings,
    batches: Iterable[Batch] | None = None,
    *,
    dry_run: bool = False,
) -> CompressionReport:
    """Make layers of a model ternary in place, and refit the last of these layers.

    Ternary weights are -1, 0 and 1, times a scale. Activations between the layers become step
    activations, which take a few values.

    Args:
        model: Any module with its weights in memory, the same on every process.
        names: Names of the linear layers, as `select_layers` returns them.
        settings: The user's settings; the method is `ntk`.
        batches: Calibration batches, each with keyword arguments of the model. Every process may
            have its own batches. The last layer is fitted to the outputs that it had before
            compression. It is not fitted to labels: labels contain less information.
        dry_run: Only plan. With `activation="auto"` the layers are still tried in the model, with
            and without step activations; then the model is restored.

    Returns:
        A report on all the layers. The reasons in its plan say whether activations were replaced.

    Raises:
        ValueError: If `activation="matched"` or `weights="random"` needs data that are missing; if
            no step activation has the `GaussianMoments` of an activation; if all samples are equal;
            or if the sparsity is too high.
        RuntimeError: On every process, if one of them failed.
    """
    _check_sparsity(model, names, settings)
    if batches is None:
        decisions = _without_data(model, names, settings, dry_run)
    else:
        # kept in memory, because a loader that shuffles would pair inputs with wrong outputs
        decisions = _with_data(model, names, settings, list(repeatable(batches)), dry_run)
    decided = [decisions[name] for name in names]
    return compression_report(decided, model)


def _check_sparsity(model: Any, names: Sequence[str], settings: CompressionSettings) -> None:
    """Raise an error if the wanted share of zeros in a row leaves no entry that is not zero."""
    for name in names:
        width = model.get_submodule(name).in_features
        if round((1 - (settings.sparsity or 0.0)) * width) < 1:
            raise ValueError(
                f"sparsity={settings.sparsity} leaves none of the {width} weights in a row of "
                f"{name!r}; set it to at most {1 - 1 / width:.3g}, or to None for the sparsity of "
                "least error"
            )


def _without_data(
    model: nn.Module, names: Sequence[str], settings: CompressionSettings, dry_run: bool
) -> Decided:
    if settings.weights == "random":
        raise ValueError(
            "weights='random' discards the training of a head, and only data can refit its last "
            "layer; call hf_rmt.compress(model, config, calibration=batches)"
        )
    found: Mapping[str, Position] = {}
    if settings.activation == "matched":
        found = positions_without_data(model, names)
    if settings.activation == "auto":
        logger.warning(
            "method='ntk' without calibration only rounds the weights and refits no layer; pass "
            "calibration=batches to hf_rmt.compress"
        )
        found = dict.fromkeys(names, Position(kept=NO_DATA))
    last = last_of(found)

    def decide(name: str, weight: Tensor, settings: CompressionSettings) -> Decision:
        result = ternarize_weight(name, weight, settings)
        place, layer = found.get(name, Position()), made(result)
        if place.kept or layer is None or name == last or not found:
            return result.noted(place.kept)
        arguments = arguments_from_norm(model, name, place, layer)
        logger.warning(
            "the step activation after %s is made for inputs of standard deviation tau=%.3g, "
            "which was computed from the LayerNorm %s and not measured; pass calibration=batches "
            "to hf_rmt.compress to measure it",
            name,
            arguments.variance**0.5,
            place.norm,
        )
        return stepped(model, name, place, result, arguments)

    return by_name(decide_shared(model, names, settings, dry_run=dry_run, decide=decide))


def _with_data(
    model: nn.Module,
    names: Sequence[str],
    settings: CompressionSettings,
    batches: Sequence[Batch],
    dry_run: bool,
) -> Decided:
    found = on_first_batch(batches, lambda batch: layer_positions(model, names, batch))
    last = last_of(found)
    if settings.weights == "random" and last is None:
        raise ValueError(
            "weights='random' needs a last layer that can be refitted, but every selected layer "
            "feeds an activation; add the last layer to target_modules"
        )
    outputs = [] if last is None else outputs_of(model, last, batches)
    head = Head(model, names, settings, found, last, batches, outputs)
    if settings.activation == "auto":
        return choose(head, dry_run=dry_run)
    decisions = head.hidden_done(settings.activation, dry_run=dry_run)
    if last is not None:
        fitted, held = head.seen()
        decisions |= head.last_done(fitted + held, decisions, dry_run=dry_run)
    return decisions
