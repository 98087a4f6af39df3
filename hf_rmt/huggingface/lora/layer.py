"""The LoRA layer that PEFT puts around a compressed linear layer.

With it, `LoraConfig(target_modules=["query", "value"])` works on a compressed model, and a LoRA
that was trained on the dense base loads onto the compressed one.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn

from hf_rmt.compression.gram import fewest_directions
from hf_rmt.nn.layers.compressed_layer import CompressedLayer
from hf_rmt.nn.layers.spiked import SpikedLinear
from hf_rmt.nn.layers.spiked_conv import SpikedConv2d
from hf_rmt.nn.noise_product import split_factors


class CompressedLoraLinear(Linear):
    """A compressed layer with an adapter: x W' + bias + s (x A') B'.

    x is the input, W the compressed weight, A and B are the factors of the adapter, s is the scale
    of the adapter, and ' is the transpose. Merging appends A and s B to the low-rank factors of the
    layer (its signal). So the rank grows by the rank of the adapter. If factors of a smaller rank
    can hold the same matrix, they are stored instead, rounded to the dtype of the layer. This is
    always so if the rank exceeds the smaller side of W. A ternary layer (entries -1, 0, 1) has no
    low-rank factors, so its adapter cannot be merged.

    Args:
        base_layer: The compressed layer, or an adapter around it.
        adapter_name: Name of the adapter.
        config: PEFT's config of the adapter.
        **kwargs: Other arguments that PEFT passes.

    Raises:
        ValueError: If `init_lora_weights` or `use_dora` in the config needs the dense weight.
    """

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: Any, **kwargs: Any):
        start = config.init_lora_weights
        if isinstance(start, str) and start.lower() not in ("gaussian", "eva", "orthogonal"):
            raise ValueError(
                f"init_lora_weights={start!r} starts from the dense weight, which a compressed "
                "layer does not have; pass init_lora_weights=True, or train on "
                "hf_rmt.export_dense(model)"
            )
        if config.use_dora:
            raise ValueError(
                "use_dora=True scales the dense weight, which a compressed layer does not have; "
                "pass use_dora=False, or train on hf_rmt.export_dense(model)"
            )
        super().__init__(base_layer, adapter_name, config, **kwargs)
        self.fan_in_fan_out = False
        self._appended: list[str] = []  # adapters whose rows are the last ones of the signal
        self._rewritten: dict[str, tuple[Tensor, str]] = {}  # the signal before, and digest after

    def _get_in_out_features(self, module: Any) -> tuple[int, int]:
        return module.in_features, module.out_features

    @property
    def lora_variants(self) -> dict[Any, Any]:
        """The LoRA variants that work here: only plain LoRA, as others need the dense weight."""
        return {(): None}

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Append adapters to the signal (the low-rank factors) of the layer.

        Args:
            safe_merge: Whether to refuse an adapter with values that are nan or infinite.
            adapter_names: The adapters; None for the active ones.

        Raises:
            ValueError: If the layer has no low-rank factors, an adapter has values that are not
                finite, or an adapter has a bias and the layer has none.
        """
        for name in check_adapters_to_merge(self, adapter_names) or []:
            if name not in self.lora_A:
                continue
            layer, rows = self._spiked(), self._rows(name)
            over = layer.rank + len(rows) > min(layer.in_features, layer.out_features)
            if (safe_merge or over) and not torch.isfinite(rows).all():
                raise ValueError(f"adapter {name!r} holds nan or infinite values; train it again")
            self._shift_bias(name, 1.0)
            self._append(name, layer, rows)
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Remove merged adapters from the signal (the low-rank factors), the last adapter first.

        If merging wrote the signal with a smaller rank, the earlier signal is restored. If the
        merged signal was changed since, the adapter is subtracted, which is exact up to rounding.
        """
        while self.merged_adapters:
            name, layer = self.merged_adapters.pop(), self._spiked()
            before, digest = self._rewritten.pop(name, (layer.weight, ""))
            if self._appended[-1:] == [name]:
                self._appended.pop()
                _set_factors(layer, layer.weight.detach()[: layer.rank - self.r[name]])
            elif digest == _digest(layer.weight):
                _set_factors(layer, before.to(layer.weight))
            else:
                self._append(name, layer, self._rows(name, -1.0))
                self._appended, self._rewritten = [], {}
            self._shift_bias(name, -1.0)

    def _append(self, name: str, layer: SpikedLinear, rows: Tensor) -> None:
        """Append the rows of the adapter `name` to the low-rank factors (the signal) of a layer.

        `_rows` explains the rows. If fewer rows can hold the same matrix, they replace all rows of
        the factors.
        """
        before = layer.weight.detach()
        factors = torch.cat([before, rows.to(before)])
        left, right = split_factors(factors, layer.in_features)
        if torch.isfinite(factors).all():
            left, right = fewest_directions(left, right)
        if left.shape[1] == len(factors):
            _set_factors(layer, factors)
            self._appended.append(name)
            return
        _set_factors(layer, torch.cat([right, left.T], dim=1).to(before))
        self._rewritten[name] = before, _digest(layer.weight)

    def _rows(self, name: str, sign: float = 1.0) -> Tensor:
        """An adapter of rank r in the form of `SpikedLinear.weight`, shape (r, in + out).

        The adapter is s B A, where s is its scale. Row i is row i of A, followed by column i of
        s B. With `sign=-1`, the rows stand for -s B A.
        """
        right: Any = self.lora_A[name].weight
        left: Any = self.lora_B[name].weight
        return torch.cat([right, sign * self.scaling[name] * left.T], dim=1).detach()

    def _spiked(self) -> SpikedLinear:
        layer = self.get_base_layer()
        if not isinstance(layer, SpikedLinear):
            raise ValueError(
                f"a {type(layer).__name__} has no signal that an adapter could be merged into; "
                "keep the adapter unmerged, or merge it into hf_rmt.export_dense(model)"
            )
        return layer

    def _shift_bias(self, name: str, sign: float) -> None:
        bias: Any = self.lora_B[name].bias
        layer: Any = self.get_base_layer()
        if bias is None:
            return
        if layer.bias is None:
            raise ValueError(
                f"adapter {name!r} has a bias and the layer has none; train it with lora_bias=False"
            )
        layer.bias.data += sign * self.scaling[name] * bias.detach().to(layer.bias)


def compressed_lora(target: nn.Module, adapter_name: str, config: Any, **kwargs: Any) -> Any:
    """Return the LoRA layer for a compressed layer; None for others, which PEFT itself adapts.

    Args:
        target: The layer, or an adapter around it.
        adapter_name: Name of the adapter.
        config: PEFT's config of the adapter.
        **kwargs: Other arguments that PEFT passes.

    Raises:
        ValueError: If PEFT cannot adapt the layer: a compressed convolution, or a ternary layer
            that also applies its activation function (a step function) to its outputs.
    """
    layer = getattr(target, "base_layer", target)
    if kwargs.get("parameter_name") is not None or not isinstance(layer, CompressedLayer):
        return None
    kwargs.pop("parameter_name", None)
    if isinstance(layer, SpikedConv2d):
        raise ValueError(
            "LoRA on a compressed convolution adapts its factors: pass "
            "LoraConfig(**hf_rmt.lora_targets(model)), or leave convolutions out of target_modules"
        )
    if getattr(layer, "step", None) is not None:
        raise ValueError(
            "an adapter would act after the step activation at the end of this ternary layer, not "
            "before it; leave the layer out of target_modules, or compress with activation='keep'"
        )
    return CompressedLoraLinear(target, adapter_name, config=config, **kwargs)


def _digest(factors: Tensor) -> str:
    """A digest of low-rank factors, to find out later whether they were changed."""
    content = factors.detach().contiguous().cpu().view(torch.uint8)
    return hashlib.sha256(content.numpy().tobytes()).hexdigest()


def _set_factors(layer: SpikedLinear, factors: Tensor) -> None:
    """Replace the low-rank factors of a layer; its rank becomes the number of rows of `factors`."""
    trains = layer.weight.requires_grad
    layer.weight = nn.Parameter(factors.contiguous(), requires_grad=trains)
    layer.rank = len(factors)
