"""Second moments of the inputs and output gradients of layers, measured on a few batches.

The second moment of vectors x is the mean of x x', where ' is the transpose. An output gradient is
the derivative of the model's outputs by the outputs of a layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from hf_rmt.compression.calibration.batches import NO_BATCH, Batch, mappings, run_batch
from hf_rmt.compression.calibration.low_rank import LayerMoments, covariance
from hf_rmt.compression.calibration.token_masks import TokenMasks
from hf_rmt.nn.counterparts import matrix_shape
from hf_rmt.nn.tensor_checks import version_of

Sites = dict[str, list[str]]
"""Groups of layers with the same input tensor, by first layer, as in {"q": ["q", "k", "v"]}."""


def measured_moments(
    model: nn.Module, names: Iterable[str], batches: Iterable[Batch]
) -> dict[str, LayerMoments]:
    """Gather the second moments of layers' inputs and output gradients.

    `LayerMoments` explains these matrices. They are means over tokens.

    Args:
        model: The tuned model; it is not changed.
        names: Names of linear layers and embeddings.
        batches: Keyword arguments of the model; each batch takes one forward and one backward pass.

    Returns:
        A dict from the name of each layer that was called to its `LayerMoments`.

    Raises:
        TypeError: If a batch is not a mapping, or `batches` itself is a mapping.
        ValueError: If there is no batch.
    """
    moments = Moments(model, {name: [name] for name in names}, gradients=True)
    moments.gather(batches)
    if not moments.batches:
        raise ValueError(NO_BATCH)
    return moments.measured_moments()


class TensorNumbers:
    """Gives each tensor a number that stays the same while its values do not change.

    If two layers get inputs with the same number, they get the same input tensor.
    """

    def __init__(self) -> None:
        self._alive: dict[int, tuple[Any, int, int]] = {}
        self._numbers = count()

    def number(self, tensor: Tensor) -> int:
        """Return the number of a tensor (see `TensorNumbers`). Unlike an `id`, it stays unique."""
        known = self._alive.get(id(tensor))
        if known is None or known[0]() is not tensor or known[1] != version_of(tensor):
            known = self._alive[id(tensor)] = (
                ref(tensor),
                version_of(tensor),
                next(self._numbers),
            )
        return known[2]

    def clear(self) -> None:
        """Forget all tensors. Later tensors get new numbers; see `TensorNumbers`."""
        self._alive.clear()


class Moments:
    """Gathers sums over tokens that give the second moments of inputs and output gradients.

    The second moment of vectors x is the mean of x x', where ' is the transpose.

    Args:
        model: The model; it is not changed.
        sites: Names of linear layers and embeddings, in groups as the function `sites` returns.
        gradients: Whether output gradients are gathered as well, by a backward pass.
    """

    def __init__(self, model: nn.Module, sites: Sites, *, gradients: bool) -> None:
        self.model, self.batches = model, 0
        self.leaders = {name: first for first, names in sites.items() for name in names}
        self.inputs = {first: _Inputs(model.get_submodule(first)) for first in sites}
        self.slopes = {name: _slopes(model, name) for name in self.leaders} if gradients else {}
        self._masks = TokenMasks(model)
        self._calls: list[tuple[str, Tensor, Tensor, Tensor | None]] = []

    def gather(self, batches: Iterable[Batch]) -> None:
        """Run the model on batches; add layers' inputs and gradients to the sums of `Moments`."""
        generator, graph = torch.Generator().manual_seed(0), bool(self.slopes)
        heard = self._keep if graph else self._add_inputs
        names = self.leaders if graph else self.inputs
        with self._masks.followed(), listening(self.model, names, heard, graph=graph):
            for number, batch in enumerate(mappings(batches)):
                output = _first_tensor(run_batch(self.model, batch, number))
                if graph:
                    self._add_gradients(output, generator)
                self.batches += 1

    def tensors(self) -> dict[str, Tensor]:
        """The sums over tokens that were gathered so far, by layer name and kind of sum.

        The sums of other processes may be added to them in place. Divided by the number of tokens,
        they give the second moments; see `LayerMoments`.
        """
        slopes = {f"{name} gradients": tensor for name, tensor in self.slopes.items()}
        inputs = {
            f"{name} {key}": tensor
            for name, entry in self.inputs.items()
            for key, tensor in vars(entry).items()
            if isinstance(tensor, Tensor)
        }
        return slopes | inputs

    def measured_moments(self) -> dict[str, LayerMoments]:
        """Map the name of each layer that was called to its second moments; see `LayerMoments`."""
        found = {}
        for name, first in self.leaders.items():
            count, module = int(self.inputs[first].count), self.model.get_submodule(name)
            if count:
                slopes = self.slopes[name] / count if self.slopes else None
                biased = getattr(module, "bias", None) is not None
                found[name] = self.inputs[first].excitation(slopes, biased)
        return found

    def _keep(self, name: str, entry: Tensor, result: Tensor) -> None:
        self._calls.append((name, entry.detach(), result, self._masks.of(name, entry)))

    def _add_inputs(self, name: str, entry: Tensor, result: Tensor) -> None:
        """Add a layer's inputs in one call to its sums over tokens; padding is left out."""
        self._add_tokens(name, entry, result, self._masks.of(name, entry))

    def _add_tokens(self, name: str, entry: Tensor, result: Tensor, mask: Tensor | None) -> None:
        kept, lead = _kept(result, mask), result.shape[:-1]
        self.inputs[name].add(entry.expand(*lead, *entry.shape[len(lead) :])[kept])

    def _add_gradients(self, output: Tensor, generator: torch.Generator) -> None:
        """Run a backward pass, and add g g' to the sums, for the gradients g of layers' outputs.

        What is differentiated is the sum of all outputs of the model, each times a random number.
        On average, this gives the sum of g g' over all single outputs; g' is the transpose.
        """
        if not self._calls:
            return
        probe = torch.randn(output.shape, generator=generator).to(output)
        results = [call[2] for call in self._calls]
        gradients: Sequence[Tensor | None] = torch.autograd.grad(
            output, results, probe, allow_unused=True
        )
        for (name, entry, result, mask), gradient in zip(self._calls, gradients, strict=True):
            if gradient is None:
                continue
            slopes = gradient[_kept(result, mask)].float()
            self.slopes[name] += slopes.T @ slopes
            if name in self.inputs:
                self._add_tokens(name, entry, result, mask)
        self._calls.clear()


def _kept(result: Tensor, mask: Tensor | None) -> Tensor:
    """Booleans, false for padding tokens; all are true if the mask has not one entry per token."""
    lead = result.shape[:-1]
    if mask is not None and mask.shape == lead:
        return mask.bool().to(result.device)
    return torch.ones(lead, dtype=torch.bool, device=result.device)


class _Inputs:
    """Sums over tokens of a layer's inputs x and of outer products x x' (' is the transpose).

    For an embedding, whose inputs are token ids, it counts how often each id occurs.

    The sums are in float64. So the mean can be subtracted later, even if it is much larger than
    the differences between the inputs.
    """

    def __init__(self, module: Any) -> None:
        self.embedding = isinstance(module, nn.Embedding)
        width = module.num_embeddings if self.embedding else matrix_shape(module)[1]
        device = module.weight.device
        self.count = torch.zeros((), dtype=torch.int64, device=device)
        sums: dict[str, Any] = {"device": device, "dtype": torch.float64}
        self.total = torch.zeros(width, **sums)
        self.products = torch.zeros(0 if self.embedding else width, width, **sums)

    def add(self, tokens: Tensor) -> None:
        self.count += len(tokens)
        if self.embedding:
            self.total += torch.bincount(tokens, minlength=len(self.total))
        elif len(tokens):
            total = tokens.double().sum(0)
            mean = total / len(tokens)
            centred = (tokens.double() - mean).float()  # a product in float32 is much faster
            self.total += total
            self.products += centred.T @ centred
            self.products.addr_(total, mean)

    def excitation(self, gradients: Tensor | None, biased: bool) -> LayerMoments:
        mean = self.total / self.count
        if self.embedding:
            return LayerMoments(mean.float(), gradients)
        inputs = self.products / self.count
        if not biased:
            return LayerMoments(inputs.float(), gradients)
        return LayerMoments(covariance(inputs, mean).float(), gradients, mean.float())


def sites(model: nn.Module, names: Iterable[str], batch: Batch) -> Sites:
    """Find on one batch which layers get the same input tensor, in the order of their first call.

    Args:
        model: The model; it is not changed.
        names: Names of layers with a weight matrix.
        batch: Keyword arguments of the model.

    Returns:
        A dict from the first layer of each group to all layers of the group. A layer that was not
        called is a group of its own, at the end.
    """
    numbers, given = TensorNumbers(), defaultdict[str, list[int]](list)

    def heard(name: str, entry: Tensor, _: Tensor) -> None:
        given[name].append(numbers.number(entry))

    with listening(model, names, heard, graph=False):
        run_batch(model, batch, 0)
    groups = defaultdict[tuple[int, ...], list[str]](list)
    for name, tokens in given.items():
        groups[tuple(tokens)].append(name)
    found = {members[0]: members for members in groups.values()}
    unused = {name: [name] for name in names if name not in given}
    return found | unused


def _slopes(model: nn.Module, name: str) -> Tensor:
    """A matrix of zeros, to add up the outer products g g' of a layer's output gradients g."""
    module: Any = model.get_submodule(name)
    embedding = isinstance(module, nn.Embedding)
    size = module.embedding_dim if embedding else matrix_shape(module)[0]
    return torch.zeros(size, size, device=module.weight.device)


@contextmanager
def listening(
    model: nn.Module,
    names: Iterable[str],
    heard: Callable[[str, Tensor, Tensor], None],
    *,
    graph: bool,
) -> Iterator[None]:
    """A context in which each call of a layer passes (name, input, output) to `heard`.

    The model is in evaluation mode, and its parameters are frozen. If `graph` is true, the outputs
    belong to an autograd graph, so a backward pass can go through the activations.
    """

    def hook(name: str) -> Callable[..., Tensor]:
        def call(_: nn.Module, args: Any, kwargs: dict[str, Any], result: Tensor) -> Tensor:
            if graph and not result.requires_grad:  # the first of the layers: the graph starts here
                result = result.requires_grad_().clone()
            entry = args[0] if args else next(iter(kwargs.values()))
            heard(name, entry, result)
            return result

        return call

    with ExitStack() as stack:
        for part in model.modules():
            stack.callback(setattr, part, "training", part.training)
        for parameter in model.parameters():
            stack.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(False)
        for name in names:
            layer = model.get_submodule(name)
            stack.callback(layer.register_forward_hook(hook(name), with_kwargs=True).remove)
        stack.enter_context(torch.set_grad_enabled(graph))
        model.eval()
        yield


def _first_tensor(output: Any) -> Tensor:
    """The logits, or else the first floating-point tensor of what a model returns."""
    if isinstance(output, Tensor):
        return output
    if getattr(output, "logits", None) is not None:
        return output.logits
    values = output.values() if isinstance(output, Mapping) else output
    return next(value for value in values if value.is_floating_point())
