"""Finds which tokens are padding, in a model whose parts may read different tokens."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

from torch import Tensor, nn

INPUTS = ("input_ids", "inputs_embeds", "pixel_values", "input_features", "input_values")
"""Names of the arguments by which a module gets a text, an image or a sound."""
MASK, DECODER_MASK, LABELS = "attention_mask", "decoder_attention_mask", "labels"
STATES, STATES_MASK = "encoder_hidden_states", "encoder_attention_mask"
"""Names of the arguments by which a decoder gets the encoder's outputs, and the mask of its
tokens."""
IGNORED = -100
"""The label of a token that does not count in the loss, such as padding."""


class Tokens(NamedTuple):
    """What is known of the tokens that a running module works on.

    Attributes:
        mask: The attention mask of the tokens, shape (batch, tokens); None if there is none.
        of_decoder: Whether the tokens are those of a decoder.
        states: The output of the encoder, which a decoder reads, shape (batch, encoder tokens,
            width).
        states_mask: The mask of the encoder's tokens, shape (batch, encoder tokens).
    """

    mask: Tensor | None = None
    of_decoder: bool = False
    states: Tensor | None = None
    states_mask: Tensor | None = None

    def mask_of(self, entry: Tensor | None) -> Tensor | None:
        """The attention mask that belongs to the input `entry` of a layer.

        In a cross attention, the input may be the output of the encoder. Then the mask of the
        encoder is returned.
        """
        if entry is None or self.states is None or entry.shape != self.states.shape:
            return self.mask
        return self.states_mask if entry.data_ptr() == self.states.data_ptr() else self.mask


class TokenMasks:
    """Finds the attention mask of the tokens that a layer works on.

    An encoder, a decoder and an image encoder in one model have different tokens. Each of them is a
    module that is called with one of the arguments `INPUTS`, such as `input_ids`, and with the mask
    of its tokens if there is one. If the mask is not a matrix, it was computed from the mask of an
    outer module, and the outer mask is used. Layers that come after encoder and decoder work on the
    tokens of the decoder. A decoder often has no mask, because no token sees the padding after it.
    Then the labels show which tokens are padding.

    Args:
        model: The model. It has hooks between `listen` and `stop`, and is not changed otherwise.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._running: list[Tokens] = []
        self._last: dict[str, Tensor | None] = {}
        self._hooks: list[Any] = []

    def listen(self) -> None:
        """Add hooks to the model that find the masks in each call, until `stop` is called."""
        for module in self.model.modules():
            if module is self.model or set(INPUTS).intersection(_parameters(type(module).forward)):
                begins = module.register_forward_pre_hook(self._begins, with_kwargs=True)
                self._hooks += [begins, module.register_forward_hook(self._ends, always_call=True)]

    def stop(self) -> None:
        """Remove the hooks that `listen` added to the model, and forget all masks."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._running, self._last = [], [], {}

    @contextmanager
    def followed(self) -> Iterator[None]:
        """A context that calls `listen` when it begins and `stop` when it ends."""
        self.listen()
        try:
            yield
        finally:
            self.stop()

    def of(self, name: str, entry: Tensor | None = None) -> Tensor | None:
        """The attention mask of the tokens that a layer gets, in the call that runs now.

        A layer that gradient checkpointing calls again, after the model has returned, gets the mask
        of its earlier call.

        Args:
            name: Name of the layer in `model.named_modules()`.
            entry: The input of the layer, shape (batch, tokens, width).

        Returns:
            The mask, shape (batch, tokens); None if there is no mask.
        """
        if self._running:
            self._last[name] = self._running[-1].mask_of(entry)
        return self._last.get(name)

    def _begins(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        given = _arguments(module, args, kwargs)
        around = self._running[-1] if self._running else Tokens()
        reads = module is self.model or any(given.get(name) is not None for name in INPUTS)
        self._running.append(_tokens(module, given, around) if reads else around)

    def _ends(self, *_: Any) -> None:
        self._running.pop()


def _tokens(module: nn.Module, given: dict[str, Any], around: Tokens) -> Tokens:
    """What is known of the tokens that a called module works on, such as their attention mask.

    All of it comes from the arguments `given` in the call. If they have no usable mask, the mask
    may come from the labels, or from `around`, the tokens of the module that makes the call.
    """
    states = given.get(STATES)
    has_encoder = DECODER_MASK in _parameters(type(module).forward)
    decodes = has_encoder or states is not None
    mask = given.get(DECODER_MASK if has_encoder else MASK)
    if mask is None and has_encoder:
        mask = _before_padding(given.get(LABELS))
    if mask is None and decodes and around.of_decoder:
        mask = around.mask
    if isinstance(mask, Tensor) and mask.ndim != 2:
        mask = around.mask
    return Tokens(mask, decodes, states, given.get(STATES_MASK))


def _before_padding(labels: Any) -> Tensor | None:
    """A mask that is true up to the last label of each row; None without a matrix of labels.

    The labels [5, -100, 7, -100] give [true, true, true, false], as -100 means that there is no
    label.
    """
    if not isinstance(labels, Tensor) or labels.ndim != 2 or labels.is_floating_point():
        return None
    return (labels != IGNORED).flip(1).cumsum(1).flip(1) > 0


@cache
def _parameters(forward: Callable[..., Any]) -> tuple[str, ...]:
    """The names of the arguments in the signature of a module's `forward`, without `self`."""
    return tuple(inspect.signature(forward).parameters)[1:]


def _arguments(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call of a module, by their names in the signature of `forward`."""
    return {**dict(zip(_parameters(type(module).forward), args, strict=False)), **kwargs}
