"""Checks after the fit whether the entries of a weight explain its spikes (signal eigenvalues).

The energy of a row is the sum of its squared entries. A spike is explained if pure noise whose rows
have the same energies would have this spike too. A spike from heavy-tailed or sparse entries lies
on few rows. A spike from unequal rows lies on the large rows. A signal is spread over all rows. So
each spike is tested. The energy that the spike adds to each row is added to the energy of the
noise. Noise with these row energies has an edge, the largest eigenvalue that theory predicts, and a
spike below this edge is explained. The test changes only the verdict and not the signal, because it
is always safe to keep a singular value as signal.

The theory assumes N different rows. Rows that are zero or repeat another row break this assumption.
A rotation of the rows can move the energy of repeated rows into one of them and make the others
zero. The rotation does not change the eigenvalues. So the edge is computed from the row energies
after this rotation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hf_rmt.spectra.eigenvalues import RANGE
from hf_rmt.spectra.entries import (
    EntryDiagnostics,
    entry_diagnostics,
    row_groups,
    tall_matrix,
    too_many_repeats,
)
from hf_rmt.spectra.fits.double_bulk import fit_double_bulk
from hf_rmt.spectra.laws.law import BulkLaw
from hf_rmt.spectra.laws.spike_map import Array
from hf_rmt.spectra.row_profile import profile_edges
from hf_rmt.spectra.split import Phase, SpectrumFit, without_law

TOLERANCE = 1.1
"""A spike (signal eigenvalue) counts as explained if it is at most this many times the edge, the
largest eigenvalue that theory predicts, of noise with the same sum of squares in each row. The
factor is more than 1 because the largest eigenvalue fluctuates."""
LOCALISED = 4.0
"""A unit vector u of N coordinates counts as `localised` (concentrated on few of them) if N sum u^4
is more than this many standard deviations above 3. A Gaussian vector has the value 3."""
MIXED = 0.3
"""If the logarithms of two eigenvalues differ by less than this, the eigenvectors may be mixtures
of each other."""
EXPLAINED_SHARE = 0.5
EXPLAINED_STRENGTH = 0.85
"""The verdict changes if two conditions hold. The entries explain more than EXPLAINED_SHARE of the
spikes (signal eigenvalues). They also explain at least EXPLAINED_STRENGTH of the sum of all spikes'
heights above the edge (the largest noise eigenvalue). In noise with unusual entries, the entries
explain nearly all of this sum. In a trained BERT and a ViT they explain 0 to 84 % of this sum,
except in one of 108 layers."""

WEIGHTS = (RANGE[0] ** 0.5, RANGE[1] ** 0.5)

Mask = NDArray[np.bool_]
Vectors = Callable[[], ArrayLike]


def fit_weight(weight: ArrayLike, fit: Callable[..., SpectrumFit] = fit_double_bulk) -> SpectrumFit:
    """Fit a law to the spectrum of a weight, and check whether the entries explain the spikes.

    The spectrum is the eigenvalues (squared singular values). A law is the predicted distribution
    of noise eigenvalues. The others are spikes, and `explained_spikes` says what explains them.

    Args:
        weight: A matrix, tall or wide.
        fit: The method, such as `fit_double_bulk`; it gets the eigenvalues and the shape.

    Returns:
        The fit. Its `phase` is the verdict, after the check of the entries by `review`.

    Raises:
        ValueError: If the weight is no matrix or has no entries.

    Examples:
        >>> noise = np.random.default_rng(0).standard_t(3, size=(400, 200))
        >>> str(fit_weight(noise).phase)
        'heavy-tailed'
    """
    tall = np.asarray(tall_matrix(weight), dtype=float)
    if not np.isfinite(tall).all():
        return fit(np.full(tall.shape[1], np.nan), tall.shape)
    _, singular, basis = np.linalg.svd(tall, full_matrices=False)
    if singular[0] > 0 and not WEIGHTS[0] <= singular[0] <= WEIGHTS[1]:
        reason = (
            f"the square of the largest singular value {singular[0]:.3g} lies outside of the range "
            "where float64 is precise; scale the weight"
        )
        return without_law(tall.shape, np.full(tall.shape[1], np.nan), reason)
    result = fit(singular**2, tall.shape)
    return review(result, tall, lambda: basis[result.is_signal].T)


def review(fit: SpectrumFit, weight: ArrayLike, vectors: Vectors) -> SpectrumFit:
    """Change the verdict of a fit if the entries explain its spikes (see `explained_spikes`).

    Args:
        fit: The fit of the weight's spectrum. Its verdict is `SpectrumFit.phase`.
        weight: The weight, finite. A wide weight is transposed, so that it becomes tall.
        vectors: A function without arguments. It returns the right singular vectors of the tall
            weight for the K signal eigenvalues, as columns, the largest eigenvalue first, shape
            (p, K). It is called only if the sums of squares of the rows alone do not decide.

    Returns:
        The fit itself if its verdict stays. If the verdict changes, a copy with the same signal, a
        reason and another phase: `uneven entries` if zeros, unequal or repeated rows are the cause,
        and `heavy-tailed` if heavy tails are.
    """
    if fit.phase != Phase.SPIKED or fit.noise_law is None:
        return fit
    sides = [_Side.of(rows) for rows in _sides(_in_noise_units(fit, weight))]
    law, signal = fit.noise_law, fit.eigenvalues[fit.is_signal]
    explained = np.any([_possible(fit, law, side, signal) for side in sides], axis=0)
    if _telling(fit, explained):
        explained = explained_spikes(fit, weight, vectors())
    return _changed(fit, weight, explained) if _telling(fit, explained) else fit


def explained_spikes(fit: SpectrumFit, weight: ArrayLike, vectors: ArrayLike) -> Mask:
    """Which spikes (signal eigenvalues) would also appear in pure noise with the same row energies.

    The energy of a row is its sum of squares. A spike is explained if it lies on few rows (see
    `localised`) and below the edge, the largest eigenvalue that theory predicts for this noise. A
    square weight is tested twice, by its rows and by its columns, and both tests must explain the
    spike. There is one exception: if too many rows (or columns) are zero or repeated, their test
    alone is enough, and in this test the spike may lie on many of them.

    Args:
        fit: A fit with a law (a predicted distribution of noise eigenvalues).
        weight: The weight; a wide one is transposed, so that it becomes tall.
        vectors: The right singular vectors of the tall weight for the K signal eigenvalues, in
            columns, shape (p, K).

    Returns:
        True for each spike that is explained, shape (K,).

    Raises:
        ValueError: If the fit has no law.
    """
    law = fit.noise_law
    if law is None:
        raise ValueError(
            f"the fit must have a law, got one without a law and with the phase {fit.phase}; pass "
            "a fit with a law"
        )
    tall = _in_noise_units(fit, weight)
    short_side = np.asarray(vectors, dtype=tall.dtype)
    images = [np.square(tall @ short_side, dtype=float)]  # lambda u^2, N x K
    images.append(np.square(short_side, dtype=float) * images[0].sum(0))
    sides = [_Side.of(rows) for rows in _sides(tall)]
    found = [_below(fit, law, side, image) for side, image in zip(sides, images, strict=False)]
    enough = [each for each, side in zip(found, sides, strict=True) if side.repeats]
    return np.asarray(np.logical_or.reduce([np.all(found, axis=0), *enough]))


def localised(squares: ArrayLike) -> Mask:
    """Which vectors are concentrated on few coordinates, judged by N sum u^4 / (sum u^2)^2.

    For a Gaussian vector u of N coordinates, this ratio is 3, with a standard deviation of sqrt(24
    / N).

    Args:
        squares: Squared coordinates, one vector in each column, shape (N, K). A vector may have any
            scale except 0.

    Returns:
        True for each vector that is concentrated, shape (K,).

    Examples:
        >>> vector = np.random.default_rng(0).standard_normal(500)
        >>> localised(np.stack([vector, vector * (vector > 1.5)], axis=1) ** 2)
        array([False,  True])
    """
    energy = np.asarray(squares, dtype=float)
    participation = len(energy) * np.square(energy).sum(0) / np.square(energy.sum(0))
    return np.asarray(participation > 3 + LOCALISED * np.sqrt(24 / len(energy)))


@dataclass(frozen=True)
class _Side:
    """Energies of a weight's rows or columns, after the rotation in the module's docstring.

    Attributes:
        groups: The number of the group of each row, see `row_groups`, shape (N,).
        energies: Sum of squared entries of each row after the rotation, shape (N,).
        repeats: Whether so many rows repeat that a prediction for N different rows is wrong.
    """

    groups: NDArray[np.intp]
    energies: Array
    repeats: bool

    @classmethod
    def of(cls, rows: Array) -> _Side:
        """Make a `_Side` from the rows of a matrix, shape (N, p), scaled by `_in_noise_units`."""
        groups = row_groups(rows)
        repeated = len(rows) - int(groups.max(initial=-1)) - 1
        energies = np.einsum("ij,ij->i", rows, rows).astype(float)
        return cls(groups, _rotated(energies, groups), too_many_repeats(repeated, len(rows)))


def _rotated(energies: Array, groups: NDArray[np.intp]) -> Array:
    """The sum of each group, as many as energies: [3, 1, 5] in groups [0, 1, 0] give [8, 1, 0]."""
    result = np.zeros_like(energies)
    np.add.at(result, groups, energies)  # rows of zeros, group -1, add nothing to the last one
    return result


def _sides(tall: Array) -> list[Array]:
    """The matrices whose rows `review` tests: the tall weight and, if square, its transpose."""
    return [tall, tall.T] if tall.shape[0] == tall.shape[1] else [tall]


def _possible(fit: SpectrumFit, law: BulkLaw, side: _Side, signal: Array) -> Mask:
    """True for each signal eigenvalue that `explained_spikes` could call explained.

    This quick test needs no eigenvectors. Its edge is the largest eigenvalue that theory predicts
    for noise whose rows have the sums of squares of the whole weight, noise and signal. No edge in
    `explained_spikes` is larger. So an eigenvalue above this edge cannot be explained.
    """
    edge = TOLERANCE * profile_edges(law, side.energies[None])[0] * _finite_size(fit, law)
    return np.asarray(signal <= edge)


def _telling(fit: SpectrumFit, explained: Mask) -> bool:
    """Whether enough spikes are explained (see `explained_spikes`) to change the verdict."""
    edge = 0.0 if fit.noise_law is None else fit.noise_law.upper_edge
    excess = np.maximum(fit.eigenvalues[fit.is_signal] - edge, 0.0)
    enough = excess[explained].sum() >= EXPLAINED_STRENGTH * excess.sum()
    return bool(enough and explained.sum() > EXPLAINED_SHARE * len(explained))


def _below(fit: SpectrumFit, law: BulkLaw, side: _Side, images: Array) -> Mask:
    """Which spikes (signal eigenvalues) the row energies explain: those below an edge.

    The energy of a row is its sum of squares. `images` holds the energy that each spike adds to
    each row; the rest is noise. The edge of a spike is the largest eigenvalue that theory predicts
    for noise with the rest plus the energy of this spike, and of spikes of nearly equal size, whose
    eigenvectors may be mixed. Spikes on many rows (see `localised`) are not explained, unless too
    many rows repeat. Their edge is then computed from the rest alone.
    """
    images = _rotated(images, side.groups)
    few = localised(images)
    strength = images.sum(0)
    ratio = strength[:, None] / strength
    near = few[:, None] & few & (np.abs(np.log(ratio)) < MIXED)
    residual = _even(np.maximum(side.energies - images.sum(1), 0.0), law, fit.shape[1])
    edges = profile_edges(law, residual + near @ images.T)
    below = fit.eigenvalues[fit.is_signal] <= TOLERANCE * _finite_size(fit, law) * edges
    return below if side.repeats else few & below


def _even(residual: Array, law: BulkLaw, columns: int) -> Array:
    """Row energies (sums of squares), moved towards their mean to remove differences due to chance.

    `law` gives the variances tau of the p entries in a row of noise. Chance alone makes the
    energies differ by a variance of 2 E[tau^2] / (p E[tau]^2) times their squared mean, where E is
    the mean over tau. This part of the variance is removed.
    """
    mean = residual.mean()
    variance = float(np.var(residual)) / max(mean**2, np.finfo(float).tiny)
    tau = law.atoms / law.atoms[-1]
    first, second = float(law.weights @ tau), float(law.weights @ tau**2)
    chance = 2 * second / (columns * first**2)
    kept = np.sqrt(max(1 - chance / variance, 0.0)) if variance > 0 else 0.0
    return mean + kept * (residual - mean)


def _in_noise_units(fit: SpectrumFit, weight: ArrayLike) -> Array:
    """The weight, made tall and scaled: the noise in a row has the sum of squares 1 on average."""
    tall = tall_matrix(weight)
    unit = np.sqrt(fit.noise.mean() * (len(fit.noise) / len(tall)))
    return tall / tall.dtype.type(unit)


def _finite_size(fit: SpectrumFit, law: BulkLaw) -> float:
    """How much chance may raise the largest noise eigenvalue: a factor on the theoretical value."""
    return max(fit.upper_edge / law.upper_edge, 1.0)


def _changed(fit: SpectrumFit, weight: ArrayLike, explained: Mask) -> SpectrumFit:
    entries = _unusual(tall_matrix(weight))
    count = f"{explained.sum()} of {fit.n_spikes} spikes are"
    spikes = "the spike is" if fit.n_spikes == 1 else count
    reason = f"{spikes} explained by the entries: {entries.cause}"
    phase = Phase.HEAVY_TAILED if entries.heavy else Phase.UNEVEN
    return replace(fit, phase=phase, reason=reason)


def _unusual(tall: Array) -> EntryDiagnostics:
    """The `EntryDiagnostics` of a weight that has at least as many rows as columns.

    For a square weight, the statistics of the transpose are returned if they are more unusual.
    """
    found = [entry_diagnostics(side) for side in _sides(tall)]
    return max(found, key=lambda each: (each.repeats, each.heavy, each.row_spread))
