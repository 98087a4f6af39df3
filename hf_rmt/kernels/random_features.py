"""Random features with ternary weights and step activations, as a scikit-learn transformer.

Ternary weights have three values, and a step activation is a function with a few values. Only this
module of `hf_rmt.kernels` needs scikit-learn: pip install 'hf_rmt[sklearn]'. The package does not
import this module.
"""

from __future__ import annotations

import math
from functools import partial
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hf_rmt.kernels.activations import Activation, Array
from hf_rmt.kernels.matching import match_step_activation, match_ternary_activation
from hf_rmt.kernels.problem import MatchedStep
from hf_rmt.kernels.simulation import ternary_weights

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        "TernaryRandomFeatures needs scikit-learn; pip install 'hf_rmt[sklearn]'"
    ) from error

GAUSSIAN_KERNEL = "rbf"
TERNARY = 2
DTYPES = ("float64", "float32")
BLOCK = 2048
EXPONENTS = (1e-12, 30.0)
"""Allowed range of gamma times the mean of |x - y|^2 over samples x and y. Outside of this range,
the kernel exp(-gamma |x - y|^2) is 0 or 1 up to rounding."""


class TernaryRandomFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Random features s(W x / sqrt p) / sqrt N: sparse ternary weights W, a step activation s.

    The kernel of the features is the inner product of the features of two samples. A sample x has p
    columns. W has independent entries of mean 0 and variance 1, which are 0 with probability
    `sparsity` and otherwise +a or -a with a = 1 / sqrt(1 - sparsity). The step activation s has a
    few values and replaces an activation. In high dimension the kernel depends on the activation
    only through d0, d1 and d2 (see `GaussianMoments`), and it does not depend on W. So a ternary s
    with the same three moments has the same kernel. The scale tau of the argument of s is estimated
    from the data. Each row of W should have several entries that are not zero: make (1 - sparsity)
    p well above 1.

    Args:
        n_components: N, the number of features.
        sparsity: P(weight = 0), in [0, 1). Weights take 2 bits at any sparsity.
        activation: The activation that s replaces: `rbf`, for the Gaussian kernel with `gamma`; a
            name in `ACTIVATIONS`; or a function on arrays, of the argument W x / sqrt p.
        levels: Number of distinct values of s, minus one. 2 gives the ternary step b (1{x > s2} -
            1{x <= s1}) of height b, where 1{...} is 1 if the condition holds, else 0. If the
            activation has large d1 and d2, the d0 of s is too large; this acts like a ridge
            penalty. Other numbers mean the same as in `match_step_activation`. None takes the
            fewest that match all three moments, and is the most accurate choice.
        gamma: The gamma of the Gaussian kernel exp(-gamma |x - y|^2), > 0. `scale` means 1 /
            (number of columns * their mean variance). It is used only with the activation `rbf`.
        random_state: Seed of the weights: a number, a RandomState or None.

    Attributes:
        packed_weights_: Two bits for each entry of W: whether it is not 0, and whether it is
            negative; shape (2, n_components, ceil(n_features / 8)).
        mean_: Means of the columns, subtracted from x, shape (n_features,).
        tau_: Square root of the mean of |x - mean_|^2 / p.
        activation_: The step activation s, a `MatchedStep`.
        memory_bits_: Bits that the fitted arrays take.
        feature_bits_: Bits that are needed to store the features of one sample.
        n_features_in_: p, the number of columns of the data.

    Source:
        Tiomoko Ali, Liao & Couillet, ICLR 2022.

    Examples:
        >>> x = np.random.default_rng(0).standard_normal((300, 64))
        >>> features = TernaryRandomFeatures(500, random_state=0).fit(x)
        >>> len(np.unique(features.transform(x))), features.feature_bits_
        (3, 1000)
    """

    def __init__(
        self,
        n_components: int = 100,
        *,
        sparsity: float = 0.5,
        activation: Activation = GAUSSIAN_KERNEL,
        levels: int | None = TERNARY,
        gamma: float | str = "scale",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_components = n_components
        self.sparsity = sparsity
        self.activation = activation
        self.levels = levels
        self.gamma = gamma
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Estimate mean and scale of the data, find the step activation and draw the weights.

        Args:
            X: Training data, shape (n_samples, n_features), at least two rows that differ.
            y: Ignored.

        Returns:
            The transformer itself.

        Raises:
            ValueError: If a parameter is out of range or the rows do not differ.
            NoMatchError: If no step activation of so many levels matches the activation.
        """
        self._check_parameters()
        data = validate_data(self, X, dtype=DTYPES, ensure_min_samples=2)
        self.mean_ = data.mean(0)
        norms = np.square(data - self.mean_, dtype=float).mean(1)
        self.tau_ = float(np.sqrt(norms.mean()))
        if not self.tau_ > 0:
            raise ValueError(
                "the rows of X must differ, got equal ones, which have no scale; pass other rows"
            )
        self.activation_ = self._matched(data.shape[1])
        self.packed_weights_ = self._draw(data.shape[1])
        self._scale = 1 / math.sqrt((1 - self.sparsity) * data.shape[1])
        return self

    def transform(self, X: ArrayLike) -> NDArray[Any]:
        """The random features of new data, by the formula of `TernaryRandomFeatures`.

        Args:
            X: Data with the columns of the training data, shape (n_samples, n_features).

        Returns:
            Features in the dtype of X, float32 or float64, shape (n_samples, n_components).
        """
        check_is_fitted(self)
        data = validate_data(self, X, dtype=DTYPES, reset=False)
        centred = (data - self.mean_) * self._scale
        count = self._n_features_out
        features = np.empty((len(data), count), data.dtype)
        for start in range(0, count, BLOCK):
            rows = slice(start, start + BLOCK)
            arguments = centred @ self._signs(rows).astype(data.dtype).T
            features[:, rows] = self.activation_(arguments) / np.sqrt(count)
        return features

    @property
    def memory_bits_(self) -> int:
        """Bits of the packed weights, of the means of the inputs, and of the step activation.

        The step activation is stored as its thresholds and heights.
        """
        check_is_fitted(self)
        step = 64 * (len(self.activation_.thresholds) + len(self.activation_.heights))
        return 8 * int(self.packed_weights_.nbytes + self.mean_.nbytes) + step

    @property
    def feature_bits_(self) -> int:
        """Bits of one sample's features; a feature takes log2(levels + 1) bits, rounded up.

        A feature has levels + 1 distinct values.
        """
        check_is_fitted(self)
        return self._n_features_out * self.activation_.levels.bit_length()

    @property
    def _n_features_out(self) -> int:
        return int(self.packed_weights_.shape[1])

    def _matched(self, width: int) -> MatchedStep:
        activation = self.activation
        if isinstance(activation, str) and activation == GAUSSIAN_KERNEL:
            gamma = self._gamma(width)
            activation = partial(gaussian_kernel_activation, frequency=np.sqrt(2 * gamma * width))
        levels: Any = self.levels
        if isinstance(levels, Integral) and levels == TERNARY:
            return match_ternary_activation(activation, tau=self.tau_)
        return match_step_activation(activation, tau=self.tau_, levels=self.levels)

    def _gamma(self, width: int) -> float:
        """The gamma of the kernel exp(-gamma |x - y|^2) of samples x and y.

        Raise if this kernel would be 0 or 1 up to rounding.
        """
        distance = 2 * width * self.tau_**2  # the mean of |x - y|^2
        if isinstance(self.gamma, str):
            return 2 / distance
        least, most = (exponent / distance for exponent in EXPONENTS)
        if least <= self.gamma <= most:
            return self.gamma
        size, end = ("small", "1") if self.gamma < least else ("large", "0")
        raise ValueError(
            f"gamma={self.gamma!r} is too {size} for this data: the mean of |x - y|^2 is "
            f"{distance:.3g}, so that exp(-gamma |x - y|^2) of two samples is {end} up to "
            f"rounding; pass a gamma in [{least:.2g}, {most:.2g}], or 'scale'"
        )

    def _draw(self, width: int) -> NDArray[np.uint8]:
        seed = check_random_state(self.random_state).randint(2**31 - 1)
        generator = np.random.default_rng(seed)
        planes = []
        for start in range(0, self.n_components, BLOCK):
            shape = min(BLOCK, self.n_components - start), width
            weights = ternary_weights(shape, sparsity=self.sparsity, seed=generator)
            planes.append(np.packbits([weights != 0, weights < 0], axis=2))
        return np.concatenate(planes, axis=1)

    def _signs(self, rows: slice) -> NDArray[np.int8]:
        """Unpack the signs -1, 0 or 1 of the weights in some rows of W, shape (rows, n_features).

        A weight in W is its sign divided by sqrt(1 - sparsity).
        """
        bits = np.unpackbits(self.packed_weights_[:, rows], axis=2, count=self.n_features_in_)
        nonzero, negative = bits.view(np.int8)
        return nonzero - 2 * negative

    def _check_parameters(self) -> None:
        # a grid search may pass values of any type
        given: dict[str, Any] = self.get_params(deep=False)
        count, sparsity, gamma = (given[name] for name in ("n_components", "sparsity", "gamma"))
        if not isinstance(count, Integral) or count < 1:
            raise ValueError(f"n_components must be a whole number of at least 1, got {count!r}")
        if not isinstance(sparsity, Real) or not 0 <= float(sparsity) < 1:
            raise ValueError(f"sparsity must lie in [0, 1), got {sparsity!r}; it is P(weight = 0)")
        scaled = isinstance(gamma, str) and gamma == "scale"
        if not scaled and not (isinstance(gamma, Real) and 0 < float(gamma) < np.inf):
            raise ValueError(f"gamma must be a positive number or 'scale', got {gamma!r}")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = list(DTYPES)
        return tags


def gaussian_kernel_activation(x: Array, *, frequency: float) -> Array:
    """The activation cos(f x) + sin(f x), whose random features have a Gaussian kernel.

    Let x = w'a be the argument for an input a and a vector w of standard normal weights. The pair
    of features cos(f x) and sin(f x) has the kernel exp(-f^2 |a - b|^2 / 2) for two inputs a and b.
    cos + sin has the same moments d0, d1 and d2 as the pair (see `GaussianMoments`):
    d1 = f^2 e^(-t^2), d2 = f^4 e^(-t^2) / 4 and d0 = 1 - (1 + t^2) e^(-t^2), where t = f tau, and
    tau is the standard deviation of x.

    Args:
        x: The argument, any shape.
        frequency: The frequency f > 0.

    Returns:
        The values.
    """
    return np.asarray(np.cos(frequency * x) + np.sin(frequency * x))
