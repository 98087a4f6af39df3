"""Low-rank factors of an update, and the cost of losing each of its directions.

An update D is what fine-tuning added to a weight. A direction is a singular value s with its
singular vectors u and v. Let x be the inputs of the layer, g the gradients of its outputs, and C
and G the means of x x' and g g' (' is the transpose). Losing the part s u v' of D costs
s^2 (u'G u)(v'C v). Calibration batches measure C and G. The costs in `importance` are then the
squared singular values of G^{1/2} D C^{1/2}. D itself is a sum of products g x'. So without data,
(D D')^{1/2} takes the place of G, and (D'D)^{1/2} that of C. The cost is then s^4.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from hf_rmt.compression.eigensystem import eigensystem
from hf_rmt.compression.gram import balanced, factors_of, gram

INPUT_DAMPING, GRADIENT_DAMPING = 0.02, 0.05
"""These fractions of the mean diagonal entry are added to the diagonals of the second moments
(means of x x') of inputs and of gradients. Without this, the matrices may have no inverse, because
a few batches miss some directions."""
ALIKE = 1e-11
"""Samples count as equal if their variance, divided by the squared norm of their mean, is at most
this: their differences may come from rounding in float32."""
ROUNDINGS = 8
"""Samples also count as equal if variance / |mean|^2 is at most this many times the rounding error
(eps) of their dtype."""
SMALLEST = 1e-150
"""The least number that is added to the diagonal of a matrix that may have no inverse, so that the
inverse is finite."""


@dataclass(frozen=True)
class LayerMoments:
    """Second moments of a layer's inputs and output gradients, gathered from batches.

    Attributes:
        inputs: The second moment of the inputs x, which is the mean of x x' (' is the transpose),
            shape (in, in). If `mean` is given, their covariance instead. For an embedding, the
            frequencies of its tokens, shape (tokens,).
        gradients: Second moment of the gradients with respect to the layer's outputs (gradients of
            the model's outputs or of a loss), shape (out, out). None if all outputs of the layer
            count equally.
        mean: Mean input, shape (in,), if the layer has a bias, which can correct the mean output;
            otherwise, or if it was not measured, None.
    """

    inputs: Tensor = field(repr=False)
    gradients: Tensor | None = field(default=None, repr=False)
    mean: Tensor | None = field(default=None, repr=False)


@dataclass(frozen=True)
class LowRankUpdate:
    """Factors whose product approximates the update (tuned weight - base weight) of one layer.

    Attributes:
        name: Name of the module in `model.named_modules()`.
        embedding: Whether the module is an embedding; its update has the shape (tokens, width).
        left: The left factor, shape (out, rank).
        right: The right factor, shape (rank, in).
        energy: Fraction of the update's squared Frobenius norm that the factors keep.
    """

    name: str
    embedding: bool
    left: Tensor = field(repr=False)
    right: Tensor = field(repr=False)
    energy: float

    @property
    def rank(self) -> int:
        """Rank of the product: the number of columns of `left`, and of rows of `right`."""
        return self.left.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the dense update, which is the tuned weight minus the base weight."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def parameters(self) -> int:
        """Number of entries of `left` and `right` together."""
        return self.left.numel() + self.right.numel()

    @property
    def dense_parameters(self) -> int:
        """Number of entries of the dense update (the tuned weight minus the base weight)."""
        return self.shape[0] * self.shape[1]


def importance(update: Tensor, excitation: LayerMoments | None = None) -> Tensor:
    """The cost of losing each direction (singular value with its vectors) of an update D.

    With data the costs are the squared singular values of G^{1/2} D C^{1/2}. Without data they are
    the fourth powers of the singular values of D.

    Args:
        update: D, the tuned weight minus the base weight, shape (out, in), or (tokens, width) for
            an embedding.
        excitation: C, the mean of x x' over the layer's inputs x (' is the transpose), and G, the
            mean of g g' over the gradients g of its outputs, measured on data; None without data.

    Returns:
        The costs, descending, float64, shape (min(out, in),).

    Examples:
        >>> importance(torch.diag(torch.tensor([1.0, 3.0]))).round().tolist()
        [81.0, 1.0]
    """
    if excitation is None:
        return _squares(gram(update.double())).square()
    return _squares(gram(_weighted(update, excitation)))


def low_rank(
    update: Tensor, rank: int, excitation: LayerMoments | None = None
) -> tuple[Tensor, Tensor]:
    """Find the factors of a given rank whose product approximates an update best.

    The factors are balanced: column i of `left` and row i of `right` have the same norm.

    Args:
        update: What fine-tuning added to a weight, or a whole weight, shape (out, in).
        rank: Number of columns of `left`, at most min(out, in).
        excitation: Second moments of inputs and output gradients, which weight the error as in
            `importance`; None to use the plain Frobenius norm of the error.

    Returns:
        `left` of shape (out, rank) and `right` of shape (rank, in), float32.
    """
    matrix = update.double() if excitation is None else _weighted(update, excitation)
    basis = eigensystem(gram(matrix))[1]
    left, right = factors_of(matrix, basis.chosen(torch.arange(rank, device="cpu")))
    if excitation is not None:
        rows, columns = _roots(excitation)
        left, right = balanced(_divided(left, rows), _divided(right.T, columns).T)
    return left.float(), right.float()


def _squares(gram: Tensor) -> Tensor:
    return eigensystem(gram, vectors=False)[0].clamp_min(0)


def _weighted(update: Tensor, excitation: LayerMoments) -> Tensor:
    """A' D B: an update D (what fine-tuning added to a weight), weighted by gradients and inputs.

    A A' is the second moment of the output gradients g (the mean of g g', where ' is the
    transpose), and B B' that of the inputs. For an embedding, whose rows are tokens, A belongs to
    the inputs and B to the gradients.
    """
    rows, columns = _roots(excitation)
    matrix = update.double()
    if rows is not None:
        matrix = rows[:, None] * matrix if rows.ndim == 1 else rows.T @ matrix
    return matrix if columns is None else matrix @ columns


def _roots(excitation: LayerMoments) -> tuple[Tensor | None, Tensor | None]:
    """Square roots of the second moments that belong to the rows and to the columns of a weight.

    The moment of the rows is the mean of g g' over the output gradients g (' is the transpose).
    That of the columns is the mean of x x' over the inputs x. A root is a triangular L with
    L L' = moment. None stands for the identity. In an embedding, the rows belong to the tokens, and
    their root is the vector of the square roots of token frequencies. The columns belong to g.
    """
    slopes, inputs = excitation.gradients, excitation.inputs.double()
    gradients = None if slopes is None else torch.linalg.cholesky(damped(slopes, GRADIENT_DAMPING))
    if inputs.ndim == 1:
        return (inputs + INPUT_DAMPING * inputs.mean()).sqrt(), gradients
    return gradients, torch.linalg.cholesky(damped(inputs, INPUT_DAMPING))


def damped(moment: Tensor, damping: float) -> Tensor:
    """A second moment plus a multiple of the identity I, in float64: C + damping tr(C)/d I.

    The second moment of vectors x is the mean of x x' (' is the transpose). C may have no inverse,
    if the vectors do not point in all directions. The result always has one.

    Args:
        moment: C, the second moment, shape (d, d).
        damping: The fraction of the mean diagonal entry tr(C)/d that is added.

    Returns:
        A positive definite matrix, shape (d, d).

    Examples:
        >>> damped(torch.diag(torch.tensor([2.0, 0.0])), 0.5).diagonal().tolist()
        [2.5, 0.5]
    """
    moment = moment.double()
    shift = (damping * moment.diagonal().mean()).clamp_min(SMALLEST)
    return moment + shift * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)


def covariance(moment: Tensor, mean: Tensor) -> Tensor:
    """The covariance C = M - m m', without the rounding errors that a large mean causes.

    Args:
        moment: M, the mean of x x' over the samples x (' is the transpose), shape (d, d).
        mean: m, the mean of the samples, shape (d,).

    Returns:
        C in the dtype of M. If C has negative eigenvalues, they are smaller in size than what
        `damped` adds to them later. C is zero if the samples differ only by rounding errors.
    """
    found = moment - torch.outer(mean, mean)
    alike = max(ALIKE, ROUNDINGS * torch.finfo(moment.dtype).eps)
    if float(found.trace()) <= alike * float(mean.square().sum()):
        return torch.zeros_like(found)
    certain = not torch.linalg.cholesky_ex(damped(found, INPUT_DAMPING / 2)).info
    if certain or not torch.isfinite(found).all():
        return found
    values, vectors = torch.linalg.eigh(found.double())  # all the vectors are needed
    return ((vectors * values.clamp_min(0)) @ vectors.T).to(found)


def _divided(vectors: Tensor, root: Tensor | None) -> Tensor:
    """Solve root' x = vectors for x, where root' is the transpose of a triangular `root`.

    If `root` is None, it stands for the identity matrix. A vector stands for a diagonal matrix.
    """
    if root is None:
        return vectors
    if root.ndim == 1:
        return vectors / root[:, None]
    return torch.linalg.solve_triangular(root.T, vectors, upper=True)
