"""Chooses the directions of a weight that are stored as low-rank factors.

A direction is a singular value with its two singular vectors. A spike is a direction of signal.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from hf_rmt.compression.methods.spectral import spectral_method_of
from hf_rmt.settings import PACKED_KINDS, CompressionSettings
from hf_rmt.spectra import SpectrumFit

FAIR_RETURN, ALL_PAY = 1 / 4, ("int8",)
"""A spike (a direction of signal) can be stored as factors, so that the rest of the weight needs
fewer bits. This is done if it saves at least the part FAIR_RETURN of the bits that its factors
cost, and always for the largest spike. If only the error of the weight counted, the part would
have to be 1. But inputs are larger in the strongest directions than in other directions. On the
trained BERT and ViT, the similarities between embeddings stayed closer to the original with spikes
that save a quarter of their bits. The kinds of noise in ALL_PAY have a small error. With them, all
spikes helped (`recipes/bench_fidelity.py`)."""
MOST_STORED = 1 / 9
"""At most this share of a weight's directions (singular values with their vectors) is stored as
factors, if the noise is rounded to few bits. If more directions stand out, more factors would cost
more bits than they save. With this limit the trained BERT takes 10.5 bits a weight."""
FACTOR_BITS = 16
"""Bits of an entry of a factor: beside noise in few bits, factors are saved in bfloat16."""


def kept_directions(fit: SpectrumFit, settings: CompressionSettings, name: str) -> Tensor:
    """Positions of the directions of a weight that are stored as low-rank factors.

    A direction is a singular value with its two singular vectors.

    Args:
        fit: The squared singular values (eigenvalues) of the weight, split into signal and noise.
        settings: The method and its options.
        name: Name of the layer, for which `noise_removal` may hold a value of its own.

    Returns:
        Positions in the list of descending eigenvalues, in ascending order, shape (rank,).
    """
    signal = torch.from_numpy(fit.is_signal)
    kept = torch.nonzero(signal).flatten()[: settings.max_rank]
    if not stores_all_spikes(settings):
        most = int(MOST_STORED * len(fit.eigenvalues))
        fair = 0.0 if settings.noise in ALL_PAY else FAIR_RETURN
        return kept[: min(most, _paying_rank(fit, fair))]
    share = removal(settings, name)
    if settings.noise == "drop" and share is not None and share < 1:
        noise = torch.nonzero(~signal).flatten()
        stays = round((1 - share) * len(noise))
        kept = torch.cat([kept, noise[:stays]]).sort().values[: settings.max_rank]
    return kept


def removal(settings: CompressionSettings, name: str) -> float | None:
    """Which share of a layer's noise singular values to remove; None if the layer stays dense."""
    removed = settings.noise_removal
    return removed.get(name) if isinstance(removed, Mapping) else removed


def layers_named(settings: CompressionSettings) -> set[str]:
    """The layers that `noise_removal` names; an empty set if it is one number for all layers."""
    removed = settings.noise_removal
    return set(removed) if isinstance(removed, Mapping) else set()


def stores_all_spikes(settings: CompressionSettings) -> bool:
    """Whether every spike (a singular value of signal with its vectors) is stored as factors.

    The option `stored_spikes` decides. With "all" the answer is yes, with "paying" it is no. With
    None it is no only if the noise is rounded to few bits and the method itself finds how much is
    signal; `svd`, for example, does not.
    """
    if settings.stored_spikes is None:
        return settings.noise not in PACKED_KINDS or not spectral_method_of(settings).finds_law
    return bool(settings.stored_spikes == "all")


def recovers_spikes(settings: CompressionSettings) -> bool:
    """Whether singular values of the signal are reduced to what they would be without noise."""
    if not spectral_method_of(settings).finds_law:
        return False
    return bool(
        settings.noise == "drop" if settings.recover_spikes is None else settings.recover_spikes
    )


def _paying_rank(fit: SpectrumFit, fair_return: float) -> int:
    """How many leading directions save enough bits to be stored as low-rank factors; at least 1.

    A direction is a singular value with its two singular vectors. It must save at least the part
    `fair_return` of the bits that its factors cost. If a direction with a fraction f of the noise's
    energy (squared norm) is taken out of the noise, the entries of the noise become (1 - f)^{1/2}
    times as large. At equal error this saves -log2(1 - f) / 2 bits for every entry.
    """
    tiny, (rows, columns) = np.finfo(float).tiny, fit.shape
    rest = np.maximum(np.cumsum(fit.eigenvalues[::-1])[::-1], tiny)
    left_over = np.append(rest[1:], tiny) / rest
    gain = -0.5 * np.log2(np.maximum(left_over, tiny))
    pays = gain > fair_return * FACTOR_BITS * (rows + columns) / (rows * columns)
    return max(1, int(np.argmin(pays)) if not pays.all() else len(pays))
