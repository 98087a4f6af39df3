"""Random numbers of one layer: the same on every process, and different for each layer."""

from __future__ import annotations

from zlib import crc32

import numpy as np


def layer_generator(seed: int, name: str) -> np.random.Generator:
    """The random generator of a layer, which depends only on the seed and the layer's name.

    Args:
        seed: The option `seed`, as in `CompressionSettings`.
        name: Name of the layer in `model.named_modules()`.

    Examples:
        >>> first, again = (layer_generator(0, "a").integers(1000) for _ in range(2))
        >>> bool(first == again), bool(first == layer_generator(0, "b").integers(1000))
        (True, False)
    """
    return np.random.default_rng([seed, crc32(name.encode())])
