"""Which directions of a weight become factors: its spikes, those that pay, part of the noise."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hf_rmt.settings import CompressionSettings
from hf_rmt.spectra import SpectrumFit

FAIR_RETURN = {"int8": 0.0, "int4": 1 / 4, "ternary": 1 / 4}
"""A spike is stored if it saves at least this part of the bits that its factors cost; the first
always is. Errors of the weight alone would ask for a whole return, but inputs excite the strongest
directions more than the others: on the trained BERT and ViT the similarities of embeddings gained
by spikes that return a quarter, and 8-bit noise, whose own error is so small, gained by them all
(`recipes/bench_fidelity.py`)."""
MOST_STORED = 1 / 9
"""Of a weight's directions beside packed noise; where more stand out the tail is heavy, and factors
would cost more than what they return. It keeps the trained BERT at 10.5 bits a weight."""
FACTOR_BITS = 16
"""Of an entry of a factor beside packed noise: it is saved in bfloat16."""


def kept_directions(fit: SpectrumFit, settings: CompressionSettings, name: str) -> Tensor:
    """Positions of the directions that become factors.

    Args:
        fit: The spectrum of the weight.
        settings: What the user asked for.
        name: Runtime name of the layer, which may have a noise_removal of its own.

    Returns:
        Positions in the descending eigenvalues, ascending, shape (rank,).
    """
    signal = torch.from_numpy(fit.is_signal)
    kept = torch.nonzero(signal).flatten()[: settings.max_rank]
    if not settings.stores_all_spikes:
        most = int(MOST_STORED * len(fit.eigenvalues))
        return kept[: min(most, _paying_rank(fit, FAIR_RETURN[settings.noise]))]
    removal = settings.removal(name)
    if settings.noise == "drop" and removal is not None and removal < 1:
        noise = torch.nonzero(~signal).flatten()
        stays = round((1 - removal) * len(noise))
        kept = torch.cat([kept, noise[:stays]]).sort().values[: settings.max_rank]
    return kept


def _paying_rank(fit: SpectrumFit, fair_return: float) -> int:
    """How many leading directions save that part of the bits that their factors cost.

    Taking a fraction f of the energy out of the noise makes its entries (1 - f)^{1/2} as large,
    which at equal error is worth -log2(1 - f) / 2 bits on every weight.
    """
    tiny, (rows, columns) = np.finfo(float).tiny, fit.shape
    rest = np.maximum(np.cumsum(fit.eigenvalues[::-1])[::-1], tiny)
    left_over = np.append(rest[1:], tiny) / rest
    gain = -0.5 * np.log2(np.maximum(left_over, tiny))
    pays = gain > fair_return * FACTOR_BITS * (rows + columns) / (rows * columns)
    return max(1, int(np.argmin(pays)) if not pays.all() else len(pays))
