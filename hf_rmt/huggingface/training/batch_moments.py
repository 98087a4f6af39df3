"""Second moments of layers' inputs and output gradients, measured on batches of a training.

The second moment of vectors x is the matrix of the means of x_i x_j.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from hf_rmt.compression.calibration.low_rank import LayerMoments
from hf_rmt.compression.calibration.token_masks import TokenMasks
from hf_rmt.compression.execution.rendezvous import n_processes
from hf_rmt.huggingface.training.trained_layers import is_trained
from hf_rmt.nn.counterparts import matrix_shape
from hf_rmt.nn.dense_matrix import is_convolution
from hf_rmt.nn.layers.spiked_conv import padded

TOKENS = 512
"""Largest number of tokens of a batch that are measured, unless another number is passed."""
BLOCK = 512
"""A matrix of sums with more columns is computed in blocks. The blocks below the diagonal are left
out, because the matrix is symmetric."""
WIDEST = 4096
"""The largest number of inputs (or outputs) of a layer for which the products of each two entries
are summed up. For more, only the squares of the entries are, the diagonal of this matrix."""


class BatchMoments:
    """Sums the second moments of layers' inputs and output gradients over training batches.

    Hooks add up x x' for the inputs x and g g' for the output gradients g (' is the transpose), for
    each layer and over tokens, in float32. For vectors with more than `WIDEST` entries, only the
    squares are added up. No extra pass is run, no batch is stored, and the training is not changed.
    The sums decide which low-rank part each weight keeps. Until then, they take two to four times
    the memory of the layers. Layers that share an input in one batch may have different inputs in
    the next, so each layer has sums of its own.

    Args:
        model: The model that trains, without a wrapper.
        names: Names of the layers to measure.
        tokens: Largest number of tokens of a batch that are measured, evenly spaced. More tokens
            cost time and change little.
        compiled: Whether the model is compiled. A compiled graph does not call hooks that are added
            later, so the model runs without the graph while batches are measured.

    Attributes:
        sums: The sums of each layer. A key is "NAME KIND", where KIND is `products` (for x x'),
            `slopes` (for g g'), or one of the counts `tokens` and `batches`.
        not_finite: Layers that were called, but whose inputs or gradients held nan or inf.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        tokens: int = TOKENS,
        *,
        compiled: bool = False,
    ) -> None:
        self.model, self.names, self.tokens = model, list(names), tokens
        self.compiled = compiled
        self.not_finite: list[str] = []
        self.sums: dict[str, Tensor] = {}
        for name in self.names:
            self._add_room(name)
        self._hooks: list[Any] = []
        self._uncompiled = ExitStack()
        self._masks = TokenMasks(model)

    def listen(self) -> None:
        """Add hooks that measure the next batches, until `stop` is called."""
        if self._hooks:
            return
        if self.compiled:
            self._uncompiled.enter_context(torch.compiler.set_stance("force_eager"))
        self._masks.listen()
        for name in self.names:
            layer = self.model.get_submodule(name)
            hook = layer.register_forward_hook(_Listener(self, name), with_kwargs=True)
            self._hooks.append(hook)

    def stop(self) -> None:
        """Remove the hooks that measure batches."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._uncompiled.close()
        self._masks.stop()

    def hear(self, name: str, layer: nn.Module, entry: Tensor, result: Tensor) -> None:
        """Measure one call of a layer, with the input `entry`, and add the result to `sums`.

        The gradient of the output `result` is added when the backward pass computes it. Calls
        without gradients (evaluations) are left out.
        """
        mask = self._masks.of(name, entry)
        if torch.is_grad_enabled():
            with torch.no_grad():
                self._add(name, layer, entry.detach(), result, mask)

    def _add_room(self, name: str) -> None:
        """Put zeros into `sums` for the layer `name`; `hear` adds to them later."""
        layer: Any = self.model.get_submodule(name)
        (rows, columns), device = matrix_shape(layer), layer.weight.device
        self.sums[f"{name} slopes"] = _room(rows, device)
        self.sums[f"{name} products"] = _room(columns, device)
        for count in ("batches", "tokens"):
            self.sums[f"{name} {count}"] = torch.zeros(1, device=device, dtype=torch.float64)

    def measured_moments(self) -> dict[str, LayerMoments]:
        """The second moments of each layer over the batches of all processes.

        The second moment of vectors x is the mean of x x' (' is the transpose).

        Returns:
            The moments of each layer that a batch reached, by name. Those of the inputs are means
            over tokens. Those of the output gradients are sums over the tokens of a batch, averaged
            over batches; they are None if no gradient arrived. Layers with nan or inf in a sum are
            left out, and `not_finite` names them.
        """
        if n_processes() > 1:
            for tensor in self.sums.values():
                distributed.all_reduce(tensor)
        found = {name: it for name in self.names if (it := self._excitation(name)) is not None}
        self.not_finite = [name for name, it in found.items() if not _is_finite(it)]
        return {name: it for name, it in found.items() if name not in self.not_finite}

    def _excitation(self, name: str) -> LayerMoments | None:
        if not float(self.sums[f"{name} tokens"]):
            return None
        products = _symmetric(self.sums[f"{name} products"])
        inputs = products / self.sums[f"{name} tokens"].float()
        slopes = _symmetric(self.sums[f"{name} slopes"])
        batches = self.sums[f"{name} batches"].float()
        return LayerMoments(inputs, slopes / batches if slopes.any() else None)

    def _add(self, name: str, layer: nn.Module, entry: Tensor, result: Tensor, mask: Any) -> None:
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
        """The vectors of all tokens as the rows of a matrix.

        Padding is left out if the attention mask has the shape (batch, length) of the tokens.
        """
        if mask is not None and mask.shape == tokens.shape[:-1]:
            return tokens[mask.bool().to(tokens.device)]
        return tokens.reshape(-1, tokens.shape[-1])

    def _thinned(self, rows: Tensor) -> Tensor:
        """At most `self.tokens` of the rows of a matrix, evenly spaced, to save time."""
        return rows[:: max(1, -(-len(rows) // self.tokens))]


class _Listener:
    """A forward hook that passes each call of a layer to a `BatchMoments`, which measures it.

    If the model is copied or pickled, the copy of the hook does nothing.
    """

    def __init__(self, moments: BatchMoments | None, name: str) -> None:
        self.moments, self.name = moments, name

    def __call__(self, layer: nn.Module, args: Any, kwargs: dict[str, Any], result: Tensor) -> None:
        if self.moments is not None:
            entry = args[0] if args else next(iter(kwargs.values()))
            self.moments.hear(self.name, layer, entry, result)

    def __reduce__(self) -> Any:
        return _Listener, (None, self.name)


def _is_finite(moments: LayerMoments) -> bool:
    parts = (moments.inputs, moments.gradients)
    return all(part is None or bool(torch.isfinite(part).all()) for part in parts)


def _room(width: int, device: Any) -> Tensor:
    """Zeros of shape (width, width), to which x x' of vectors x will be added.

    If `width` is above `WIDEST`, the shape is (width,), for the squares of the entries alone.
    """
    return torch.zeros((width, width) if width <= WIDEST else (width,), device=device)


def _add_products(total: Tensor, rows: Tensor) -> None:
    """Add `rows.T @ rows` to the matrix `total`, or its diagonal to the vector `total`.

    If the matrix has more than `BLOCK` columns, blocks below its diagonal are left out.
    """
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
    """Make a matrix symmetric: its part above the diagonal replaces the part below.

    A vector, which holds only the diagonal of a matrix, is returned as it is.
    """
    return total if total.ndim == 1 else total.triu() + total.triu(1).T


def _patches(layer: Any, images: Tensor) -> Tensor:
    """The image patches under the kernel, shape (images, kernel positions, entries of a patch).

    A patch has channels * kernel height * kernel width entries.
    """
    unfolded = functional.unfold(
        padded(layer, images), layer.kernel_size, dilation=layer.dilation, stride=layer.stride
    )
    return unfolded.transpose(1, 2)


def measurable(model: nn.Module, names: Iterable[str], smallest: int) -> list[str]:
    """Those of `names` whose layer is trained and has at least `smallest` rows and columns."""
    layers = {name: model.get_submodule(name) for name in names}
    trained = {name: layer for name, layer in layers.items() if is_trained(layer)}
    return [name for name, layer in trained.items() if min(matrix_shape(layer)) >= smallest]
