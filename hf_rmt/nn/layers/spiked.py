"""A linear layer: its weight is a low-rank matrix (the signal) plus the rest (the noise)."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from hf_rmt.nn.dense_matrix import dense_shape, is_conv1d
from hf_rmt.nn.layers.compressed_layer import autocast_input, register_layer
from hf_rmt.nn.layers.laid_out_layer import LaidOutLayer
from hf_rmt.nn.noise_product import NoiseProduct, cast, merged, noise_product, split_factors
from hf_rmt.nn.stores.codebooks import CODEBOOKS
from hf_rmt.nn.stores.export_ops import is_exporting
from hf_rmt.nn.stores.noise_store import NoiseStore
from hf_rmt.nn.stores.packing import rows_at_once
from hf_rmt.nn.transforms import are_wrapped, is_differentiating, is_transformed, runs_plainly


@register_layer
class SpikedLinear(LaidOutLayer):
    """y = x (left right + noise)' + bias, with trainable factors and frozen noise.

    The mark ' means the transpose. The product left right is the signal: the low-rank part of the
    dense weight. The parameter `weight` of shape (rank, in + out) holds right, followed by the
    transpose of left. Its shape never equals that of the dense weight. So a plain linear layer
    raises an error if it loads the state dict of this layer.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        rank: Rank of the signal, in [0, min(in, out)].
        noise: How the noise, the rest of the weight, is stored; one of `NOISE_KINDS`.
        bias: Whether there is a bias.
        device: Device of the tensors, which hold zeros until a state dict fills them.
        dtype: Dtype of the factors and the bias, and of the noise if it is kept (`keep`).

    Raises:
        ValueError: If the rank lies outside its range or the kind of noise is unknown.

    Examples:
        >>> layer = SpikedLinear(8, 4, 2, noise="int8")
        >>> layer(torch.ones(3, 8)).shape, layer.weight.shape
        (torch.Size([3, 4]), torch.Size([2, 12]))
    """

    kind = "spiked"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        *,
        noise: str = "int8",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= rank <= min(in_features, out_features):
            raise ValueError(
                f"rank must lie in [0, {min(in_features, out_features)}], got {rank}; "
                "lower rank or max_rank"
            )
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.zeros(rank, in_features + out_features, **factory))
        self.bias = nn.Parameter(torch.zeros(out_features, **factory)) if bias else None
        self.noise = NoiseStore(noise, out_features, in_features, **factory)

    @classmethod
    def stands_for(cls, dense: nn.Module) -> bool:
        """True for linear layers, and for `Conv1D` of transformers, whose weight is transposed."""
        return isinstance(dense, nn.Linear) or is_conv1d(dense)

    @classmethod
    def empty_like(
        cls, dense: Any, rank: int, noise: str, *, device: torch.device | str | None = None
    ) -> Self:
        """See `CompressedLayer.empty_like`."""
        rows, columns = dense_shape(dense)
        factory: dict[str, Any] = {"device": device or dense.weight.device}
        factory |= {"dtype": dense.weight.dtype, **cls._geometry(dense)}
        columns = cls._inputs(columns, **cls._geometry(dense))
        layer = cls(columns, rows, rank, noise=noise, bias=dense.bias is not None, **factory)
        layer.dense_class = type(dense)
        return layer

    def empty_dense(self) -> nn.Module:
        """See `CompressedLayer.empty_dense`."""
        if self.dense_class is nn.Linear:
            return super().empty_dense()
        return self.dense_class(self.out_features, self.in_features)  # the order of Conv1D

    @classmethod
    def from_factors(
        cls,
        left: Tensor,
        right: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        *,
        noise: str = "int8",
        dtype: torch.dtype | None = None,
        **geometry: Any,
    ) -> Self:
        """Make the layer whose signal is `left @ right` and whose noise is the rest of a weight.

        If the noise is packed (`int8`, `int4` or `ternary`), `left` and `right` are first rounded
        to bfloat16, so that they can be saved in 16 bits without loss. The noise then contains the
        error of this rounding. At last, `left` is changed to make up for the rounded noise.

        Args:
            left: Shape (out, rank).
            right: Shape (rank, in).
            weight: The dense weight, shape (out, in), from which the signal is subtracted a few
                rows at a time. It may be None only with the noise `drop`.
            bias: Shape (out,) or None. If it is a parameter with the dtype of the layer, it is
                shared, not copied.
            noise: How the noise is stored; one of `NOISE_KINDS`.
            dtype: Dtype of the layer; None for the dtype of left.
            **geometry: Further arguments of a convolution class, such as `kernel_size`.

        Returns:
            The layer, on the device of left.

        Raises:
            ValueError: If shapes disagree, or the weight is None and the noise is not `drop`.
        """
        if weight is None and noise != "drop":
            raise ValueError(f"noise={noise!r} stores the weight minus the signal; pass the weight")
        if left.shape[1] != right.shape[0]:
            raise ValueError(
                f"left {tuple(left.shape)} and right {tuple(right.shape)} disagree on the rank; "
                "pass (out, rank) and (rank, in)"
            )
        dtype = dtype or left.dtype
        layer = cls(
            cls._inputs(right.shape[1], **geometry),
            left.shape[0],
            right.shape[0],
            noise=noise,
            bias=bias is not None,
            device=left.device,
            dtype=dtype,
            **geometry,
        )
        layer._fill(left, right, weight)
        if bias is not None:
            fits = isinstance(bias, nn.Parameter) and bias.dtype == dtype
            own: Any = bias if fits else nn.Parameter(bias.detach().to(dtype))
            layer.bias = own
        return layer

    @classmethod
    def _inputs(cls, columns: int) -> int:
        """Number of inputs (or input channels), for a weight matrix with `columns` columns."""
        return columns

    @classmethod
    def _geometry(cls, dense: nn.Module) -> dict[str, Any]:
        """Keyword arguments of the convolution `dense` except the channels; {} if it is linear."""
        return {}

    @torch.no_grad()
    def _fill(self, left: Tensor, right: Tensor, weight: Tensor | None) -> None:
        factors = torch.cat([right, left.T], dim=1)
        packed = self.noise.kind in CODEBOOKS
        self.weight.copy_(factors.to(torch.bfloat16) if packed else factors)
        if weight is None:
            return
        self.noise.store(weight, self.factors() if self.rank else None)
        if packed and self.rank:
            self._refit(weight)

    def _refit(self, weight: Tensor) -> None:
        """Change the signal after the noise was packed, so that it makes up for the rounding.

        In the signal `left @ right`, `left` becomes (weight - noise) right^+, where right^+ is the
        pseudoinverse of `right`. Then the rounding of the noise causes no error for inputs that are
        combinations of the rows of `right`. The layer takes no more bits than before.
        """
        inverse = torch.linalg.pinv(self.factors()[1].to(torch.float32))
        step = rows_at_once(weight.shape)
        for start in range(0, self.out_features, step):
            stop = min(start + step, self.out_features)
            rest = weight[start:stop].to(torch.float32) - self.noise.rows(start, stop)
            left = (rest @ inverse).to(torch.bfloat16)
            self.weight[:, self.in_features + start : self.in_features + stop] = left.T

    @torch.no_grad()
    def scale_signal(self, factors: Tensor) -> None:
        """Multiply each direction of the signal by a number; the noise stays as it is.

        Direction i is the product of column i of `left` and row i of `right`; see `factors`.

        Args:
            factors: One number for each direction, shape (rank,).
        """
        scaled = self.weight[:, self.in_features :] * factors.to(self.weight)[:, None]
        if self.noise.kind in CODEBOOKS:
            scaled = scaled.to(torch.bfloat16)
        self.weight[:, self.in_features :] = scaled

    def factors(self) -> tuple[Tensor, Tensor]:
        """The low-rank signal as views (left, right) of `weight`: (out, rank) and (rank, in)."""
        return split_factors(self.weight, self.in_features)

    def dense(self) -> Tensor:
        """The weight of the equivalent dense layer: signal plus noise, shape (out, in)."""
        return merged(self.weight, self.noise, self.in_features)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer to an input of shape (..., in), in the input's dtype or autocast's."""
        x = autocast_input(input)
        weight, bias, layout = self.weight, self.bias, self.layout_object
        if not runs_plainly():
            return self._traced_forward(x, weight, bias)
        if layout is None or x.is_meta:
            return self.unpacked_forward(x, weight, bias)
        return layout.forward(self, x, weight, bias)

    def _traced_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply the layer to x while torch compiles, exports or transforms it."""
        transformed, layout = is_transformed(), self.layout_object
        if is_exporting() or (transformed and are_wrapped(self.noise.buffers())):
            return self._act_plainly(x, weight.to(x.dtype), cast(bias, x.dtype))
        if layout is None or x.is_meta or (transformed and not layout.is_transformable):
            return self.unpacked_forward(x, weight, bias)
        if torch.compiler.is_compiling():
            return self._compiled(x, layout.handle)
        return layout.forward(self, x, weight, bias)

    def _compiled(self, x: Tensor, handle: int) -> Tensor:
        """Apply the layer to x in a compiled program, which knows it by its number `handle`."""
        if torch.is_grad_enabled():
            noise = torch.ops.hf_rmt.layout_noise(x, handle, self.out_features)
            return self._signal(x, self.weight, self.bias) + noise
        return torch.ops.hf_rmt.layout_linear(x, self.weight, self.bias, handle, self.out_features)

    def unpacked_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply the layer to x with the given weight and bias; unpack its noise (`NoiseStore`)."""
        if self._merges(x):
            matrix = merged(weight.to(x.dtype), self.noise, self.in_features, scratch=True)
            return self._act(x, matrix, cast(bias, x.dtype))
        product = self._signal(x, weight, bias)
        if self.noise.kind == "drop":
            return product
        if is_differentiating():
            return product + noise_product(x, self)
        return product.add_(NoiseProduct.forward(x, self))  # apply itself takes 50 microseconds

    def _act_plainly(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The output for x, computed only by operations that all exported graphs can hold."""
        if self.noise.kind == "drop":
            return self._signal(x, weight, bias)
        noise, (left, right) = self.noise.plain(x.dtype), split_factors(weight, self.in_features)
        return self._act(x, noise + left @ right if self.rank else noise, bias)

    def _act_noise(self, x: Tensor) -> Tensor:
        """Multiply x by the noise part of the weight; unpack this part in pieces if possible."""
        product = self.noise.product(x)
        return self._act(x, self.noise.dense(x.dtype, scratch=True)) if product is None else product

    def _act(self, x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
        """Apply a plain linear layer to x. Its weight is `matrix`, of shape (any, in)."""
        return functional.linear(x, matrix, bias)

    def _gradient(self, gradient: Tensor, matrix: Tensor, like: torch.Size) -> Tensor:
        """Gradient with respect to x (shape `like`), given the gradient of `_act(x, matrix)`."""
        return gradient @ matrix

    def _signal(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        left, right = split_factors(weight.to(x.dtype), self.in_features)
        return functional.linear(self._act(x, right), left, cast(bias, x.dtype))

    def _positions(self, x: Tensor) -> int:
        """Number of input vectors in x; the weight matrix is applied to each of them."""
        return x.numel() // max(1, self.in_features)

    def _merges(self, x: Tensor) -> bool:
        """Whether to sum signal and noise into one matrix first, so that x is multiplied only once.

        This costs less if x has many rows. It is not done if derivatives may be needed.
        """
        if self.noise.kind == "drop" or is_differentiating():
            return False
        sides = self.in_features + self.out_features
        return self._positions(x) * sides > self.in_features * self.out_features

    def extra_repr(self) -> str:
        """What `print` shows of the layer."""
        layout = "" if self.layout_object is None else f", layout={self.layout!r}"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"rank={self.rank}, bias={self.bias is not None}{layout}"
        )
