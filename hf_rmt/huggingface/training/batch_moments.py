"""Second moments of layers' inputs and output gradients, measured on batches of a training."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from hf_rmt.compression.calibration.low_rank import LayerMoments
from hf_rmt.compression.calibration.moments import TensorNumbers
from hf_rmt.compression.calibration.token_masks import TokenMasks
from hf_rmt.compression.execution.parallel import n_processes
from hf_rmt.huggingface.training.trained_layers import is_trained
from hf_rmt.nn.counterparts import matrix_shape
from hf_rmt.nn.dense_matrix import is_convolution

TOKENS = 512
"""Largest number of tokens of a batch that are measured, unless another number is passed."""
BLOCK = 512
"""Wider matrices of sums are added up in blocks, of which those below the diagonal are left out."""
WIDEST = 4096
"""Widest side whose second moment is a matrix; for a wider side only its diagonal is summed."""


class BatchMoments:
    """Sums over the tokens of the training batches, gathered by hooks without extra passes.

    The first batch only shows which layers share an input. From the second batch on, the products
    of each distinct input and the products of the gradients of each layer's output are added up in
    float32. No batch is stored, and its outputs and gradients are not changed. The sums hold two to
    four times as many numbers as the layers, until the directions are chosen.

    Args:
        model: The model that trains, without a wrapper.
        names: Its layers with a matrix.
        tokens: Largest number of tokens of a batch that are measured, evenly spaced. More tokens
            cost time and change little.

    Attributes:
        leaders: For each layer, the layer whose input it shares.
        sums: The sums, by the name of a layer and the kind of sum.
        not_finite: Layers that were reached, but whose inputs or gradients hold nan or inf.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], tokens: int = TOKENS) -> None:
        self.model, self.names, self.tokens = model, list(names), tokens
        self.not_finite: list[str] = []
        self.leaders: dict[str, str] = {}
        self.sums: dict[str, Tensor] = {}
        self._given: dict[str, list[int]] = defaultdict(list)
        self._numbers = TensorNumbers()
        self._hooks: list[Any] = []
        self._masks = TokenMasks(model)

    def listen(self) -> None:
        """Add hooks that measure the next batches, until `stop` is called."""
        if self._hooks:
            return
        self._masks.listen()
        for name in self.names:
            layer = self.model.get_submodule(name)
            hook = layer.register_forward_hook(self._hear(name), with_kwargs=True)
            self._hooks.append(hook)

    def stop(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._masks.stop()

    def end_step(self) -> None:
        """After the first step, decide which layers share an input; the same on all processes."""
        self._numbers.clear()
        if self.leaders or not self._given:
            return
        groups = defaultdict[Any, list[str]](list)
        for name, tokens in self._given.items():
            groups[tuple(tokens), _reading(self.model.get_submodule(name))].append(name)
        leaders = [{name: members[0] for members in groups.values() for name in members}]
        if n_processes() > 1:
            distributed.broadcast_object_list(leaders, src=0)
        self.set_leaders(leaders[0])

    def set_leaders(self, leaders: dict[str, str]) -> None:
        """Create the sums: output gradients for each layer, inputs for each leader of a site."""
        self.leaders = dict(leaders)
        for name, first in self.leaders.items():
            layer: Any = self.model.get_submodule(name)
            (rows, columns), device = matrix_shape(layer), layer.weight.device
            self.sums[f"{name} slopes"] = _room(rows, device)
            self.sums[f"{name} batches"] = torch.zeros(1, device=device, dtype=torch.float64)
            if name == first:
                self.sums[f"{name} tokens"] = torch.zeros(1, device=device, dtype=torch.float64)
                self.sums[f"{name} products"] = _room(columns, device)

    def measured_moments(self) -> dict[str, LayerMoments]:
        """The second moments over the batches of all processes.

        Returns:
            The excitation of each layer that was reached, by name. Inputs are averaged over tokens.
            Gradients are summed over the tokens of a batch and averaged over batches; they are None
            if no gradient arrived. Layers without finite sums are left out; `not_finite` names
            them.
        """
        if n_processes() > 1:
            for tensor in self.sums.values():
                distributed.all_reduce(tensor)
        found = {name: it for name in self.names if (it := self._excitation(name)) is not None}
        self.not_finite = [name for name, it in found.items() if not _is_finite(it)]
        return {name: it for name, it in found.items() if name not in self.not_finite}

    def _excitation(self, name: str) -> LayerMoments | None:
        first = self.leaders.get(name)
        if first is None or not float(self.sums[f"{first} tokens"]):
            return None
        products = _symmetric(self.sums[f"{first} products"])
        inputs = products / self.sums[f"{first} tokens"].float()
        slopes = _symmetric(self.sums[f"{name} slopes"])
        batches = self.sums[f"{name} batches"].float()
        return LayerMoments(inputs, slopes / batches if slopes.any() else None)

    def _hear(self, name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: Any, kwargs: dict[str, Any], result: Tensor) -> None:
            if not layer.training:  # an evaluation between two steps
                return
            entry = (args[0] if args else next(iter(kwargs.values()))).detach()
            if not self.leaders:
                self._given[name].append(self._numbers.number(args[0] if args else entry))
            elif name in self.leaders:
                self._add(name, layer, entry, result)

        return hook

    @torch.no_grad()
    def _add(self, name: str, layer: nn.Module, entry: Tensor, result: Tensor) -> None:
        mask = self._masks.of(name, entry)
        if self.leaders[name] == name:
            patches = _patches(layer, entry) if is_convolution(layer) else entry
            tokens = self._thinned(self._unpadded(patches, mask)).float()
            self.sums[f"{name} tokens"] += len(tokens)
            _add_products(self.sums[f"{name} products"], tokens)
        if result.requires_grad:
            result.register_hook(lambda gradient: self._add_slopes(name, layer, gradient, mask))

    def _add_slopes(self, name: str, layer: nn.Module, gradient: Tensor, mask: Any) -> None:
        rows = gradient.flatten(2).transpose(1, 2) if is_convolution(layer) else gradient
        rows = self._unpadded(rows, mask)
        thin = self._thinned(rows).float()
        weight = math.sqrt(len(rows) / max(1, len(thin)))
        _add_products(self.sums[f"{name} slopes"], weight * thin)
        self.sums[f"{name} batches"] += 1

    def _unpadded(self, tokens: Tensor, mask: Any) -> Tensor:
        """One row for each token; padding is left out if the mask has the shape of the tokens."""
        if mask is not None and mask.shape == tokens.shape[:-1]:
            return tokens[mask.bool().to(tokens.device)]
        return tokens.reshape(-1, tokens.shape[-1])

    def _thinned(self, rows: Tensor) -> Tensor:
        """At most `tokens` of the rows, evenly spaced."""
        return rows[:: max(1, -(-len(rows) // self.tokens))]


def _is_finite(moments: LayerMoments) -> bool:
    parts = (moments.inputs, moments.gradients)
    return all(part is None or bool(torch.isfinite(part).all()) for part in parts)


def _reading(layer: Any) -> tuple[Any, ...]:
    """How a convolution cuts its input into patches; empty for other layers."""
    if not is_convolution(layer):
        return ()
    return layer.kernel_size, layer.stride, str(layer.padding), layer.dilation


def _room(width: int, device: Any) -> Tensor:
    """Zeros for the second moment of a side, or for its diagonal."""
    return torch.zeros((width, width) if width <= WIDEST else (width,), device=device)


def _add_products(total: Tensor, rows: Tensor) -> None:
    """Add the products of rows to a diagonal, or to a matrix above and on its diagonal blocks."""
    width = rows.shape[1]
    if total.ndim == 1:
        total += rows.square().sum(0)
    elif width <= BLOCK:
        total.addmm_(rows.T, rows)
    else:
        half = width // 2
        left, right = rows[:, :half], rows[:, half:]
        _add_products(total[:half, :half], left)
        _add_products(total[half:, half:], right)
        total[:half, half:].addmm_(left.T, right)


def _symmetric(total: Tensor) -> Tensor:
    """The whole matrix of sums whose part below the diagonal may be missing."""
    return total if total.ndim == 1 else total.triu() + total.triu(1).T


def _patches(layer: Any, images: Tensor) -> Tensor:
    """Patches of images that a convolution multiplies, shape (images, places, in k_h k_w)."""
    padding = layer.padding
    if isinstance(padding, str):
        sides = [
            side * (size - 1) for side, size in zip(layer.dilation, layer.kernel_size, strict=True)
        ]
        padding = [side // 2 if padding == "same" else 0 for side in sides]
    unfolded = functional.unfold(
        images, layer.kernel_size, layer.dilation, tuple(padding), layer.stride
    )
    return unfolded.transpose(1, 2)


def measurable(model: nn.Module, names: Iterable[str], smallest: int) -> list[str]:
    """The layers that are trained and whose smaller side is at least `smallest`."""
    layers = {name: model.get_submodule(name) for name in names}
    trained = {name: layer for name, layer in layers.items() if is_trained(layer)}
    return [name for name, layer in trained.items() if min(matrix_shape(layer)) >= smallest]
