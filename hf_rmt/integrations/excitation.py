"""What a few batches say about layers: second moments of their inputs and output gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_rmt.adapters import Excitation


def excitations(
    model: nn.Module, names: Iterable[str], batches: Iterable[Mapping[str, Tensor]]
) -> dict[str, Excitation]:
    """Gather the second moments of layers' inputs and output gradients.

    Args:
        model: The tuned model; it is not changed.
        names: Linears and embeddings.
        batches: Keyword arguments of the model, one forward and one backward pass each.

    Returns:
        The excitation of each layer that was used.

    Raises:
        ValueError: If there is no batch.
    """
    sums = {name: _Sums(model.get_submodule(name)) for name in names}
    generator, empty = torch.Generator().manual_seed(0), True
    with _recording(model, sums) as calls:
        for batch in batches:
            output = _first_tensor(model(**batch))
            probe = torch.randn(output.shape, generator=generator).to(output)
            results = [result for _, _, result in calls]
            gradients = torch.autograd.grad(output, results, probe, allow_unused=True)
            for (name, entry, _), gradient in zip(calls, gradients, strict=True):
                if gradient is not None:
                    sums[name].add(entry, gradient, batch.get("attention_mask"))
            calls.clear()
            empty = False
    if empty:
        raise ValueError("calibration holds no batch; pass some, or None to do without data")
    return {name: total.excitation() for name, total in sums.items() if total.count}


class _Sums:
    """Sums over tokens of one layer's inputs and of the products of inputs and of gradients."""

    def __init__(self, module: Any) -> None:
        rows, columns = module.weight.shape
        self.embedding = isinstance(module, nn.Embedding)
        self.centred = not self.embedding and module.bias is not None
        self.count = 0
        self.total = torch.zeros(rows if self.embedding else columns)
        self.products = torch.zeros(0 if self.embedding else columns, columns)
        size = columns if self.embedding else rows
        self.gradients = torch.zeros(size, size)

    def add(self, entry: Tensor, gradient: Tensor, mask: Tensor | None) -> None:
        """One call of the layer; padding is left out where the mask has the shape of its tokens."""
        lead = gradient.shape[:-1]
        kept = (
            mask.bool().cpu()
            if mask is not None and mask.shape == lead
            else torch.ones(lead).bool()
        )
        slopes = gradient.cpu()[kept].float()
        self.count += len(slopes)
        self.gradients += slopes.T @ slopes
        tokens = entry.cpu().expand(*lead, *entry.shape[len(lead) :])[kept]
        if self.embedding:
            self.total += torch.bincount(tokens, minlength=len(self.total))
        else:
            self.total += tokens.float().sum(0)
            self.products += tokens.float().T @ tokens.float()

    def excitation(self) -> Excitation:
        mean, gradients = self.total / self.count, self.gradients / self.count
        if self.embedding:
            return Excitation(mean, gradients)
        inputs = self.products / self.count
        if not self.centred:
            return Excitation(inputs, gradients)
        return Excitation(inputs - torch.outer(mean, mean), gradients, mean)


@contextmanager
def _recording(
    model: nn.Module, names: Iterable[str]
) -> Iterator[list[tuple[str, Tensor, Tensor]]]:
    """Record (name, input, output) at each call of a layer, outputs being part of the graph.

    Parameters are frozen meanwhile, so that a backward pass goes through activations only.
    """
    calls: list[tuple[str, Tensor, Tensor]] = []

    def record(name: str) -> Callable[..., Tensor]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], result: Tensor) -> Tensor:
            if not result.requires_grad:  # the first of the layers: the graph starts here
                result = result.requires_grad_().clone()
            calls.append((name, inputs[0].detach(), result))
            return result

        return hook

    with ExitStack() as stack:
        for part in model.modules():
            stack.callback(setattr, part, "training", part.training)
        for parameter in model.parameters():
            stack.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(False)
        for name in names:
            stack.callback(model.get_submodule(name).register_forward_hook(record(name)).remove)
        stack.enter_context(torch.enable_grad())
        model.eval()
        yield calls


def _first_tensor(output: Any) -> Tensor:
    """The logits, or else the first floating-point tensor of what a model returns."""
    if isinstance(output, Tensor):
        return output
    if getattr(output, "logits", None) is not None:
        return output.logits
    values = output.values() if isinstance(output, Mapping) else output
    return next(value for value in values if value.is_floating_point())
