"""Kernels of wide random networks, and step activations that leave these kernels unchanged.

A kernel is an n x n matrix that compares n inputs. The conjugate kernel (CK) is the expected Gram
matrix of the outputs of the last hidden layer. The neural tangent kernel (NTK) is the expected Gram
matrix of the gradients. When the number n of inputs and the number p of their features grow
together, both kernels depend on the activation s only through a few Gaussian moments. These are the
means of s, s^2 and their derivatives when the argument of s is normally distributed. The kernels do
not depend on the distribution of the weights. A step activation is a piecewise constant function:
it takes only a few values.

All modules use this model. A layer maps x to s(W x) / sqrt d. W has d rows and independent entries
of mean 0 and variance 1. The activation s is centred: E s(tau xi) = 0, where E is the mean over a
standard normal xi, and tau is the scale of the layer's inputs. The functions here subtract the mean
themselves. The slope of s is s'; for a matrix or vector, the prime means the transpose. The inputs
x_i are the n rows of `data`, with p features, and are divided by sqrt p already. X is the transpose
of `data`. The inputs are drawn from a Gaussian mixture: x_i = (mu_a + C_a^{1/2} z_i) / sqrt p in
class a, which has the mean mu_a and the covariance C_a, and z_i is standard normal. The scale of
the inputs is tau_0, where tau_0^2 = mean tr C_a / p is the mean of |x|^2. The scale of layer l is
tau_l, where tau_l^2 = E s_l(tau_{l-1} xi)^2.

These modules use NumPy and SciPy in float64, and do not import torch.
"""

from hf_rmt.kernels.activations import ACTIVATIONS, resolve_activation
from hf_rmt.kernels.equivalents import (
    KernelCoefficients,
    conjugate_kernel_equivalent,
    kernel_coefficients,
    ntk_equivalent,
)
from hf_rmt.kernels.exact import Kernels, exact_kernels
from hf_rmt.kernels.gaussian_moments import GaussianMoments, gaussian_moments
from hf_rmt.kernels.matching import (
    match_network,
    match_step_activation,
    match_ternary_activation,
)
from hf_rmt.kernels.problem import MatchedStep, NoMatchError
from hf_rmt.kernels.statistics import MixtureStatistics, mixture_statistics
from hf_rmt.kernels.steps import StepActivation

__all__ = [
    "ACTIVATIONS",
    "GaussianMoments",
    "KernelCoefficients",
    "Kernels",
    "MatchedStep",
    "MixtureStatistics",
    "NoMatchError",
    "StepActivation",
    "conjugate_kernel_equivalent",
    "exact_kernels",
    "gaussian_moments",
    "kernel_coefficients",
    "match_network",
    "match_step_activation",
    "match_ternary_activation",
    "mixture_statistics",
    "ntk_equivalent",
    "resolve_activation",
]
