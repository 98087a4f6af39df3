"""The population double bulk (PDB) law: the predicted spectrum of noise that has two variances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from hf_rmt.spectra.laws.law import BulkLaw, check_positive, check_unit
from hf_rmt.spectra.laws.spike_map import Array


@dataclass(frozen=True)
class DoubleBulk(BulkLaw):
    """Law of the eigenvalues of X'X when a fraction t of the columns of X has variance sigma_1^2.

    A law is the distribution that theory predicts. The other columns have variance sigma_2^2. X is
    the tall matrix of noise, with N rows and p columns; X' is the transpose. The variance of
    an entry of X is that of its column, divided by N. The eigenvalues fill one or two intervals. An
    eigenvalue in the gap between two intervals is not noise.

    Args:
        mixing: t, the fraction of the columns with variance sigma_1^2, in [0, 1].
        variances: (sigma_1^2, sigma_2^2) with sigma_1^2 >= sigma_2^2 > 0.
        aspect_ratio: c = p / N in (0, 1], the columns divided by the rows.

    Raises:
        ValueError: If an argument lies outside its range.

    Source:
        Wu, Zhu & Li, ICML 2025, section 3; Silverstein & Bai, J. Multivar. Anal. 54 (1995).

    Examples:
        >>> law = DoubleBulk(mixing=0.5, variances=(8.0, 1.0), aspect_ratio=0.05)
        >>> len(law.bulk_edges)
        2
        >>> DoubleBulk(mixing=0.3, variances=(2.0, 2.0), aspect_ratio=0.25).upper_edge
        4.5
    """

    mixing: float
    variances: tuple[float, float]
    aspect_ratio: float

    def __post_init__(self) -> None:
        check_unit(
            "mixing",
            self.mixing,
            zero=True,
            remedy="pass the share of the noise that has variance sigma_1^2",
        )
        for variance in self.variances:
            check_positive("variances", variance)
        if self.variances[0] < self.variances[1]:
            raise ValueError(
                f"variances must be (sigma_1^2, sigma_2^2) in descending order, got "
                f"{self.variances}; swap them and use mixing {1 - self.mixing:g}"
            )
        check_unit("aspect_ratio", self.aspect_ratio, remedy="pass the transpose")

    @property
    def atoms(self) -> Array:
        """Distinct noise variances, ascending: one if both are equal or one has the fraction 0."""
        return self._population[0]

    @property
    def weights(self) -> Array:
        """The fractions of the columns of the noise matrix that have the variances `atoms`."""
        return self._population[1]

    def rescaled(self, factor: float, *, aspect_ratio: float | None = None) -> Self:
        """A copy with both noise variances times a factor and, if given, a new `aspect_ratio`."""
        first, second = self.variances
        ratio = self.aspect_ratio if aspect_ratio is None else aspect_ratio
        return type(self)(self.mixing, (first * factor, second * factor), ratio)

    @property
    def _population(self) -> tuple[Array, Array]:
        """The distinct noise variances, ascending, and the fraction of the noise that has each."""
        upper, lower = self.variances
        if upper == lower or self.mixing in (0.0, 1.0):
            return np.array([float(upper if self.mixing == 1.0 else lower)]), np.ones(1)
        return np.array([lower, upper], float), np.array([1 - self.mixing, self.mixing])
