"""The place of a layer in a model: the kind of the layer, and the block that it belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """Where a layer stands in a model.

    Attributes:
        kind: The part of a name that layers of the same role share, such as `attention.self.query`.
        block: Index of the repeated block that holds the layer; None for a layer outside the
            blocks.
    """

    kind: str
    block: int | None


def places(names: Sequence[str]) -> list[Place]:
    """Find the kind and the block of every layer from its dotted name.

    The first number in a name is the block. The part of the name after this number, without further
    numbers, is the kind. If two stacks of blocks, such as an encoder and a decoder, share a kind,
    the name of the stack is put before the kind.

    Args:
        names: Names of modules.

    Returns:
        The places of the modules, in the same order.

    Examples:
        >>> places(["layers.0.mlp.up", "layers.1.mlp.up", "head"])[1:]
        [Place(kind='mlp.up', block=1), Place(kind='head', block=None)]
        >>> [place.kind for place in places(["encoder.block.0.q", "decoder.block.0.q"])]
        ['encoder.block.q', 'decoder.block.q']
    """
    parts = [_split(name) for name in names]
    stacks: dict[str, set[str]] = {}
    for stack, _, kind in parts:
        stacks.setdefault(kind, set()).add(stack)
    return [
        Place(
            kind if len(stacks[kind]) == 1 and kind else f"{stack}.{kind}".strip(".") or "layer",
            block,
        )
        for stack, block, kind in parts
    ]


def short_names(names: Sequence[str], *, longest: int = 30) -> list[str]:
    """Names without their common beginning, cut at the front if they are still too long.

    Args:
        names: Names of modules.
        longest: The most characters that a short name may have.

    Returns:
        Short names, in the same order.

    Examples:
        >>> short_names(["bert.layer.0.key", "bert.layer.1.key"])
        ['0.key', '1.key']
    """
    split = [name.split(".") for name in names]
    shared = 0
    while split and all(len(p) > shared + 1 and p[shared] == split[0][shared] for p in split):
        shared += 1
    shared = 0 if len(split) == 1 else shared
    tails = [".".join(parts[shared:]) for parts in split]
    return [tail if len(tail) <= longest else "…" + tail[1 - longest :] for tail in tails]


def _split(name: str) -> tuple[str, int | None, str]:
    """Split the name of a layer at its first number: the text before, the number, the text after.

    `h.3.mlp.up` becomes ("h", 3, "mlp.up"). Later numbers are left out. A name without a number
    gives ("", None, name).
    """
    parts = name.split(".")
    at = next((k for k, part in enumerate(parts) if part.isdecimal()), None)
    if at is None:
        return "", None, name
    rest = [part for part in parts[at + 1 :] if not part.isdecimal()]
    return ".".join(parts[:at]), int(parts[at]), ".".join(rest)
