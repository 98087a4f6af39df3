"""Step activations: piecewise constant functions, which take a few values only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from hf_rmt.nn.transforms import is_transformed


class StepActivation(nn.Module):
    """A step function: s(x) = h_j - mean for t_j < x <= t_(j+1); t_0 = -inf and t_(k+1) = inf.

    The thresholds t_j cut the line into pieces, and h_j is the height of a piece. A function that
    is 0 in (r_1, r_2] and b elsewhere has the thresholds (r_1, r_2) and the heights (b, 0, b). At a
    threshold the value is that of the piece on its left, as with `numpy.searchsorted`. The
    comparison with the thresholds and the subtraction of the mean use the dtype of x or that of the
    buffers (`thresholds`, `heights` and `mean`), whichever is wider.

    The gradient is that of a surrogate, a smooth activation such as the one that was replaced.
    Without a surrogate, each jump is spread over an interval of length 2 `width` around its
    threshold, and the gradient is sum_j (h_j - h_(j-1)) max(0, 1 - |x - t_j| / width) / width.

    Args:
        thresholds: t_1 < ... < t_k, finite.
        heights: h_0 .. h_k, so there is one height more than there are thresholds.
        mean: The number that is subtracted, such as the mean height over the inputs.
        surrogate: A differentiable function of a tensor, used for its gradient only; or None.
        width: Half the length of the interval around a threshold over which the gradient spreads
            the jump, in units of x; > 0.
        device: Device of the buffers.
        dtype: Dtype of the buffers.

    Raises:
        ValueError: If numbers are missing, not finite or out of order, or width is not positive.

    Examples:
        >>> StepActivation([-1.0, 1.0], [2.0, 0.0, 2.0], mean=0.5)(torch.tensor([-3.0, 0.0, 1.0]))
        tensor([ 1.5000, -0.5000, -0.5000])
    """

    thresholds: Tensor
    heights: Tensor
    mean: Tensor

    def __init__(
        self,
        thresholds: Sequence[float],
        heights: Sequence[float],
        *,
        mean: float = 0.0,
        surrogate: Callable[[Tensor], Tensor] | None = None,
        width: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check(thresholds, heights, mean, width)
        for name, value in (("thresholds", thresholds), ("heights", heights), ("mean", mean)):
            self.register_buffer(name, torch.tensor(value, device=device, dtype=_dtype(dtype)))
        self.surrogate, self.width = surrogate, width

    def forward(self, input: Tensor) -> Tensor:
        """The values of the step function for an input of any shape, in the dtype of the input."""
        x = input
        steps = self._steps(x.detach())
        if not (is_transformed() or (torch.is_grad_enabled() and x.requires_grad)):
            return steps
        smooth = self._smoothed(x) if self.surrogate is None else self.surrogate(x)
        # This adds a zero that has the gradient. The sum smooth + (steps - smooth) would round.
        return steps + (smooth - smooth.detach()).to(steps.dtype)

    def _steps(self, x: Tensor) -> Tensor:
        return self._chosen(x, self.heights, self.mean)

    def _chosen(self, x: Tensor, heights: Tensor, mean: Tensor) -> Tensor:
        """Replace each number in x by the height of the piece in which it lies, minus the mean.

        The thresholds cut the line into pieces, each with an entry of `heights`. With the
        thresholds [0], the heights [5, 8] and the mean 1, x = [-3, 2] becomes [4, 7].
        """
        dtype = torch.promote_types(x.dtype, heights.dtype)
        wide, values = x.to(dtype), heights.to(dtype) - mean.to(dtype)
        steps = values[0].expand_as(wide)
        for threshold, value in zip(self.thresholds.to(dtype), values[1:], strict=True):
            steps = torch.where(wide > threshold, value, steps)
        return steps.to(x.dtype)

    def _smoothed(self, x: Tensor) -> Tensor:
        return self._ramps(x, self.heights)

    def _ramps(self, x: Tensor, heights: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for threshold, jump in zip(self.thresholds, heights.diff(), strict=True):
            u = ((x - threshold) / self.width).clamp(-1, 1)
            total = total + jump * (u - u * u.abs() / 2)
        return total

    def extra_repr(self) -> str:
        """What `print` shows of the activation."""
        thresholds, heights = self.thresholds.tolist(), self.heights.tolist()
        return f"thresholds={thresholds}, heights={heights}, mean={self.mean.item():g}"


class StepBefore(StepActivation):
    """A step function before an activation f: it gives heights h_j, and f makes v_j = f(h_j).

    The class is used if the forward pass of a model calls f as a function, because such a call
    cannot be replaced as a module can. The step function divides its gradient by the slope of f at
    h_j. So the step function and f together have the gradient of a `StepActivation` with the
    heights v_j.

    Args:
        thresholds: t_1 < ... < t_k, finite, as in `StepActivation`.
        heights: h_0 .. h_k, the inputs of f.
        values: v_0 .. v_k, the outputs of f.
        slopes: The slopes f'(h_0) .. f'(h_k), finite and not 0.
        width: Half the length of the interval around a threshold over which the gradient spreads
            the jump, in units of x; > 0.
        device: Device of the buffers.
        dtype: Dtype of the buffers.

    Raises:
        ValueError: If numbers are missing, not finite, out of order, or a slope is 0.

    Examples:
        >>> step = StepBefore([0.0], [-1.0, 1.0], values=[-0.7616, 0.7616], slopes=[0.42, 0.42])
        >>> step(torch.tensor([-3.0, 0.5])).tanh()
        tensor([-0.7616,  0.7616])
    """

    values: Tensor
    slopes: Tensor

    def __init__(
        self,
        thresholds: Sequence[float],
        heights: Sequence[float],
        *,
        values: Sequence[float],
        slopes: Sequence[float],
        width: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(thresholds, heights, width=width, device=device, dtype=dtype)
        for name, numbers in (("values", values), ("slopes", slopes)):
            if len(numbers) != len(heights) or not all(math.isfinite(each) for each in numbers):
                raise ValueError(
                    f"{name} must be {len(heights)} finite numbers, one for each height, got "
                    f"{list(numbers)}"
                )
            self.register_buffer(name, torch.tensor(numbers, device=device, dtype=_dtype(dtype)))
        if not all(slopes):
            raise ValueError(
                f"slopes must not be 0, because no gradient would pass, got {list(slopes)}"
            )

    def _smoothed(self, x: Tensor) -> Tensor:
        return self._ramps(x, self.values) / self._chosen(x.detach(), self.slopes, self.mean)


def _dtype(dtype: torch.dtype | None) -> torch.dtype:
    return torch.get_default_dtype() if dtype is None else dtype


def _check(
    thresholds: Sequence[float], heights: Sequence[float], mean: float, width: float
) -> None:
    if len(heights) != len(thresholds) + 1:
        raise ValueError(
            f"{len(thresholds)} thresholds need {len(thresholds) + 1} heights, one for each piece, "
            f"got {len(heights)}"
        )
    if not all(math.isfinite(value) for value in (*thresholds, *heights, mean)):
        raise ValueError(
            f"thresholds, heights and mean must be finite, got {list(thresholds)}, "
            f"{list(heights)} and {mean}"
        )
    if any(low >= high for low, high in pairwise(thresholds)):
        raise ValueError(f"thresholds must increase, got {list(thresholds)}")
    if not width > 0:
        raise ValueError(f"width must be positive, got {width}")
