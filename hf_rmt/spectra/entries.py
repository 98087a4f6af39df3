"""Finds what the eigenvalues of a weight do not show: heavy tails, zeros and unequal rows.

A noise law, the distribution of eigenvalues that theory predicts for noise, holds if the entries
are independent and all rows have the same variance. The rows are the N rows of the tall weight,
which is the weight or its transpose. If the entries break these rules, eigenvalues can lie outside
of the range that theory gives for noise, although there is no signal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hf_rmt.spectra.laws.spike_map import Array

SPARSE = 0.5
"""If at least this share of the entries is exactly 0, zeros are named as the cause of spikes, the
eigenvalues above those that theory predicts for noise."""
HEAVY = 6.0
"""If the kurtosis of the entries (see `EntryDiagnostics`) is at least this, heavy tails are named
as the cause of spikes, the eigenvalues above those that theory predicts for noise. The kurtosis of
the Laplace distribution is 6."""
REPEATED = 0.02
"""If a larger share of the N rows than this is zero or repeats an earlier row, a spectrum that
theory predicts for N rows of noise is wrong."""
SAME_ROW = 1e-6
"""Two rows of norm 1 are projected on two random directions, which gives numbers of about 1. The
rows count as equal if both projections differ by at most this."""


@dataclass(frozen=True)
class EntryDiagnostics:
    """Statistics of the entries of a weight. Its rows are those of `tall_matrix`.

    Attributes:
        rows: N, the number of rows.
        kurtosis: Mean of x^4 over the entries x, with every row scaled to mean square 1. This mean
            is 3 for Gaussian entries and larger for heavy tails.
        zeros: Share of entries that are exactly 0.
        row_spread: How much the mean squares of the rows differ: their standard deviation divided
            by their mean. The spread that chance alone causes in rows of p Gaussian entries (a
            variance of 2 / p times the squared mean) is subtracted.
        repeated_rows: How many rows are zero or a multiple of an earlier row.
    """

    rows: int
    kurtosis: float
    zeros: float
    row_spread: float
    repeated_rows: int

    @property
    def repeats(self) -> bool:
        """Whether too many rows, a share above `REPEATED`, are zero or repeat an earlier row.

        If so, the spectrum that theory predicts for noise with this number of rows is wrong.
        """
        return too_many_repeats(self.repeated_rows, self.rows)

    @property
    def cause(self) -> str:
        """The most likely cause of spikes without a signal, as text: `sparse entries (95% zeros)`.

        Spikes are eigenvalues above those that theory predicts for noise.
        """
        if self.repeats:
            return f"{self.repeated_rows} of {self.rows} rows repeat others or are zero"
        if self.zeros >= SPARSE:
            return f"sparse entries ({self.zeros:.0%} zeros)"
        if self.kurtosis >= HEAVY:
            return f"heavy-tailed entries (kurtosis {self.kurtosis:.1f}, a Gaussian has 3)"
        return f"rows of unequal size (their variances spread by {self.row_spread:.0%})"

    @property
    def heavy(self) -> bool:
        """Whether `cause` names heavy tails, and not zeros, unequal rows or repeated rows."""
        return not self.repeats and self.zeros < SPARSE and self.kurtosis >= HEAVY


def entry_diagnostics(weight: ArrayLike) -> EntryDiagnostics:
    """Compute the statistics of a weight's entries that can explain spikes without signal.

    Spikes are eigenvalues above those that theory predicts for noise.

    Args:
        weight: A finite matrix of any orientation that is not all zero.

    Returns:
        The statistics.

    Raises:
        ValueError: If the weight is no matrix, is empty, all zero or not finite.

    Examples:
        >>> noise = np.random.default_rng(0).standard_normal((300, 200))
        >>> found = entry_diagnostics(noise)
        >>> round(found.kurtosis, 1), found.zeros, found.repeated_rows
        (3.0, 0.0, 0)
    """
    tall = tall_matrix(weight)
    peak = float(np.abs(tall).max(initial=0.0))
    if not 0 < peak < np.inf:
        raise ValueError(
            f"the entries must be finite and not all zero, got a largest entry of {peak}; leave "
            "this weight out"
        )
    squares = np.square(tall / peak)
    energies = squares.mean(axis=1, dtype=float)
    live = energies > 0
    fourth = np.square(squares).mean(axis=1, dtype=float)
    ratio = energies / energies.mean()
    excess = max(float(np.var(ratio)) - 2 / tall.shape[1], 0.0)
    return EntryDiagnostics(
        rows=len(tall),
        kurtosis=float(np.mean(fourth[live] / energies[live] ** 2)),
        zeros=float(np.mean(tall == 0)),
        row_spread=float(np.sqrt(excess)),
        repeated_rows=repeated_rows(tall / peak),
    )


def as_array(weight: Any) -> Array:
    """A weight as a NumPy array; a torch tensor of a dtype that NumPy lacks becomes float32."""
    if hasattr(weight, "detach"):
        weight = weight.detach().cpu()
        if "bfloat16" in str(weight.dtype) or "float8" in str(weight.dtype):
            weight = weight.float()
    return np.asarray(weight)


def tall_matrix(weight: ArrayLike) -> Array:
    """The weight as a matrix N x p with N >= p: the weight or its transpose.

    Args:
        weight: A matrix, or a torch tensor on any device, with or without gradients.

    Raises:
        ValueError: If the weight is no matrix or has no entries.
    """
    matrix = as_array(weight)
    if matrix.ndim != 2 or not matrix.size:
        raise ValueError(
            f"a weight must be a matrix with entries, got an array of shape {matrix.shape}; "
            "reshape it, or leave it out"
        )
    return matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T


def repeated_rows(tall: Array) -> int:
    """Number of rows that are zero or a multiple of an earlier row.

    Args:
        tall: A finite matrix whose squares do not overflow, shape (N, p).

    Returns:
        A count in [0, N].
    """
    return len(tall) - int(row_groups(tall).max(initial=-1)) - 1


def row_groups(tall: Array) -> NDArray[np.intp]:
    """A group number for each row; rows that are multiples of each other have the same number.

    Rows are scaled to norm 1 and projected on two random directions. Rows that are multiples of
    each other have the same two projections, up to one sign. The probability that two different
    rows among N have equal projections by chance is about (N * SAME_ROW)^2.

    Args:
        tall: A finite matrix whose squares do not overflow, shape (N, p).

    Returns:
        Group numbers from 0 on, and -1 for a row of zeros, shape (N,).
    """
    norms = np.sqrt(np.einsum("ij,ij->i", tall, tall))
    directions = np.random.default_rng(0).standard_normal((tall.shape[1], 2)).astype(tall.dtype)
    live = np.flatnonzero(norms > 0)
    # A NumPy product would start the threads of its BLAS, which would slow down torch.
    images = [np.einsum("ij,j->i", tall, direction) for direction in directions.T.copy()]
    projections = np.stack(images, axis=1)[live] / norms[live, None]
    projections = projections * np.where(projections[:, :1] < 0, -1, 1)
    order = np.argsort(projections[:, 0], kind="stable")
    steps = np.abs(np.diff(projections[order], axis=0))
    single = np.finfo(np.float32).eps * np.sqrt(tall.shape[1]) if tall.dtype != float else 0.0
    new = np.any(steps > max(SAME_ROW, single), axis=1)
    groups = np.full(len(tall), -1)
    groups[live[order]] = np.concatenate([[0], np.cumsum(new)])[: len(live)]
    return groups


def too_many_repeats(repeated: int, rows: int) -> bool:
    """Whether `repeated`, a number of zero or repeated rows, is more than `REPEATED` allows."""
    return repeated > REPEATED * rows
