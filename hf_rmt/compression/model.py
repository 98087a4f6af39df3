"""`analyze`, `compress` and `export_dense` for any torch module, without Hugging Face libraries.

If transformers is not installed, `hf_rmt.analyze`, `hf_rmt.compress` and `hf_rmt.export_dense` are
the functions of this file. If it is installed, they are the functions of the same names in
`hf_rmt.huggingface.api`, which can also load transformers models and make them ready to be saved.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from hf_rmt.compression.apply import Journal
from hf_rmt.compression.execution.agreement import agreed
from hf_rmt.compression.execution.rendezvous import collective
from hf_rmt.compression.execution.undisturbed import undisturbed
from hf_rmt.compression.history import with_earlier
from hf_rmt.compression.refusals import (
    check_has_compressed,
    check_layers,
    check_module,
    check_no_adapter,
    check_not_of_inference,
    check_settings,
    check_weights,
)
from hf_rmt.compression.summary import analyze_layers, compression_report, warn_of_loss
from hf_rmt.compression.targets.coverage import kept_plans, with_kept
from hf_rmt.compression.targets.selection import compressible_layers
from hf_rmt.nn.counterparts import check_in_memory, compressed_layers, densify, undoing
from hf_rmt.report import CompressionReport, SpectralReport
from hf_rmt.settings import CompressionSettings, method_of, spectral_methods


@undisturbed
def analyze(
    model: nn.Module,
    config: CompressionSettings | None = None,
    *,
    target_modules: list[str] | str | None = None,
    method: str | None = None,
    **options: Any,
) -> SpectralReport:
    """Split the spectrum of each attention and MLP weight of a model into signal and noise.

    The spectrum of a weight is the list of its squared singular values. `hf_rmt.spectra` explains
    signal and noise.

    Args:
        model: Any module with its weights in memory.
        config: A config as for `compress`; pass it instead of the keywords below.
        target_modules: The layers to analyse, as in `CompressionSettings`.
        method: How signal and noise are told apart, as in `CompressionSettings`; None for the
            default method.
        **options: Options of the method, such as `rank` for `svd`.

    Returns:
        The report on the spectra. It prints as a table, and gives plots, JSON and CSV. If a model
        has compressed layers, only these are analysed. The analysed weight of such a layer is the
        dense (not compressed) weight that gives the same outputs.

    Raises:
        TypeError: If the model is not a module, or `config` is not a config.
        ValueError: If a target matches no layer, the method is unknown, an option is missing or not
            allowed, both a config and keywords are given, or the singular values of a weight cannot
            be computed.
    """
    check_module(model)
    named = {"target_modules": target_modules, "method": method}
    given = {name: value for name, value in named.items() if value is not None}
    settings = _settings(config, given | options)
    compressed = list(compressed_layers(model))
    names = compressed or compressible_layers(model, settings)
    if not compressed:
        check_weights(model, names)
    check_in_memory(model)
    return analyze_layers(model, names, settings)


def _settings(config: CompressionSettings | None, keywords: dict[str, Any]) -> CompressionSettings:
    """The settings of an analysis: the config, or settings made from the keywords.

    A `ValueError` is raised if both are given, or if the method uses no spectrum (squared singular
    values of the weights).
    """
    check_settings(config)
    if config is not None and keywords:
        raise ValueError(
            f"a config and {', '.join(keywords)} were given; pass one config with these values: "
            f"config.replace({', '.join(f'{name}=...' for name in keywords)})"
        )
    # how noise would be stored does not matter here, and some methods store none
    settings = config or CompressionSettings(**{"noise": "drop", **keywords})
    if not method_of(settings).reads_spectrum:
        raise ValueError(
            f"method={settings.method!r} looks at no spectrum, so there is nothing to analyze; "
            f"choose a method among {', '.join(spectral_methods())}"
        )
    return settings


@collective
def compress(
    model: nn.Module,
    config: CompressionSettings | None = None,
    *,
    dry_run: bool = False,
    calibration: Iterable[Mapping[str, Any]] | None = None,
    size: float | None = None,
) -> CompressionReport:
    """Compress a loaded model in place; see `hf_rmt.huggingface.api.compress` for the arguments.

    Returns:
        The report on what was done, or with `dry_run` on what would be done. The attribute
        `model.compression_report` holds the report on all calls so far.
    """
    check_module(model)
    check_no_adapter(model)
    check_settings(config)
    config = CompressionSettings() if config is None else config
    asked = {"dry_run": dry_run, "calibration": calibration is not None, "size": size}

    def conclude(report: CompressionReport) -> None:
        warn_of_loss(report.plan)
        joined: Any = with_earlier(model, report)
        model.compression_report = joined

    return compress_layers(
        model,
        agreed(model, lambda: compressible_layers(model, config), config, asked),
        config,
        conclude,
        dry_run=dry_run,
        calibration=calibration,
        size=size,
    )


def export_dense(model: nn.Module) -> nn.Module:
    """A dense (not compressed) copy of a compressed model; the model is not changed.

    Raises:
        TypeError: If the model is not a module.
        ValueError: If the model has no compressed layer, or has activations that were replaced by
            step activations (piecewise constant functions), which a plain model cannot have.
    """
    check_module(model)
    check_has_compressed(model)
    return densify(copy.deepcopy(model))


@undisturbed
def compress_layers(
    model: nn.Module,
    names: list[str],
    config: CompressionSettings,
    conclude: Callable[[CompressionReport], Any],
    *,
    dry_run: bool,
    calibration: Iterable[Mapping[str, Any]] | None,
    size: float | None,
) -> CompressionReport:
    """Compress chosen layers of a model by the method that the config names.

    Args:
        model: Any module with its weights in memory; it is changed in place.
        names: Names of the layers in `model.named_modules()`.
        config: The method and its options.
        conclude: A function that stores the report on the model. After an error, it gets the report
            on the layers that were changed before the error. So the model can be used and saved.
        dry_run: Whether to only plan; the model is not changed then.
        calibration: Batches of the model's arguments; None to compress without data.
        size: Share of the layers' parameters to keep; None if the method decides how much to keep.

    Returns:
        The report. It also lists the layers that stay dense (not compressed) because of how the
        model uses them.

    Raises:
        TypeError: If `dry_run` is not a boolean.
        ValueError: If the singular values of a weight cannot be computed, or a layer cannot be
            replaced. The model is not changed then.
    """
    if not isinstance(dry_run, bool):
        raise TypeError(f"dry_run must be True or False, got {dry_run!r}")
    check_layers(model, names)
    if calibration is not None:
        check_not_of_inference(model, gradients=size is not None)
    kept = kept_plans(model, config)
    with Journal() as done:
        try:
            report: CompressionReport = method_of(config).compress_model(
                model, names, config, calibration=calibration, size=size, dry_run=dry_run
            )
        except BaseException as error:
            if done.decisions:
                conclude(compression_report(done.decisions, model))
                error.add_note(
                    f"{len(done.decisions)} of {len(names)} layers were changed before the error. "
                    "The model works, and its compression_report names them. Call compress again "
                    f"for the other layers, or undo the changes: {undoing(model)}"
                )
            raise
    report = with_kept(report, kept, model)
    if not dry_run:
        conclude(report)
    return report
