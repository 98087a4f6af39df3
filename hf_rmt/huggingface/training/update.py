"""`filter_update`: the noise that fine-tuning added taken out of a model that is tuned already."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_rmt.compression.parallel import WorkResult, is_silent, matrix_cost, share
from hf_rmt.compression.refilter import filter_weight
from hf_rmt.compression.targets import compressible_layers
from hf_rmt.huggingface.api import ModelOrPath, check_compressible, load_if_path
from hf_rmt.huggingface.config import RMTConfig
from hf_rmt.huggingface.lora.differences import paired
from hf_rmt.nn.counterparts import weight_matrix
from hf_rmt.nn.dense_matrix import set_matrix
from hf_rmt.plan import CompressionPlan
from hf_rmt.report import CompressionReport, LayerSpectrum, SpectralReport


def filter_update(
    base: ModelOrPath, tuned: nn.Module, config: RMTConfig | None = None
) -> CompressionReport:
    """Filter what fine-tuning added, in place: W = W_base + filtered(W_tuned - W_base).

    The same as `RMTCallback(config, of="update", schedule="end")` does at the end of training, for
    a model that was trained without it. Embeddings, norms, biases and heads stay as tuned, and the
    model stays dense. Where torch.distributed runs, every process calls this on its replica: they
    share the work and end with the same weights.

    Args:
        base: The model that training began with, a folder or a Hub id; it is not changed.
        tuned: The fine-tuned model, changed in place.
        config: Which layers, and what becomes of the noise of their updates. None:
            `RMTConfig(noise="drop")`.

    Returns:
        What became of the updates. Ranks, energies and bits are those of the updates, not of the
        weights; an update without signal is dropped as a whole.

    Raises:
        TypeError: If `tuned` is not a module or the config no `RMTConfig`.
        ValueError: If the models differ in architecture or sizes, a model is quantized already, or
            no selected layer was changed by training.
        OSError: If a path or id cannot be loaded.
        RuntimeError: On every process, if one of them failed.
    """
    config = RMTConfig(noise="drop") if config is None else config
    check_compressible(tuned, config)
    names = compressible_layers(tuned, config)
    layers = [tuned.get_submodule(name) for name in names]
    original = load_if_path(base)
    check_compressible(original, config)
    starts = _starts(original, tuned, names)

    def work(index: int) -> WorkResult:
        weight = weight_matrix(layers[index])
        update = weight - starts[index].to(weight)
        result = filter_weight(names[index], update, config, of_update=True)
        filtered = result.dense(update)
        return (result.plan, result.fit), {} if filtered is None else {"weight": filtered}

    costs = [matrix_cost(start.shape) for start in starts]
    outcomes = share(work, range(len(names)), costs, device=weight_matrix(layers[0]).device)
    plans, spectra = [], []
    shown = tqdm(outcomes, "Filtering", len(names), disable=is_silent())
    for layer, start, ((plan, fit), tensors) in zip(layers, starts, shown, strict=True):
        plans.append(plan)
        if fit is not None:
            spectra.append(LayerSpectrum(plan.name, plan.shape, fit))
        if tensors:
            update = tensors["weight"]
            set_matrix(layer, start.to(update) + update)
    return CompressionReport(CompressionPlan(tuple(plans)), SpectralReport(tuple(spectra)))


def _starts(base: nn.Module, tuned: nn.Module, names: Sequence[str]) -> list[Tensor]:
    """The base's weights of the tuned model's layers."""
    originals, starts, changed = paired(base, tuned), [], False
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
        changed = changed or not torch.equal(start.to(after), after)
    if not changed:
        raise ValueError(
            f"base and tuned are equal in all {len(names)} selected layers; pass the pretrained "
            "and the fine-tuned model"
        )
    return starts
