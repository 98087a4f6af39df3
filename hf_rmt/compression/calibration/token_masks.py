"""Which tokens are padding, in a model whose parts may read different tokens."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from torch import Tensor, nn

INPUTS = ("input_ids", "inputs_embeds", "pixel_values", "input_features", "input_values")
"""Arguments with which a module begins to read a text, an image or a sound."""
MASK, DECODER_MASK = "attention_mask", "decoder_attention_mask"


class TokenMasks:
    """The attention mask of the tokens that a layer works on.

    An encoder, a decoder and an image encoder in one model have different tokens. Each of them is a
    module that is called with one of `INPUTS`, together with the mask of its tokens if there is
    one. A mask that is not a matrix was computed from the matrix of a module around this one, which
    stays valid. Layers behind an encoder and a decoder work on the tokens of the decoder.

    Args:
        model: The model; it only gets hooks, from `listen` to `stop`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._running: list[Tensor | None] = []
        self._last: dict[str, Tensor | None] = {}
        self._hooks: list[Any] = []

    def listen(self) -> None:
        """Follow the calls of the model, until `stop` is called."""
        for module in self.model.modules():
            if module is self.model or set(INPUTS).intersection(_parameters(type(module).forward)):
                begins = module.register_forward_pre_hook(self._begins, with_kwargs=True)
                self._hooks += [begins, module.register_forward_hook(self._ends, always_call=True)]

    def stop(self) -> None:
        """Remove the hooks, and forget all masks."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._running, self._last = [], [], {}

    @contextmanager
    def followed(self) -> Iterator[None]:
        """A context between `listen` and `stop`."""
        self.listen()
        try:
            yield
        finally:
            self.stop()

    def of(self, name: str) -> Tensor | None:
        """The mask for a layer that is called now, shape (batch, tokens); None if there is none.

        A layer that gradient checkpointing calls again, after the model has returned, gets the mask
        of its earlier call.
        """
        if self._running:
            self._last[name] = self._running[-1]
        return self._last.get(name)

    def _begins(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        given = _arguments(module, args, kwargs)
        around = self._running[-1] if self._running else None
        reads = module is self.model or any(given.get(name) is not None for name in INPUTS)
        decodes = DECODER_MASK in _parameters(type(module).forward)
        mask = given.get(DECODER_MASK if decodes else MASK) if reads else around
        if isinstance(mask, Tensor) and mask.ndim != 2:
            mask = around
        self._running.append(mask)

    def _ends(self, *_: Any) -> None:
        self._running.pop()


@cache
def _parameters(forward: Callable[..., Any]) -> tuple[str, ...]:
    """The names of the parameters of a module's forward, without self."""
    return tuple(inspect.signature(forward).parameters)[1:]


def _arguments(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by the names of the parameters of forward."""
    return {**dict(zip(_parameters(type(module).forward), args, strict=False)), **kwargs}
