"""Spectra of weights: the eigenvalues and eigenvectors of the Gram matrix X'X.

X is the weight or its transpose, whichever has at least as many rows as columns, and X' is the
transpose of X. The eigenvalues of X'X are the squared singular values of the weight.

The Gram matrix loses half of the digits of the smallest singular values. These digits matter only
if most eigenvalues are very small compared with the largest one. In this case the Gram matrix is
computed in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from hf_rmt.compression.eigensystem import Basis, eigensystem
from hf_rmt.compression.gram import factors_of, gram
from hf_rmt.compression.methods.spectral import spectral_method_of
from hf_rmt.settings import CompressionSettings
from hf_rmt.spectra import Phase, SpectrumFit, review
from hf_rmt.spectra.eigenvalues import RANGE, RELATIVE_ZERO
from hf_rmt.spectra.split import without_law

FLOAT32_RANGE = 1e4
"""A float32 Gram matrix X'X of a weight X is precise enough if its largest eigenvalue is at most
this many times the median one. Then the largest eigenvalue that does not stand out is right to
about 1e-3 of the median. The ratio of a trained transformer's weight is about 1e2."""
FLOAT32_FOOT = 1 / 20
"""The largest share of its eigenvalues that a float32 Gram matrix may lose to rounding. If more
are lost, as in two weights of a trained ViT, the distribution of the small eigenvalues cannot be
seen, not even for a weight of full rank."""
FLOAT32_ROUNDING = 3e-8
"""Typical error of a small eigenvalue of a float32 Gram matrix, as a fraction of the largest: a
quarter of the float32 epsilon. Eigenvalues below this fraction are raised to it."""
FLOAT32_SQUARES = (1e-12, 1e12)
"""Range of a weight's largest entry in which float32 squares neither overflow nor vanish."""
FLOAT64_SQUARES = (1e-100, 1e100)
"""Range of a weight's largest entry in which float64 squares neither overflow nor vanish. A weight
outside of it is divided by a power of two near its largest entry."""
RELATIVE_NULL = {torch.float32: 1e-6, torch.float64: 1e-14}
"""For each dtype of a Gram matrix: eigenvalues below this fraction of the largest one may be
rounding errors."""
ITERATIONS, CLEARLY = 3, 10.0
"""`ITERATIONS` steps of inverse iteration find the smallest eigenvalue. This value is clearly not
zero if it exceeds `CLEARLY` times the limit that `_full_rank` explains."""


@dataclass(frozen=True)
class Decomposition:
    """A weight's split spectrum, with the eigenvectors that are needed to extract its signal.

    Attributes:
        fit: The spectrum (the squared singular values), split into signal (the values that stand
            out) and noise (all others); see `SpectrumFit`.
        basis: Gives chosen eigenvectors of the Gram matrix X'X, where X is the weight or its
            transpose, whichever is taller; see `eigensystem`. None if the spectrum is degenerate:
            it cannot be split into signal and noise.
    """

    fit: SpectrumFit
    basis: Basis | None = field(repr=False)

    def factors(self, weight: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The two factors of chosen directions of the weight; their product is the sum of s u v'.

        A direction is a singular value s with its singular vectors u and v. For each direction, the
        left factor holds the column s^{1/2} u, and the right factor holds the row s^{1/2} v'.

        Args:
            weight: The decomposed weight, shape (out, in).
            indices: Positions of the directions in the list of descending singular values, in
                ascending order, shape (r,).

        Returns:
            The left factor, shape (out, r), and the right, shape (r, in), in the weight's dtype.

        Raises:
            ValueError: If the singular values could not be split into signal and noise.
        """
        if self.basis is None:
            fault = f"the weight is degenerate ({self.fit.reason}), so it has no signal"
            raise ValueError(f"{fault}; leave its layer dense")
        unit = _unit(weight)
        root, scaled = unit**0.5, _in_units(weight, unit)
        left, right = (root * each for each in factors_of(scaled, self.basis.chosen(indices)))
        return left.to(weight.dtype).contiguous(), right.to(weight.dtype).contiguous()

    def recovery(self, indices: Tensor) -> Tensor:
        """Numbers that turn singular values of the signal into their sizes without noise.

        The number is sqrt(alpha / lambda) for a singular value that is signal (it stands out), else
        1. Here lambda is its square, and alpha is what lambda would be without noise.

        Args:
            indices: Positions in the list of descending singular values, shape (r,).

        Returns:
            The numbers by which to multiply the singular values, float64 on the CPU, shape (r,).
        """
        ratio = torch.ones(len(self.fit.eigenvalues), dtype=torch.float64)
        signal = torch.from_numpy(self.fit.is_signal)
        alpha = torch.as_tensor(self.fit.spikes, dtype=torch.float64)
        ratio[signal] = torch.sqrt(alpha / torch.from_numpy(self.fit.eigenvalues)[signal])
        return ratio[indices]


def spectrum(weight: Tensor, settings: CompressionSettings) -> SpectrumFit:
    """Split the spectrum (the squared singular values) of a weight into signal and noise.

    Args:
        weight: Shape (out, in), floating point, any device.
        settings: The method and its options.

    Returns:
        The split spectrum; see `hf_rmt.spectra`. If a weight cannot be split, the verdict `phase`
        is `degenerate`, and `reason` says why.
    """
    return _fit(weight, settings, vectors=False).fit


def decompose(weight: Tensor, settings: CompressionSettings) -> Decomposition:
    """Split the spectrum of a weight into signal and noise and keep the eigenvectors.

    The spectrum is the list of the squared singular values. They are the eigenvalues of the Gram
    matrix X'X of the weight or its transpose X, whichever is taller; see `hf_rmt.spectra`.

    Args:
        weight: Shape (out, in), floating point, any device.
        settings: The method and its options.

    Returns:
        The split spectrum, with the eigenvectors of X'X.
    """
    return _fit(weight, settings, vectors=True)


def fit_spectrum(
    values: Tensor, shape: tuple[int, int], settings: CompressionSettings
) -> SpectrumFit:
    """Split eigenvalues into signal and noise by the method of the settings.

    Args:
        values: Eigenvalues, which are the squared singular values of a weight, descending, shape
            (min(shape),).
        shape: Shape of the weight.
        settings: The method and its options.

    Returns:
        The fit (see `hf_rmt.spectra`): which eigenvalues are signal, and the law of the noise (the
        distribution of the eigenvalues of pure noise) if the method fits one.
    """
    return spectral_method_of(settings).fit(values.cpu().numpy(), shape, settings)


def _fit(weight: Tensor, settings: CompressionSettings, *, vectors: bool) -> Decomposition:
    shape = (weight.shape[0], weight.shape[1])
    peak = _largest_entry(weight)
    if not math.isfinite(peak):
        nothing = torch.full((min(shape),), math.nan)
        return Decomposition(fit_spectrum(nothing, shape, settings), None)
    if peak and not RANGE[0] / weight.numel() < peak * peak < RANGE[1]:
        reason = f"entries reach {peak:.3g}; float64 cannot hold their squares; scale the weight"
        return Decomposition(without_law(shape, np.full(min(shape), np.nan), reason), None)
    unit = _unit(weight)
    values, basis, exact = _eigen_of_entries(_in_units(weight, unit), peak, vectors)
    fit = fit_spectrum(values * unit**2, shape, settings)
    if fit.phase == Phase.DEGENERATE:
        return Decomposition(fit, None)
    return Decomposition(_reviewed(fit, weight, basis, exact), basis)


def _eigen_of_entries(
    weight: Tensor, peak: float, vectors: bool
) -> tuple[Tensor, Basis, torch.dtype]:
    """Descending eigenvalues of a weight's Gram matrix X'X, its eigenvectors, and its dtype.

    X is the weight or its transpose, whichever is taller, and X' is the transpose of X. X'X is
    computed in float32 if that is precise enough, else in float64; the eigenvalues are in float64.
    `peak` is the largest absolute entry. `vectors` is passed to `eigensystem`.
    """
    low, high = FLOAT32_SQUARES
    if weight.dtype != torch.float64 and low < peak < high:
        single, basis = eigensystem(gram(weight.to(torch.float32)), vectors=vectors)
        values = single.to(torch.float64)
        if _float32_serves(weight, values):
            return values.clamp_min(FLOAT32_ROUNDING * values[0]), basis, torch.float32
    values, basis = eigensystem(gram(weight.to(torch.float64)), vectors=vectors)
    return without_rounding(values, RELATIVE_NULL[torch.float64]), basis, torch.float64


def _unit(weight: Tensor) -> float:
    """The number by which a weight is divided before its entries are squared; usually 1.

    If squares could overflow or vanish, it is a power of two near the weight's largest entry.
    """
    if weight.dtype != torch.float64:
        return 1.0
    peak, (low, high) = _largest_entry(weight), FLOAT64_SQUARES
    return 1.0 if low < peak < high or not peak else math.ldexp(1.0, math.frexp(peak)[1])


def _in_units(weight: Tensor, unit: float) -> Tensor:
    """The weight divided by `unit`, a power of two, so that the division rounds nothing."""
    return weight if unit == 1.0 else weight / unit


def _reviewed(fit: SpectrumFit, weight: Tensor, basis: Basis, exact: torch.dtype) -> SpectrumFit:
    """Check whether a weight's entries explain its spikes; return the fit with its verdict.

    A spike is a squared singular value that stands out. If large or uneven entries of the weight
    explain the spikes, the fit gets another verdict. `basis` gives the eigenvectors, and `exact`
    is the dtype of the check.
    """
    if fit.phase != Phase.SPIKED:
        return fit

    def vectors() -> np.ndarray:
        signal = torch.from_numpy(np.flatnonzero(fit.is_signal))
        return basis.chosen(signal).cpu().numpy()

    return review(fit, weight.detach().to(exact).cpu().numpy(), vectors)


def _float32_serves(weight: Tensor, values: Tensor) -> bool:
    """Whether squared singular values that were computed in float32 are precise enough.

    The answer is no if the largest is too far above the median, or if too many may be rounding
    errors. If a few may be rounding errors, the weight must have full rank. Then none of them is
    zero in truth. This matters because zeros are treated in another way than small values.
    """
    lost = values <= RELATIVE_NULL[torch.float32] * values[0]
    if float(lost.double().mean()) > FLOAT32_FOOT:
        return False
    if values[0] > FLOAT32_RANGE * values[len(values) // 2]:
        return False
    return not bool(lost.any()) or _full_rank(weight, float(values[0]))


def _full_rank(weight: Tensor, largest: float) -> bool:
    """Whether a weight has full rank: none of its squared singular values counts as zero.

    `largest` is the largest of the p values. A value counts as zero if it is at most the limit
    `RELATIVE_ZERO` * p * `largest`. A square weight has full rank if its smallest value lies far
    above the limit. This value is first computed in float32. If it is too small to decide, it is
    computed in float64. If that does not decide, or the weight is not square, the limit is
    subtracted from the diagonal of the Gram matrix. The result has a Cholesky factor only if all
    values exceed the limit.
    """
    wide, side = weight.to(torch.float64), min(weight.shape)
    limit = RELATIVE_ZERO * side * largest
    if weight.shape[0] == weight.shape[1]:
        rounding = side * torch.finfo(torch.float32).eps ** 2 * largest
        if _least_eigenvalue(weight.to(torch.float32)) > CLEARLY * max(limit, rounding):
            return True
        if _least_eigenvalue(wide) > CLEARLY * limit:
            return True
    squares = gram(wide)
    squares.diagonal().sub_(limit)
    return int(torch.linalg.cholesky_ex(squares).info) == 0


def _least_eigenvalue(square: Tensor) -> float:
    """The smallest squared singular value of a square matrix X, found by inverse iteration.

    It is the smallest eigenvalue of X'X, where X' is the transpose of X. The result is 0 or tiny
    if X is singular. Up to rounding it is never below the true value, and a few steps bring it
    close. An LU factorization of X takes less time than X'X, and loses no digits by squaring.
    """
    factor, pivots, _ = torch.linalg.lu_factor_ex(square)
    vectors = torch.arange(2.0 * len(square), device=square.device).view(-1, 2).to(square).cos()
    for _ in range(ITERATIONS):
        half = torch.linalg.lu_solve(factor, pivots, vectors, adjoint=True)
        vectors = torch.linalg.lu_solve(factor, pivots, half)
        norms = torch.linalg.vector_norm(vectors, dim=0)
        vectors = vectors / norms
    inverse = float(norms.amax())
    return 1 / inverse if 0 < inverse < math.inf else 0.0


def _largest_entry(weight: Tensor) -> float:
    """The largest absolute entry of a weight; nan if an entry is nan or there is no entry."""
    if weight.numel() == 0:
        return math.nan
    low, high = torch.aminmax(weight.detach())
    return max(-float(low), float(high))


def without_rounding(values: Tensor, null: float) -> Tensor:
    """Eigenvalues of a Gram matrix in float64, with those that are rounding errors set to zero.

    Args:
        values: The descending eigenvalues, shape (p,).
        null: An eigenvalue below this fraction of the largest one is a rounding error.
    """
    values = values.to(torch.float64)
    return torch.where(values > null * values[0], values, 0.0)
