"""Refuses to resize or tie (share) the embeddings of a model whose output embedding is compressed.

The output embedding is the head that turns hidden states into scores for tokens.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from hf_rmt.nn.counterparts import compressed_layers
from hf_rmt.nn.layers.compressed_layer import is_compressed


def guard_embeddings(model: Any) -> None:
    """Make a model raise an error if compressed embeddings are to be resized or tied (shared)."""
    model.resize_token_embeddings = partial(_resize_token_embeddings, model)
    model.tie_weights = partial(_tie_weights, model)


def _resize_token_embeddings(
    model: Any,
    new_num_tokens: int | None = None,
    pad_to_multiple_of: int | None = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Resize as transformers does, but refuse if the layer that scores tokens is compressed.

    transformers would resize this output layer too. A resize to the present size is allowed.
    """
    if is_compressed(head := model.get_output_embeddings()):
        embeddings = model.get_input_embeddings()
        if pad_to_multiple_of is None and new_num_tokens in (None, len(embeddings.weight)):
            return embeddings
        name = next(name for name, part in model.named_modules() if part is head)
        raise _cannot_change(name, "resized")
    resize = type(model).resize_token_embeddings
    return resize(model, new_num_tokens, pad_to_multiple_of, *args, **kwargs)


def _tie_weights(model: Any, *args: Any, **kwargs: Any) -> Any:
    """Tie (share) weights as transformers does; refuse if a layer to be tied is compressed."""
    tied = model.get_expanded_tied_weights_keys(all_submodels=True)
    layers = {key.rpartition(".")[0] for pair in tied.items() for key in pair}
    for name in sorted(layers.intersection(compressed_layers(model))):
        raise _cannot_change(name, "tied to other embeddings")
    return type(model).tie_weights(model, *args, **kwargs)


def _cannot_change(name: str, change: str) -> ValueError:
    return ValueError(
        f"{name!r} is compressed, and a compressed layer cannot be {change}; make it dense first: "
        f"model.set_submodule({name!r}, model.{name}.to_dense())"
    )
