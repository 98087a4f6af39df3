"""The Marchenko-Pastur law: the spectrum that theory predicts for noise of one variance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from hf_rmt.spectra.laws.law import BulkLaw, check_positive, check_unit
from hf_rmt.spectra.laws.spike_map import Array


@dataclass(frozen=True)
class MarchenkoPastur(BulkLaw):
    """Law of the eigenvalues of X'X, where X is noise of one variance.

    A law is the distribution that theory predicts. X has the shape N x p, X' is the transpose, and
    the entries of X are independent, of mean 0 and variance sigma^2 / N.

    Args:
        variance: sigma^2 > 0, N times the variance of an entry.
        aspect_ratio: c = p / N in (0, 1].

    Raises:
        ValueError: If an argument lies outside its range.

    Source:
        Marchenko & Pastur, Math. USSR-Sbornik 1 (1967).

    Examples:
        >>> law = MarchenkoPastur(variance=1.0, aspect_ratio=0.25)
        >>> law.bulk_edges
        array([[0.25, 2.25]])
        >>> law.moment(2)
        1.25
    """

    variance: float
    aspect_ratio: float

    def __post_init__(self) -> None:
        check_positive("variance", self.variance)
        check_unit("aspect_ratio", self.aspect_ratio, remedy="pass the transpose")

    @property
    def atoms(self) -> Array:
        """The only variance of the noise, sigma^2, shape (1,)."""
        return np.array([float(self.variance)])

    @property
    def weights(self) -> Array:
        """Shares of the noise columns with each variance in `atoms`: [1.0], as there is one."""
        return np.ones(1)

    def rescaled(self, factor: float, *, aspect_ratio: float | None = None) -> Self:
        """A copy with the noise variance times `factor` and, if given, a new `aspect_ratio`."""
        ratio = self.aspect_ratio if aspect_ratio is None else aspect_ratio
        return type(self)(self.variance * factor, ratio)
