"""Integrates a density of noise eigenvalues over one interval, and inverts the integral."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.integrate import cumulative_simpson
from scipy.interpolate import CubicHermiteSpline

from hf_rmt.spectra.laws.spike_map import Array

NODES = 513
"""Number of quadrature nodes on an interval; the integral of a density is then 1 within about
1e-9."""
BISECTIONS = 60


@dataclass(frozen=True)
class Interval:
    """Stores which fraction of the noise eigenvalues lies in [lower, x], for each x.

    Noise eigenvalues fill the interval from lower to upper. The fraction is called the mass. It is
    stored as a function of an angle that stands for x: sqrt(x) = middle - half cos(angle). The mass
    is a smooth function of this angle. The density of the eigenvalues is not smooth in x: it falls
    like a square root at the ends of the interval, and can be infinite at 0.

    Attributes:
        middle: Middle of the interval of sqrt(x).
        half: Half the width of this interval.
        angles: Nodes from 0 to pi, shape (NODES,).
        density: Derivative of the mass by the angle, at `angles`.
        mass: Mass up to each of the `angles`.
    """

    middle: float
    half: float
    angles: Array
    density: Array
    mass: Array

    @classmethod
    def of(cls, pdf: Callable[[Array], Array], lower: float, upper: float) -> Interval:
        """Make an `Interval` from the density `pdf` of the eigenvalues in [`lower`, `upper`]."""
        ends = np.sqrt([lower, upper])
        middle, half = float(ends.mean()), float(np.diff(ends)[0] / 2)
        angles = np.linspace(0.0, np.pi, NODES)
        y = middle - half * np.cos(angles)
        density = np.zeros(NODES)
        inner = slice(1, -1)
        density[inner] = pdf(y[inner] ** 2) * 2 * y[inner] * half * np.sin(angles[inner])
        return cls(middle, half, angles, density, cumulative_simpson(density, x=angles, initial=0))

    def mass_up_to(self, x: Array) -> Array:
        """For each entry of `x`, the fraction of all eigenvalues that lie in [lower, entry]."""
        cosine = (self.middle - np.sqrt(np.maximum(x, 0.0))) / max(self.half, np.finfo(float).tiny)
        return self._curve(np.arccos(np.clip(cosine, -1.0, 1.0)))

    def position_of(self, mass: Array) -> Array:
        """The inverse of `mass_up_to`: the x for which [lower, x] holds the fraction `mass`."""
        low, high = np.zeros(np.shape(mass)), np.full(np.shape(mass), np.pi)
        for _ in range(BISECTIONS):
            angle = (low + high) / 2
            below = self._curve(angle) < mass
            low, high = np.where(below, angle, low), np.where(below, high, angle)
        return (self.middle - self.half * np.cos((low + high) / 2)) ** 2

    @cached_property
    def _curve(self) -> CubicHermiteSpline:
        return CubicHermiteSpline(self.angles, self.mass, self.density)
