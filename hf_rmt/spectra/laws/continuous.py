"""Laws for noise with many variances, whose eigenvalues fill one interval.

A law is the density that theory predicts for the eigenvalues.

For one or two variances, `spike_map` has closed formulas. For many, the edges (ends) of a law and
the density come from the curve in the complex plane on which the spike map g is real (Silverstein &
Choi 1995, section 4). `hf_rmt.spectra.laws.law` defines g, the variances tau_k, the weights w_k
and c. The critical points are the points where g' is 0. Above every real point u between the
two outer critical points, there is one height y > 0 with Im g(u + iy) = 0. This y solves

    c sum_k w_k tau_k^2 / ((u - tau_k)^2 + y^2) = 1.

The eigenvalue lambda = Re g(u + iy) then has the density y / (pi c |u + iy|^2).
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import CubicSpline
from scipy.optimize import brentq

from hf_rmt.spectra.laws.law import BulkLaw
from hf_rmt.spectra.laws.spike_map import Array, Complex

CURVE_POINTS = 385
HEIGHT_STEPS, ROOT_STEPS, SPIKE_STEPS = 60, 4, 60
DESCENT = np.geomspace(1e3, 1e-3, 40)
"""To solve g(a) = z (g is the function of `BulkLaw.spike_forward`), the root a is followed from a
point far above z down to z. These are the imaginary parts that are added to z, in units of the
larger of |z| and the largest noise variance."""
CLOSE = 1e-12


class ContinuousBulk(BulkLaw):
    """Law (predicted density) of noise eigenvalues that fill one interval, for many variances.

    The variances of the noise fill a range. For numerical integration, a finite number of them,
    called `atoms`, stands for this range. A subclass is a frozen dataclass with `atoms`, `weights`
    and `rescaled`, see `BulkLaw`.
    """

    @cached_property
    def critical_points(self) -> Array:
        """The two outer real roots of g'(a) = 0, shape (2,), where g is that of `spike_forward`.

        Roots between these two are left out. They exist only because a finite number of variances,
        `atoms`, stands for a continuous range.
        """
        top, bottom = self.atoms[-1], self.atoms[0]
        right = top * self._turn(top, 1 + CLOSE, (1 + np.sqrt(self.aspect_ratio)) * 1.001)
        if self.aspect_ratio >= 1:
            return np.array([0.0, right])
        return np.array([bottom * self._turn(bottom, 1 - CLOSE, 0.0), right])

    def _turn(self, atom: float, near: float, far: float) -> float:
        """Find the point between `near` and `far` where `spike_slope` is 0.

        `near`, `far` and the result are in units of `atom`, one of the noise variances `atoms`: 1.5
        stands for 1.5 times the atom. In this unit the absolute tolerance of the solver suits any
        atom. If almost none of the noise has this variance, there is no such point: it lies nearer
        to the atom than `near`. Then `near` is returned.
        """

        def slope(multiple: float) -> float:
            return float(self.spike_slope(atom * multiple))

        return near if slope(near) >= 0 else float(brentq(slope, near, far))

    def spike_inverse(self, eigenvalue: ArrayLike) -> Array:
        """The size that a signal had before noise was added, from its eigenvalue l with noise.

        The size a solves g(a) = l; g is the function of `spike_forward`. The size is nan if l is
        not above the bulk, the interval of noise eigenvalues. Newton's method runs to the right of
        the bulk, where g is convex. It starts from l, which lies to the right of the root a.
        """
        x = np.asarray(eigenvalue, dtype=float)
        above = x > self.upper_edge
        target = np.where(above, x, 2 * self.upper_edge)
        a = target.copy()
        for _ in range(SPIKE_STEPS):
            step = (self.spike_forward(a) - target) / self.spike_slope(a)
            a = a - step
            if np.all(np.abs(step) <= CLOSE * a):
                break
        return np.where(above, a, np.nan)

    def _upper_root(self, z: ArrayLike) -> NDArray[np.complex128]:
        points = np.asarray(z, dtype=complex)
        if np.any(points.imag > 0):
            return self._followed(points)
        lower, upper = np.sqrt(self.bulk_edges[0])
        angle = _angle(np.sqrt(np.clip(points.real, 0.0, None)), lower, upper)
        return self._polished(points, self._curve(angle))

    def _polished(self, points: Complex, a: Complex) -> Complex:
        """Improve roots a of g(a) = z by Newton's method; g is the function of `spike_forward`.

        z are the complex `points`. Roots stay in the upper half-plane (Im a > 0).
        """
        for _ in range(ROOT_STEPS):
            value, slope = self._complex_map(a)
            better = a - (value - points) / np.where(slope == 0, 1.0, slope)
            a = np.where(better.imag > 0, better, a)
        return a

    def _followed(self, points: Complex) -> Complex:
        """The root a of g(a) = z for each complex point z; g is the function of `spike_forward`.

        The root is followed from far above z, where a is close to z.
        """
        size = np.maximum(np.abs(points), self.atoms[-1])
        a = points + 1j * DESCENT[0] * size
        for height in (*DESCENT, 0.0):
            a = self._polished(points + 1j * height * size, a)
        return a

    def _complex_map(self, a: Complex) -> tuple[Complex, Complex]:
        """`spike_forward` and `spike_slope` at complex points a, and not only at real ones."""
        share = self.atoms / (a[..., None] - self.atoms)
        pull = (self.weights * share).sum(-1)
        slope = 1.0 - self.aspect_ratio * (self.weights * share**2).sum(-1)
        return a * (1.0 + self.aspect_ratio * pull), slope

    @cached_property
    def _curve(self) -> CubicSpline:
        """A spline that maps an angle to the complex root a of g(a) = l, for an eigenvalue l.

        The angle is that of `_angle` for sqrt(l), and g is the function of `spike_forward`.
        """
        first, last = self.critical_points
        theta = np.linspace(0.0, np.pi, CURVE_POINTS)
        u = (first + last) / 2 - (last - first) / 2 * np.cos(theta)
        a = u + 1j * self._height(u)
        a[0], a[-1] = first, last
        inner = a[1:-1]
        value, _ = self._complex_map(inner)
        lower, upper = np.sqrt(self.bulk_edges[0])
        angle = _angle(np.sqrt(np.maximum(value.real, 0.0)), lower, upper)
        grows = np.concatenate([[True], np.diff(np.maximum.accumulate(angle)) > 0])
        inside = grows & (angle > 0) & (angle < np.pi)
        nodes = np.concatenate([[0.0], angle[inside], [np.pi]])
        return CubicSpline(nodes, np.concatenate([a[:1], inner[inside], a[-1:]]))

    def _height(self, u: Array) -> Array:
        """Heights y of a curve above the points u; the module's docstring defines the curve.

        Newton's method for y^2 solves 1 / F = 1, where F is the left side of the equation in that
        docstring. 1 / F is concave and increasing in y^2.
        """
        top = self.atoms[-1]
        distance = ((u[:, None] - self.atoms) / top) ** 2
        pull = self.aspect_ratio * self.weights * (self.atoms / top) ** 2
        square = np.full(len(u), CLOSE)
        for _ in range(HEIGHT_STEPS):
            share = 1 / (distance + square[:, None])
            total = share @ pull
            step = (1 - 1 / total) * total**2 / (share**2 @ pull)
            square = np.maximum(square + step, 0.0)
            if np.all(np.abs(step) <= CLOSE * (square + 1e-3)):
                break
        return top * np.sqrt(square)


def _angle(root: Array, lower: float, upper: float) -> Array:
    """Map a singular value to an angle: 0 at the lower end of the noise range, pi at the upper."""
    cosine = ((lower + upper) / 2 - root) / ((upper - lower) / 2)
    return np.asarray(np.arccos(np.clip(cosine, -1.0, 1.0)))
