"""Where a fine-tuned model differs from its base, and which differences get low-rank factors."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_rmt.compression.targets.names import is_selected
from hf_rmt.nn.counterparts import paired_name


@dataclass(frozen=True)
class Differences:
    """Where a tuned model differs from its base.

    Attributes:
        matrices: Names of linear layers and embeddings. Low-rank factors store how their weights
            changed.
        modules: Names of modules that the adapter copies whole.
        parameters: Names of other parameters that the adapter copies, mostly biases.
    """

    matrices: tuple[str, ...]
    modules: tuple[str, ...]
    parameters: tuple[str, ...]


def differences(
    base: nn.Module,
    tuned: nn.Module,
    *,
    heads: Collection[str] = (),
    targets: list[str] | str | None = None,
) -> Differences:
    """Compare two models of one architecture, parameter by parameter.

    Args:
        base: The pretrained model; it may lack the tuned model's head (the layers for the task).
        tuned: The fine-tuned model.
        heads: Names of modules of the tuned model that are copied whole, even if nothing in them
            changed.
        targets: Which linear layers and embeddings get low-rank factors: names or their endings, or
            a regular expression for the whole name; None for all.

    Returns:
        The names of the modules and parameters that differ.

    Raises:
        ValueError: If a layer exists in one model only, shapes differ, a weight is not finite, or
            the models differ in no weight that could get factors.
    """
    originals = paired(base, tuned)
    matrices, modules, loose = [], list(heads), []
    for name, module in tuned.named_modules():
        if not _tensors(module) or _inside(name, modules):
            continue
        if name not in originals:
            modules.append(name)
            continue
        changed = _changed(name, originals[name], module)
        if "weight" in changed and _takes_factors(name, module, targets):
            matrices.append(name)
            changed.remove("weight")
        elif changed not in ([], ["bias"]) and not _holds_matrices(name, module):
            modules.append(name)
            changed = []
        loose += [f"{name}.{key}".lstrip(".") for key in changed]
    # PEFT takes every module whose name ends like one of its modules_to_save
    modules = [name for name, _ in tuned.named_modules() if name.endswith(tuple(modules))]
    matrices = [name for name in matrices if not _inside(name, modules)]
    if not matrices:
        raise ValueError(
            f"no matrix that could take factors differs between base and tuned "
            f"(target_modules={targets!r}): pass the pretrained model as base and the fine-tuned "
            "model as tuned, or other target_modules"
        )
    loose = [key for key in loose if not _inside(key, modules)]
    return Differences(tuple(matrices), tuple(modules), tuple(loose))


def paired(base: nn.Module, tuned: nn.Module) -> dict[str, nn.Module]:
    """Map the names of modules in the tuned model to the modules of the base model.

    The names of a module in the two models may differ by a prefix. A module that exists in only
    one of the models is left out.

    Raises:
        ValueError: If a numbered block, such as `layer.3`, exists in only one of the models.
    """
    prefix = getattr(tuned, "base_model_prefix", "")
    modules, known = dict(base.named_modules()), {name for name, _ in tuned.named_modules()}
    pairs = {}
    for name in known:
        if (there := paired_name(name, prefix, modules)) is not None:
            pairs[name] = modules.pop(there)
    for where, names in (("tuned", known - set(pairs)), ("base", set(modules))):
        blocks = [name for name in names if any(part.isdigit() for part in name.split("."))]
        if blocks:
            raise ValueError(
                f"base and tuned differ in architecture: {min(blocks)!r} exists in {where} only; "
                "pass the model that tuned was fine-tuned from"
            )
    return pairs


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and saved buffers of a module, by name, without those of modules in it."""
    buffers = {
        key: value
        for key, value in module._buffers.items()
        if key not in module._non_persistent_buffers_set
    }
    own = {**module._parameters, **buffers}
    return {key: value for key, value in own.items() if value is not None}


def _changed(name: str, original: nn.Module, module: nn.Module) -> list[str]:
    """Names of the tensors of a module that training changed; modules inside it do not count.

    `original` is the same module in the base model. `name` is used in errors.
    """
    before, changed = _tensors(original), []
    for key, after in _tensors(module).items():
        if key not in before or before[key].shape != after.shape:
            found = tuple(before[key].shape) if key in before else "missing"
            raise ValueError(
                f"'{name}.{key}' has shape {tuple(after.shape)} in tuned and is {found} in base; "
                "load the base with the same number of labels and tokens"
            )
        if not (torch.isfinite(after).all() and torch.isfinite(before[key]).all()):
            raise ValueError(
                f"'{name}.{key}' has values that are nan or infinite; pass another checkpoint"
            )
        if not torch.equal(before[key].to(after), after):
            changed.append(key)
    return changed


def _inside(name: str, modules: Collection[str]) -> bool:
    return any(name == module or name.startswith(module + ".") for module in modules)


def _takes_factors(name: str, module: Any, targets: list[str] | str | None) -> bool:
    """Whether the change of a layer is stored as low-rank factors.

    The layer must be linear or an embedding, be selected by `targets`, and have more entries than
    two factors of rank 2 would have.
    """
    if type(module) not in (nn.Linear, nn.Embedding):
        return False
    rows, columns = module.weight.shape
    if rows * columns <= 2 * (rows + columns):
        return False
    if targets is None:
        return True
    return is_selected(name, targets)


def _holds_matrices(name: str, module: nn.Module) -> bool:
    """Whether a linear layer or an embedding lies inside a module.

    Such a module is not copied whole. The model itself (name "") counts as such a module.
    """
    return not name or any(
        type(part) in (nn.Linear, nn.Embedding) for part in module.modules() if part is not module
    )
