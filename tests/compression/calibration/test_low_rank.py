from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_rmt.compression.calibration.low_rank import (
    GRADIENT_DAMPING,
    INPUT_DAMPING,
    LayerMoments,
    LowRankUpdate,
    covariance,
    importance,
    low_rank,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moment(size: int, seed: int) -> Tensor:
    """A second moment with a wide spectrum."""
    factor = random(size, size, seed=seed) * torch.logspace(0, -1.5, size)
    return factor @ factor.T


def root(matrix: Tensor, damping: float) -> Tensor:
    """Symmetric square root of the damped moment, by eigenvalues: not the root the code takes."""
    size = len(matrix)
    values, vectors = torch.linalg.eigh(
        matrix.double() + damping * matrix.diagonal().mean().double() * torch.eye(size).double()
    )
    return vectors * values.sqrt() @ vectors.T


def linear_excitation() -> LayerMoments:
    return LayerMoments(moment(7, 1), moment(5, 2), random(7, seed=3))


def weighted(update: Tensor, excitation: LayerMoments) -> Tensor:
    gradients = root(excitation.gradients, GRADIENT_DAMPING)
    return gradients @ update.double() @ root(excitation.inputs, INPUT_DAMPING)


@pytest.mark.parametrize("shape", [(5, 7), (7, 5), (6, 6)])
def test_without_data_a_direction_is_worth_its_singular_value_to_the_fourth(
    shape: tuple[int, int],
) -> None:
    update = random(*shape)
    torch.testing.assert_close(importance(update), torch.linalg.svdvals(update.double()) ** 4)


def test_with_data_a_direction_is_worth_its_weighted_square() -> None:
    update, excitation = random(5, 7), linear_excitation()
    expected = torch.linalg.svdvals(weighted(update, excitation)) ** 2
    torch.testing.assert_close(importance(update, excitation), expected)


@pytest.mark.parametrize("shape", [(5, 7), (7, 5), (6, 6)])
@pytest.mark.parametrize("rank", [0, 1, 3, 5])
def test_plain_factors_are_the_truncated_svd(shape: tuple[int, int], rank: int) -> None:
    update = random(*shape)
    left, right = low_rank(update, rank)
    u, s, v = torch.linalg.svd(update, full_matrices=False)
    torch.testing.assert_close(left @ right, u[:, :rank] * s[:rank] @ v[:rank])
    torch.testing.assert_close(left.norm(dim=0), right.norm(dim=1))  # balanced
    assert left.shape == (shape[0], rank)


@pytest.mark.parametrize("kind", ["linear", "embedding"])
def test_weighted_factors_are_balanced(kind: str) -> None:
    """However far the two excitations lie apart, one learning rate trains both factors."""
    update, excitation = random(9, 4), LayerMoments(1e6 * moment(4, 1), 1e-6 * moment(9, 2))
    if kind == "embedding":
        excitation = LayerMoments(1e6 * torch.arange(1.0, 10.0), 1e-6 * moment(4, 5))
    left, right = low_rank(update, 3, excitation)
    torch.testing.assert_close(left.norm(dim=0), right.norm(dim=1))


def test_weighted_factors_lose_no_more_than_the_importance_says() -> None:
    """Eckart and Young in the weighted norm, where plain truncation loses more."""
    update, excitation = random(5, 7), linear_excitation()
    left, right = low_rank(update, 2, excitation)
    lost = weighted(update - left @ right, excitation).square().sum()
    torch.testing.assert_close(lost, importance(update, excitation)[2:].sum(), rtol=1e-5, atol=0)
    plain_left, plain_right = low_rank(update, 2)
    assert weighted(update - plain_left @ plain_right, excitation).square().sum() > 1.1 * lost


def test_an_embedding_is_weighted_by_the_frequencies_of_its_tokens() -> None:
    update = random(9, 4)
    frequencies = torch.rand(9, generator=torch.Generator().manual_seed(4))
    excitation = LayerMoments(frequencies, moment(4, 5))
    rows = torch.diag(frequencies + INPUT_DAMPING * frequencies.mean()).double().sqrt()
    matrix = rows @ update.double() @ root(excitation.gradients, GRADIENT_DAMPING)
    torch.testing.assert_close(
        importance(update, excitation), torch.linalg.svdvals(matrix).square()
    )
    left, right = low_rank(update, 2, excitation)
    lost = rows @ (update - left @ right).double() @ root(excitation.gradients, GRADIENT_DAMPING)
    expected = importance(update, excitation)[2:].sum()
    torch.testing.assert_close(lost.square().sum(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("excited", [False, True])
def test_full_rank_is_exact_even_where_the_update_has_less(excited: bool) -> None:
    update = random(5, 2) @ random(2, 7, seed=9)
    left, right = low_rank(update, 5, linear_excitation() if excited else None)
    torch.testing.assert_close(left @ right, update, rtol=0, atol=1e-5)


def test_an_update_counts_its_parameters() -> None:
    update = LowRankUpdate("layer", False, torch.ones(5, 2), torch.ones(2, 7), 0.5)
    assert (update.rank, update.shape) == (2, (5, 7))
    assert (update.parameters, update.dense_parameters) == (24, 35)


def test_a_covariance_has_no_directions_of_rounding() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 40, generator=generator).double() * torch.logspace(0, -4, 40) * 0.05 + 3
    exact = torch.cov(x.T, correction=0)
    mean, moment = x.float().mean(0), x.float().T @ x.float() / 60
    plain, found = moment - torch.outer(mean, mean), covariance(moment, mean)
    shift = 0.02 * float(exact.trace()) / 40
    assert float(torch.linalg.eigvalsh(plain.double())[0]) < -shift / 2
    assert float(torch.linalg.eigvalsh(found.double())[0]) > -shift / 2
    assert (found - exact).norm() <= (plain - exact).norm()
    assert float((found - exact).norm() / exact.norm()) < 0.05


def test_a_covariance_of_equal_samples_is_zero_and_a_plain_one_is_left_alone() -> None:
    x = torch.full((7, 40), 3.3)
    assert not covariance(x.T @ x / 7, x.mean(0)).any()
    y = torch.randn(100, 5, generator=torch.Generator().manual_seed(0))
    moment, mean = y.T @ y / 100, y.mean(0)
    assert torch.equal(covariance(moment, mean), moment - torch.outer(mean, mean))


def test_what_counts_as_equal_depends_on_the_rounding_of_the_moment() -> None:
    x = 1 + 1e-4 * torch.randn(200, 5, generator=torch.Generator().manual_seed(0)).double()
    exact, mean = torch.cov(x.T, correction=0), x.mean(0)
    torch.testing.assert_close(covariance(x.T @ x / 200, mean), exact, rtol=1e-5, atol=1e-14)
    rounded = x.float()
    assert not covariance(rounded.T @ rounded / 200, rounded.mean(0)).any()
