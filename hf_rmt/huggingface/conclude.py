"""Ends every compression: records the result, reports it, and prepares the model for saving."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from typing import Any

from hf_rmt.compression.history import report_below, with_earlier
from hf_rmt.compression.summary import warn_of_loss
from hf_rmt.compression.targets.names import some
from hf_rmt.compression.targets.selection import transformers_models
from hf_rmt.huggingface.compat import WITHIN_ADAPTER, is_pretrained, source_of
from hf_rmt.huggingface.config import RMTConfig
from hf_rmt.huggingface.embeddings import guard_embeddings
from hf_rmt.huggingface.loader import PART, RMTLoader, uninstall_saving
from hf_rmt.huggingface.saving.card import hub_id
from hf_rmt.huggingface.saving.save import install_saving
from hf_rmt.nn.counterparts import compressed_layers
from hf_rmt.nn.layouts import set_layout
from hf_rmt.plan import CompressionPlan
from hf_rmt.report import CompressionReport

DEFAULT_LAYOUT = "packed"

logger = logging.getLogger(__name__)


def conclude(
    model: Any, config: RMTConfig, report: CompressionReport, *, learnt: bool = False
) -> CompressionReport:
    """Record in a model how it was compressed, and prepare it for saving.

    `from_pretrained`, `compress` and `RMTCallback` all call this function at the end. The model or
    parts of it may be transformers models. A transformers model with replaced layers gets a
    quantizer, the object with which transformers saves and loads it. One without replaced layers
    stays a plain model. The model and each transformers model in it get their report as the
    attribute `compression_report`.

    Args:
        model: The model, compressed in place.
        config: The config of the compression; it is copied.
        report: The report of this compression.
        learnt: Whether the model was trained while the noise in its weights was removed, so that
            it needs no further training.

    Returns:
        The report of this compression and of all earlier ones.
    """
    if not learnt:
        warn_of_loss(report.plan)
    report = with_earlier(model, report)
    model.compression_report = report
    lay_out(model, config)
    for prefix, part in transformers_models(model).items():
        part.compression_report = report_below(report, prefix, part)
        if len(part.compression_report.plan):
            attach(part, config, part.compression_report, name=prefix)
    return report


def lay_out(model: Any, config: RMTConfig) -> None:
    """Give a model the layout that a config names, and log one line about it.

    A layout is the form of the weights in memory (see `hf_rmt.set_layout`). For `DEFAULT_LAYOUT`,
    nothing is done.
    """
    if config.layout != DEFAULT_LAYOUT:
        line = set_layout(model, config.layout, activations=config.activations)
        logger.warning("%s", line)  # a warning, so that a user who named a layout always sees it


def adopt(model: Any) -> None:
    """Complete the record of a transformers model: add how its parts were compressed.

    The record says how each layer was compressed. Layers are missing in it if a part was compressed
    by itself, before or after it became a part of this model.

    Args:
        model: A transformers model that is to be saved or made dense as a whole.

    Raises:
        ValueError: If no record says how a compressed layer was made.
    """
    own = getattr(model, "hf_quantizer", None)
    ours = isinstance(own, RMTLoader)
    plan = CompressionPlan.from_dict(own.quantization_config.layers or {} if ours else {})
    names = {name.replace(WITHIN_ADAPTER, "") for name in compressed_layers(model)}
    missing = names - {layer.name for layer in plan.compressed}
    if not missing:
        return
    report = with_earlier(model, CompressionReport(CompressionPlan(())))
    told = {layer.name for layer in report.plan}
    if ours and not missing & told:
        return  # saving records a moved layer from its own values
    if not ours and (unknown := sorted(missing - told)):
        raise ValueError(
            f"{some(unknown)} in {type(model).__name__} were compressed as layers of another "
            "model, and only that model has their record. Use that whole model, or use dense "
            "layers and call hf_rmt.compress on this model"
        )
    makers = (getattr(part, "hf_quantizer", None) for part in model.modules())
    configs = (maker.quantization_config for maker in makers if isinstance(maker, RMTLoader))
    model.compression_report = report
    attach(model, next(configs, RMTConfig()), report)


def attach(model: Any, config: RMTConfig, report: CompressionReport, *, name: str = "") -> None:
    """Give a transformers model the quantizer with which it is saved and loaded.

    If no layer of the model was replaced, it gets no quantizer, and an earlier one is removed.

    Args:
        model: The model, with its compressed layers.
        config: The config of the compression; it is copied.
        report: The report of the compression; it names the layers as `model` does.
        name: The name of the model in a larger module, for a log message.
    """
    from hf_rmt.huggingface.quantizer import RMTQuantizer

    config = copy.deepcopy(config)
    before = getattr(model, "hf_quantizer", None)
    known = before.quantization_config.base_model if before is not None else None
    config.base_model = known or hub_id(source_of(model))
    config.layers = report.plan.to_dict()
    config.digest = config.files = config.code = None
    if stays_plain(report.plan, name or type(model).__name__):
        if before is not None:
            before.remove_quantization_config(model)
        uninstall_saving(model)
        return
    parts = {name: part for name, part in model.named_modules() if name and is_pretrained(part)}
    for part in parts.values():
        _release(part)
    model.hf_quantizer = RMTQuantizer(config, pre_quantized=True)
    model.is_quantized = True
    model.quantization_method = config.quant_method
    model.config.quantization_config = model.hf_quantizer.quantization_config
    install_saving(model)
    guard_embeddings(model)
    for name, part in parts.items():
        keep_record(part, config, report_below(report, name, part).plan)


def _release(part: Any) -> None:
    """Remove the quantizer of a part of a model, because the whole model has a quantizer now.

    A quantizer is the object with which transformers saves and loads a compressed model.
    """
    own = getattr(part, "hf_quantizer", None)
    if isinstance(own, RMTLoader):
        own.remove_quantization_config(part)
        uninstall_saving(part)


def keep_record(part: Any, config: RMTConfig, plan: CompressionPlan) -> None:
    """Store in a part of a model the record that is needed to save this part alone.

    The record says how each layer of the part was compressed. A part without compressed layers
    gets none.
    """
    part.__dict__.pop(PART, None)
    if any(layer.compressed or layer.step for layer in plan):
        own = copy.copy(config)
        own.layers = plan.to_dict()
        part.__dict__[PART] = own


def stays_plain(plan: CompressionPlan, name: str) -> bool:
    """Whether no layer of the model `name` was replaced; if so, log the reasons in `plan`."""
    if any(layer.compressed or layer.step for layer in plan):
        return False
    if not len(plan):  # only a head of the saved model was compressed
        return True
    reasons = Counter(layer.reason for layer in plan)
    shown = "; ".join(f"for {count}: {reason}" for reason, count in reasons.most_common(3))
    logger.warning(
        "none of the %d layers of %s was replaced (%s). The model stays a plain model and can be "
        "saved and loaded without hf_rmt",
        len(plan),
        name,
        shown,
    )
    return True
