"""`extract_adapter` makes a LoRA adapter from fine-tuned minus pretrained weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AutoConfig

from hf_rmt.checks import check_integer, check_number
from hf_rmt.compression.calibration.low_rank import (
    LayerMoments,
    LowRankUpdate,
    importance,
    low_rank,
)
from hf_rmt.compression.calibration.moments import measured_moments
from hf_rmt.compression.calibration.ranks import choose_ranks
from hf_rmt.compression.execution.undisturbed import undisturbed
from hf_rmt.huggingface.api import ModelOrPath, load_if_path, unwrapped
from hf_rmt.huggingface.lora.adapter import PREFIX, ExtractedAdapter
from hf_rmt.huggingface.lora.differences import Differences, differences, paired
from hf_rmt.huggingface.source import check_source
from hf_rmt.nn.counterparts import compressed_layers

DEFAULT_SIZE = 0.03
"""Default `size` of an adapter. With this size, a BERT tuned on SST-2 keeps its accuracy."""
TASKS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
}
"""PEFT's name of the task, by the ending of the model's class name. Other classes need none."""
HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
"""Endings of the names of modules that PEFT always saves whole, by the task."""


@undisturbed
def extract_adapter(
    base: ModelOrPath,
    tuned: ModelOrPath,
    *,
    size: float | None = None,
    threshold: float | None = None,
    rank: int | None = None,
    calibration: Iterable[Mapping[str, Tensor]] | None = None,
    target_modules: list[str] | str | None = None,
    dtype: torch.dtype | None = None,
) -> ExtractedAdapter:
    """Extract fine-tuned minus pretrained weights as a LoRA adapter; each layer gets its own rank.

    The update of a layer is its fine-tuned minus its pretrained weight. It is a sum of directions,
    matrices of rank one. Of all directions of all layers, the ones that are worth most are kept.
    The worth of a direction is the cost of losing it, which the module's docstring of
    `hf_rmt.compression.calibration.low_rank` defines. Tensors that are not matrices (biases, norms)
    and new heads (layers for the task) are copied as they are. So the base with the adapter acts
    nearly like the tuned model.

    Args:
        base: The pretrained model, or the folder or Hub id where it is saved. If its files lack the
            weights of layers of the head, these layers count as new and are copied whole.
        tuned: The fine-tuned model, or the folder or Hub id where it is saved. Neither model is
            changed.
        size: Largest number of parameters of the factors, as a fraction of the parameters of the
            matrices that they update; 0.03 if neither threshold nor rank is given.
        threshold: Fraction of the worth of all directions that the kept ones must have; 1 keeps
            everything. Without calibration, the worth of a direction is the fourth power of its
            singular value. Useful fractions then lie above 0.99.
        rank: One rank for all layers, for comparison; pass it instead of size or threshold.
        calibration: Batches of tokenized inputs like those of the task, a hundred sentences or
            more; they make the adapter better at the same size. The second moments (means of the
            products of two entries) of each layer's inputs and gradients are held in memory.
        target_modules: Which linear layers and embeddings get factors: names or their endings, or a
            regular expression for the whole name; by default all of them. Other layers that differ
            are copied whole.
        dtype: Dtype of the factors; by default the dtype of the tuned weights.

    Returns:
        The adapter, with `save_pretrained` and `push_to_hub`. PEFT alone loads it.

    Raises:
        TypeError: If size or threshold is not a number, rank is not an integer, or a batch is not a
            mapping.
        ValueError: If the architectures differ, nothing was changed, values are not finite, the
            size is too small for a single direction, or options contradict each other.
        OSError: If a path or id cannot be loaded.
    """
    _check_options(size, threshold, rank)
    tuned_model = unwrapped(load_if_path(tuned))
    base_model, new = _load_base(base, tuned_model)
    for role, model in (("base", base_model), ("tuned", tuned_model)):
        _check_dense(role, model)
    task = _task(tuned_model)
    heads = [*_heads(tuned_model, task), *new]
    found = differences(base_model, tuned_model, heads=heads, targets=target_modules)
    excited = (
        {} if calibration is None else measured_moments(tuned_model, found.matrices, calibration)
    )
    extraction = _Extraction(base_model, tuned_model, excited)
    ranks = extraction.ranks(found.matrices, size=size, threshold=threshold, rank=rank)
    updates, shifts = extraction.factors(ranks, dtype)
    carried = _carried(tuned_model, found, ranks, shifts)
    name = str(base) if not isinstance(base, nn.Module) else _name(base)
    return ExtractedAdapter(updates, carried, found.modules, name, task)


class _Extraction:
    """Computes what fine-tuning added to the weight of each layer, and low-rank factors of it.

    `excited` holds, by layer, the second moments (means of products of two entries) of inputs and
    gradients on the calibration batches.
    """

    def __init__(self, base: nn.Module, tuned: Any, excited: Mapping[str, LayerMoments]) -> None:
        self.originals: dict[str, Any] = paired(base, tuned)
        self.tuned, self.excited = tuned, excited

    def update(self, name: str) -> Tensor:
        """The tuned weight of a layer minus its base weight, in float32."""
        after = self.tuned.get_submodule(name).weight.detach().float()
        return after - self.originals[name].weight.detach().to(after)

    def ranks(
        self, names: Iterable[str], *, size: float | None, threshold: float | None, rank: int | None
    ) -> dict[str, int]:
        """Choose the rank of each layer's low-rank factors; `names` are the names of the layers.

        `size`, `threshold` and `rank` are those of `extract_adapter`. The factors are computed
        later. The result holds the ranks by the name of the layer.
        """
        shapes = {name: tuple(self.tuned.get_submodule(name).weight.shape) for name in names}
        if rank is not None:
            return {name: min(rank, *shape) for name, shape in shapes.items()}
        worth = {
            name: self._importance(name) for name in tqdm(shapes, desc="Ranking", disable=None)
        }
        costs = {name: sum(shape) for name, shape in shapes.items()}
        whole = sum(rows * columns for rows, columns in shapes.values())
        if size is None and threshold is None:
            size = DEFAULT_SIZE
        budget = None if size is None else int(size * whole)
        ranks = choose_ranks(worth, costs, budget=budget, threshold=threshold or 1.0)
        if not any(ranks.values()):
            raise ValueError(
                f"size={size} allows {budget} parameters, but one direction takes at least "
                f"{min(costs.values())}; raise size"
            )
        return ranks

    def factors(
        self, ranks: Mapping[str, int], dtype: torch.dtype | None
    ) -> tuple[tuple[LowRankUpdate, ...], dict[str, Tensor]]:
        """The low-rank factors of each layer's update, and vectors to add to biases, by layer.

        An update is the tuned minus the base weight. The factors lose a part of it. The vector of a
        layer is the mean output of the lost part on the calibration batches. A layer without a mean
        input in `LayerMoments` has no vector.
        """
        updates, shifts = [], {}
        for name in tqdm(ranks, desc="Extracting", disable=None):
            module, update = self.tuned.get_submodule(name), self.update(name)
            excitation = self.excited.get(name)
            left, right = low_rank(update, ranks[name], excitation)
            lost = update - left @ right
            energy = 1 - float(lost.norm() / update.norm()) ** 2
            kind = dtype or module.weight.dtype
            updates.append(
                LowRankUpdate(
                    name, isinstance(module, nn.Embedding), left.to(kind), right.to(kind), energy
                )
            )
            if excitation is not None and excitation.mean is not None:
                shifts[name] = lost @ excitation.mean.to(lost)
        return tuple(updates), shifts

    def _importance(self, name: str) -> Tensor:
        """The worth of each direction of a layer's update, the tuned minus the base weight.

        A direction is a matrix of rank one in the update, and its worth is the cost of losing it.
        Without calibration, the update of an embedding is first divided by two numbers, so that it
        can be compared with the update of a linear layer. The first is sqrt(n), because each of n
        trained tokens occurs 1/n of the time. Here n = (sum a)^2 / sum a^2 for the squared row
        norms a of the update. The second is the root mean square of the embedding's entries,
        because the layers after an embedding work in units of its entries.
        With calibration, a layer that no batch reached has worth 0 everywhere.
        """
        module, update = self.tuned.get_submodule(name), self.update(name)
        excitation = self.excited.get(name)
        if excitation is None and isinstance(module, nn.Embedding):
            rows = update.square().sum(1)
            trained = rows.sum().square() / rows.square().sum()
            entry = module.weight.detach().float().square().mean().sqrt()
            update = update / (entry * trained.sqrt())
        worth = importance(update, excitation).cpu()
        return 0 * worth if self.excited and excitation is None else worth  # it was not called


def _carried(
    tuned: nn.Module, found: Differences, ranks: Mapping[str, int], shifts: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors that an adapter copies from the tuned model, by their names in its file.

    These are changed tensors without low-rank factors, such as biases, and whole modules, such as
    new heads. `ranks` gives the ranks of the factors by layer. `shifts` holds the vectors that are
    added to biases, by layer.
    """
    state = tuned.state_dict()
    carried = {
        f"{PREFIX}{name}": tensor.clone()
        for name, tensor in state.items()
        if any(name.startswith(f"{module}.") for module in found.modules)
    }
    shifted = {f"{name}.bias" for name in shifts if f"{name}.bias" in state}
    for key in sorted({*found.parameters, *shifted}):
        module, _, leaf = key.rpartition(".")
        inner = ".base_layer." if ranks.get(module) else "."
        value = state[key] + shifts[module].to(state[key]) if key in shifted else state[key].clone()
        carried[f"{PREFIX}{module}{inner}{leaf}"] = value
    return carried


def _load_base(base: ModelOrPath, tuned: Any) -> tuple[Any, list[str]]:
    """The pretrained model, and the names of modules that its files lack, such as a new head.

    A path is loaded with the class of `tuned`, the fine-tuned model. If `base` is a model already,
    there are no such names.
    """
    if isinstance(base, nn.Module):
        return unwrapped(base), []
    check_source(base)
    kind = getattr(tuned, "config", None)
    config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    if kind is None or config.model_type != kind.model_type:
        raise ValueError(
            f"base {str(base)!r} is a {config.model_type!r} and tuned is a "
            f"{getattr(kind, 'model_type', type(tuned).__name__)!r}; pass the model that tuned was "
            "fine-tuned from"
        )
    model, info = type(tuned).from_pretrained(base, dtype="auto", output_loading_info=True)
    missing = {key.rpartition(".")[0] for key in info["missing_keys"]}
    return model, sorted(missing & {name for name, _ in tuned.named_modules()})


def _task(model: nn.Module) -> str | None:
    name = type(model).__name__
    return next((task for ending, task in TASKS.items() if name.endswith(ending)), None)


def _heads(model: nn.Module, task: str | None) -> list[str]:
    endings = HEADS.get(task or "", ())
    return [name for name, _ in model.named_modules() if name.endswith(endings)]


def _name(model: Any) -> str | None:
    """The folder or Hub id that a model was loaded from; None if it is not known."""
    return getattr(getattr(model, "config", None), "_name_or_path", None) or None


def _check_dense(role: str, model: nn.Module) -> None:
    if layers := compressed_layers(model):
        raise ValueError(
            f"{role} has compressed layers, such as {next(iter(layers))!r}, whose weights are not "
            f"the original ones; pass the original model, or hf_rmt.export_dense({role}), which "
            "has the weights that the compressed model acts with"
        )


def _check_options(size: float | None, threshold: float | None, rank: int | None) -> None:
    if sum(option is not None for option in (size, threshold, rank)) > 1:
        raise ValueError(
            f"size={size}, threshold={threshold} and rank={rank} exclude each other; pass only one"
        )
    for name, value in (("size", size), ("threshold", threshold)):
        if value is not None:
            check_number(name, value, "(0")
    if rank is not None:
        check_integer("rank", rank, 1)
