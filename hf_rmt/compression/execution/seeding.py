"""Random numbers of one layer: the same on every process, and different for each layer."""

from __future__ import annotations

from zlib import crc32

import numpy as np


def layer_generator(seed: int, name: str) -> np.random.Generator:
    """The generator of a layer.

    Args:
        seed: As in `CompressionSettings`.
        name: Runtime name of the layer.

    Examples:
        >>> first, again = (layer_generator(0, "a").integers(1000) for _ in range(2))
        >>> bool(first == again), bool(first == layer_generator(0, "b").integers(1000))
        (True, False)
    """
    return np.random.default_rng([seed, crc32(name.encode())])
