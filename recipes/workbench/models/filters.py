"""Filtered copies of a model, with the noise removed by one method."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from accelerate.utils import send_to_device

import hf_rmt
from hf_rmt import RMTConfig

UPDATE, RANKS, HEAD = "update", "ranks", "ntk"
"""Methods that are not simply a method of `RMTConfig` on the whole weights; see `filtered`."""
LAYERS = "-layers"
"""Ending of the names of rows for which `hf_rmt.search` finds a share for each layer."""
BLOCKS = r".*\.\d+\..*"
"""Pattern of the names of the layers that are filtered: those in numbered blocks."""


class Filtered(NamedTuple):
    """A filtered copy of a model.

    Attributes:
        model: The copy.
        kept: The share of the filtered layers' parameters that is left; for a ternary head, the
            share of its bits.
        whole: Names of the layers that the method left unchanged although it was to filter them.
    """

    model: Any
    kept: float
    whole: frozenset[str] = frozenset()


def filtered(
    tuned: Any,
    base: Any,
    method: str,
    removed: float | Mapping[str, float],
    calibration: Sequence[Any] = (),
    **options: Any,
) -> Filtered:
    """A copy of the tuned model after one method has removed its noise.

    Args:
        tuned: The fine-tuned model; it is not changed.
        base: The model that its training began with.
        method: Name of the method, one of `TITLES` in `method_rows`.
        removed: Share of the noise directions to remove. For svd and slr it is a share of all
            directions, and for shared ranks a share of the parameters. A method that filters layer
            by layer takes a share for each layer.
        calibration: Batches of the model's arguments, for a ternary head.
        **options: Further options of `RMTConfig`, for methods that look at a spectrum.

    Returns:
        The copy, the share that is left, and the names of unchanged layers.
    """
    model = copy.deepcopy(tuned)
    if isinstance(removed, Mapping):
        if not removed:
            return Filtered(model, 1.0)
        config = search_config(method, **options).replace(noise_removal=dict(removed))
        return Filtered(model, hf_rmt.compress(model, config).plan.size_ratio)
    if method == HEAD:
        batches = send_to_device(list(calibration), model.device)
        report = hf_rmt.compress(
            model, RMTConfig(method=HEAD, activation="matched"), calibration=batches
        )
        return Filtered(model, report.plan.size_ratio)
    if method == RANKS:
        adapter = hf_rmt.extract_adapter(base, tuned, size=1 - removed, target_modules=BLOCKS)
        for part in adapter.updates:
            start = base.get_submodule(part.name).weight.detach()
            model.get_submodule(part.name).weight.data = start + part.left @ part.right
        return Filtered(model, adapter.size)
    if method in ("svd", "slr"):
        kept: dict[str, Any] = {"fraction": 1 - removed} if removed < 1 else {"rank": 1}
        config = RMTConfig(method=method, noise="drop", **kept, **options)
    else:
        law = "pdb" if method == UPDATE else method
        config = RMTConfig(method=law, noise="drop", noise_removal=removed, **options)
    if method == UPDATE:
        report = hf_rmt.filter_update(base, model, config)
    else:
        report = hf_rmt.compress(model, config)
    changed = {layer.name for layer in report.plan.changed}
    whole = frozenset(layer.name for layer in report.plan) - changed
    return Filtered(model, report.plan.size_ratio, whole)


def search_config(method: str, **options: Any) -> RMTConfig:
    """The config of a search; a method that needs a rank starts at rank 1."""
    law = method.removesuffix(LAYERS)
    ranks = {"rank": 1} if law == "svd" else {}
    return RMTConfig(method=law, noise="drop", **ranks, **options)
