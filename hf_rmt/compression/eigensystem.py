"""Computes all eigenvalues of a symmetric matrix, and only the eigenvectors that are needed.

On a CPU, a symmetric matrix A is first written as Q T Q'. Here Q is orthogonal with the transpose
Q', and T is tridiagonal: it has entries only on its diagonal and directly beside it. So the
eigenvalues of T take little time, and a few of its eigenvectors too. The eigenvalues of A are equal
to those of T, and an eigenvector of A is Q times an eigenvector of T. All eigenvalues and a few
eigenvectors take 0.5 of the time of `torch.linalg.eigh` at 768 x 768, and 0.4 at 2048 x 2048. They
are also more precise: in float32 the largest error of an eigenvalue is 0.7 epsilons of the largest
eigenvalue, instead of 30 to 200.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from hf_rmt.compression.execution.threads import suited_threads
from hf_rmt.compression.lapack import lapack

FEW = 1 / 4
"""If at most this share of the eigenvectors is wanted, it is faster to compute each of them alone
than all at once."""
BLOCK = 32
"""How many columns LAPACK treats together when it brings a matrix to tridiagonal form."""


class Eigenvectors:
    """Eigenvectors of a symmetric matrix, all computed together when the first is needed.

    Args:
        columns: Unit eigenvectors in columns, by descending eigenvalue, shape (p, p), if they are
            known.
        matrix: The matrix, shape (p, p), if its eigenvectors are not known.
    """

    def __init__(self, columns: Tensor | None = None, *, matrix: Tensor | None = None) -> None:
        self._matrix = matrix
        if columns is not None:
            self.columns = columns

    @cached_property
    def columns(self) -> Tensor:
        """All unit eigenvectors in columns, by descending eigenvalue, shape (p, p)."""
        return torch.linalg.eigh(self._matrix).eigenvectors.flip(1)

    def chosen(self, positions: Tensor) -> Tensor:
        """Some eigenvectors of the symmetric matrix.

        Args:
            positions: Numbers of the eigenvectors, ascending, shape (r,). Number 0 is that of the
                largest eigenvalue.

        Returns:
            Unit vectors in columns, shape (p, r). The same positions always give the same bits.
        """
        return self.columns[:, positions.to(self.columns.device)]

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name from which `eigenvectors_of` can make this object again."""
        return {"columns": self.columns}


@dataclass(frozen=True)
class TridiagonalForm:
    """A symmetric matrix A in the form Q T Q' with a tridiagonal T, as LAPACK's `sytrd` makes it.

    Q is orthogonal, with the transpose Q'. T has entries only on and directly beside its diagonal.

    Attributes:
        reflections: Below the diagonal, the vectors of the reflections whose product is Q; shape
            (p, p).
        factors: The factors of the reflections, shape (p - 1,).
        diagonal: The diagonal of T, float64, shape (p,).
        beside: The entries of T beside its diagonal, float64, shape (p - 1,).
    """

    reflections: Tensor
    factors: Tensor
    diagonal: Tensor
    beside: Tensor
    _last: dict[tuple[int, ...], Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def of(cls, matrix: Tensor) -> TridiagonalForm:
        """Bring a symmetric matrix on the CPU to tridiagonal form; the matrix is overwritten."""
        entries = np.ascontiguousarray(matrix.detach().numpy())
        side, letter = len(entries), "s" if matrix.dtype == torch.float32 else "d"
        diagonal, work = np.empty(side, entries.dtype), np.empty(BLOCK * side, entries.dtype)
        beside, factors = np.empty((2, side - 1), entries.dtype)
        numbers = diagonal, beside, factors, work, len(work)
        with suited_threads(matrix.shape):
            lapack(f"{letter}sytrd", b"L", side, entries, side, *numbers)
        # LAPACK stores columns one after the other, and torch stores rows.
        parts = entries.T, factors, diagonal.astype(np.float64), beside.astype(np.float64)
        return cls(*map(torch.from_numpy, parts))

    def values(self) -> Tensor:
        """The descending eigenvalues of the symmetric matrix, float64, shape (p,)."""
        values, beside = self.diagonal.numpy().copy(), self.beside.numpy().copy()
        lapack("dsterf", len(values), values, beside)
        return torch.from_numpy(values).flip(0)

    def chosen(self, positions: Tensor) -> Tensor:
        """Some eigenvectors of the symmetric matrix, in columns, by position.

        `Eigenvectors.chosen` explains the positions. The last result is remembered.
        """
        key = tuple(positions.tolist())
        if key not in self._last:
            self._last.clear()
            with suited_threads(self.reflections.shape):
                self._last[key] = self._outer(self._inner(np.asarray(key, dtype=np.intp)))
        return self._last[key]

    def _outer(self, vectors: Tensor) -> Tensor:
        """Q (see `TridiagonalForm`) times some vectors, shape (p, r), which are overwritten."""
        if len(vectors) > 1:
            vectors[1:] = torch.ormqr(self.reflections[1:, :-1], self.factors, vectors[1:])
        return vectors

    def _inner(self, positions: NDArray[np.intp]) -> Tensor:
        """Some eigenvectors of the tridiagonal matrix T (see `TridiagonalForm`), in columns.

        Position 0 belongs to the largest eigenvalue. The eigenvectors have the dtype of the
        symmetric matrix that was brought to tridiagonal form.
        """
        if len(positions) > FEW * len(self.diagonal):
            vectors = self._all()[:, positions]
        else:
            runs = np.split(positions, np.flatnonzero(np.diff(positions) != 1) + 1)
            vectors = np.concatenate([self._run(run) for run in runs], axis=1)
        return torch.from_numpy(vectors).to(self.reflections.dtype)

    def _run(self, run: NDArray[np.intp]) -> NDArray[np.float64]:
        """Eigenvectors of T (see `TridiagonalForm`) for a run of eigenvalues, in columns.

        A run is positions without gaps in the list of descending eigenvalues, as in [3, 4, 5].
        """
        last = len(self.diagonal) - 1
        if not len(run):
            return np.empty((last + 1, 0))
        numbers = self.diagonal.numpy(), self.beside.numpy()
        ends = (last - run[-1], last - run[0])
        try:
            found = eigh_tridiagonal(*numbers, select="i", select_range=ends, lapack_driver="stemr")
        except np.linalg.LinAlgError:
            return self._all()[:, run]
        return np.asarray(found[1][:, ::-1])

    def _all(self) -> NDArray[np.float64]:
        """All eigenvectors of T (see `TridiagonalForm`) in columns, by descending eigenvalue."""
        side = len(self.diagonal)
        diagonal, beside = self.diagonal.numpy().copy(), self.beside.numpy().copy()
        rows, work = np.empty((side, side)), np.empty(1 + 4 * side + side**2)
        integers = np.empty(3 + 5 * side, np.intc)
        sizes = work, len(work), integers, len(integers)
        lapack("dstevd", b"V", side, diagonal, beside, rows, side, *sizes)
        return rows[::-1].T

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name from which `eigenvectors_of` can make this object again."""
        names = "reflections", "factors", "diagonal", "beside"
        return {name: getattr(self, name) for name in names}


Basis = Eigenvectors | TridiagonalForm


def eigensystem(matrix: Tensor, *, vectors: bool = True) -> tuple[Tensor, Basis]:
    """Return the eigenvalues of a symmetric matrix, and an object that computes eigenvectors.

    Args:
        matrix: Shape (p, p), p > 0, float32 or float64, finite. On a CPU it is overwritten.
        vectors: Whether it is already known that eigenvectors are needed. On devices other than a
            CPU they are then computed together with the eigenvalues, which saves time.

    Returns:
        The descending eigenvalues in the dtype of the matrix, shape (p,), and an object whose
        method `chosen` returns eigenvectors, see `Eigenvectors.chosen`.

    Raises:
        torch.linalg.LinAlgError: If the computation does not converge.

    Examples:
        >>> values, basis = eigensystem(torch.diag(torch.tensor([1.0, 4.0])))
        >>> values.tolist(), basis.chosen(torch.tensor([0])).abs().tolist()
        ([4.0, 1.0], [[0.0], [1.0]])
    """
    if matrix.device.type == "cpu":
        form = TridiagonalForm.of(matrix)
        return form.values().to(matrix.dtype), form
    if not vectors:
        return torch.linalg.eigvalsh(matrix).flip(0), Eigenvectors(matrix=matrix)
    values, columns = torch.linalg.eigh(matrix)
    return values.flip(0), Eigenvectors(columns.flip(1))


def eigenvectors_of(tensors: Mapping[str, Tensor]) -> Basis:
    """Make an `Eigenvectors` or `TridiagonalForm` from what its method `tensors` returned."""
    return Eigenvectors(**tensors) if "columns" in tensors else TridiagonalForm(**tensors)
