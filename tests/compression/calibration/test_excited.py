"""Directions by what the inputs excite, and a weight cut down to them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_rmt.compression.calibration.excited import cut, excited_directions
from hf_rmt.compression.calibration.low_rank import (
    GRADIENT_DAMPING,
    INPUT_DAMPING,
    LayerMoments,
    low_rank,
)
from hf_rmt.compression.calibration.ranks import shared_ranks

SHAPES = [(12, 7), (7, 12), (9, 9)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moment(size: int) -> Tensor:
    factor = random(size, size, seed=1) * torch.logspace(0, -1.5, size)
    return factor @ factor.T


def damped(moments: Tensor, damping: float) -> Tensor:
    matrix = torch.diag(moments).double() if moments.ndim == 1 else moments.double()
    return matrix + damping * matrix.diagonal().mean() * torch.eye(len(matrix)).double()


def lost(weight: Tensor, other: Tensor, inputs: Tensor) -> float:
    """Mean square that the outputs lose."""
    rest = (weight - other).double()
    return float((rest @ damped(inputs, INPUT_DAMPING) @ rest.T).trace())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 3, 7])
def test_the_cut_loses_what_the_directions_left_out_are_worth(
    shape: tuple[int, int], rank: int
) -> None:
    """Eckart and Young for the outputs, which no other weight of the rank can beat."""
    weight, inputs = random(*shape), moment(shape[1])
    values, left, right = excited_directions(weight, LayerMoments(inputs))
    signal = cut(weight, left[:, :rank], right[:, :rank], 0.0)
    assert torch.linalg.matrix_rank(signal, rtol=1e-5) == rank
    rest = float(values[rank:].sum())
    assert lost(weight, signal, inputs) == pytest.approx(rest, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("diagonal", [False, True])
def test_directions_are_worth_what_inputs_and_gradients_make_of_them(
    shape: tuple[int, int], diagonal: bool
) -> None:
    weight = random(*shape)
    inputs, gradients = moment(shape[1]), 7 * moment(shape[0]).flip(0, 1)
    if diagonal:
        inputs, gradients = inputs.diagonal(), gradients.diagonal()
    values, _, probes = excited_directions(weight, LayerMoments(inputs, gradients))
    left, right = damped(gradients, GRADIENT_DAMPING), damped(inputs, INPUT_DAMPING)
    expected = torch.linalg.eigvals(left @ weight.double() @ right @ weight.double().T).real
    largest = expected.sort(descending=True).values[: len(values)]
    torch.testing.assert_close(values, largest, rtol=1e-4, atol=1e-7 * float(largest[0]))
    # the columns of W K are the eigenvectors of W C W' G, in order
    images = weight.double() @ probes[:, :2]
    turned = weight.double() @ right @ weight.double().T @ left @ images
    torch.testing.assert_close(turned, images * values[:2], rtol=1e-3, atol=1e-4 * float(values[0]))


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_left_of_the_rest_is_scaled(shape: tuple[int, int]) -> None:
    weight = random(*shape)
    _, left, right = excited_directions(weight, LayerMoments(moment(shape[1]), moment(shape[0])))
    probes = left[:, :3], right[:, :3]
    none, part, whole = (cut(weight, *probes, left_over) for left_over in (0.0, 0.3, 1.0))
    torch.testing.assert_close(whole, weight)
    torch.testing.assert_close(part, none + 0.3 * (weight - none))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_weight_of_the_rank_is_left_alone_whatever_the_probe(shape: tuple[int, int]) -> None:
    weight = random(shape[0], 3) @ random(3, shape[1], seed=2)
    probes = random(shape[0], 3, seed=4), random(shape[1], 3, seed=5)
    torch.testing.assert_close(cut(weight, *probes, 0.0), weight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_cut_is_the_best_weight_under_inputs_and_gradients(shape: tuple[int, int]) -> None:
    weight = random(*shape)
    excitation = LayerMoments(moment(shape[1]), moment(shape[0]).flip(0, 1))
    _, left, right = excited_directions(weight, excitation)
    signal = cut(weight, left[:, :2], right[:, :2], 0.0)
    factors = low_rank(weight, 2, excitation)
    torch.testing.assert_close(signal, factors[0] @ factors[1], rtol=1e-3, atol=1e-4)


def test_probes_that_no_longer_fit_give_way_to_the_orthogonal_projection() -> None:
    """A left probe that sees nothing of the range would blow the two-sided cut up."""
    weight, right = random(12, 9), random(9, 3, seed=2)
    basis = torch.linalg.qr(weight @ right).Q
    blind = random(12, 3, seed=3)
    blind = blind - basis @ (basis.T @ blind) + 1e-4 * random(12, 3, seed=6)
    expected = basis @ (basis.T @ weight)
    torch.testing.assert_close(cut(weight, blind, right, 0.0), expected)


def test_probes_may_repeat_a_direction() -> None:
    weight, left, right = random(12, 3) @ random(3, 9), random(12, 3, seed=2), random(9, 3, seed=3)
    twice = [torch.cat([probe, probe[:, :1]], 1) for probe in (left, right)]
    torch.testing.assert_close(cut(weight, *twice, 0.0), weight, rtol=1e-4, atol=1e-4)


def test_a_weight_of_zeros_is_cut_to_zeros() -> None:
    assert cut(torch.zeros(5, 4), random(5, 2), random(4, 2), 0.5).equal(torch.zeros(5, 4))


def test_the_directions_follow_a_weight_that_trains() -> None:
    """A small step beside the kept directions is kept to first order, not projected away."""
    shape, rank, step = (40, 30), 4, 1e-4
    weight, inputs = random(*shape), moment(30)
    _, left, right = excited_directions(weight, LayerMoments(inputs, moment(40)))
    probes = left[:, :rank].float(), right[:, :rank].float()
    signal = cut(weight, *probes, 0.0)
    turn = step * random(40, 40, seed=7) @ signal  # changes the range, stays of the rank
    moved = cut(signal + turn, *probes, 0.0)
    torch.testing.assert_close(moved, signal + turn, rtol=0, atol=1e-6)
    fixed = torch.linalg.qr(signal @ probes[1]).Q
    stuck = fixed @ (fixed.T @ (signal + turn))
    assert (stuck - signal - turn).norm() > 0.5 * turn.norm()


def test_halves_are_cut_in_single_precision() -> None:
    weight = random(12, 7).bfloat16()
    probes = random(12, 3, seed=4), random(7, 3, seed=2)
    result = cut(weight, *probes, 0.5)
    assert result.dtype == torch.bfloat16
    assert torch.equal(result, cut(weight.float(), *probes, 0.5).bfloat16())


def test_ranks_stay_within_the_size_and_follow_the_worth() -> None:
    shapes = {"a": (40, 30), "b": (40, 30), "c": (8, 6)}
    worth = {"a": 9 * torch.ones(30), "b": torch.ones(30), "c": 1e6 * torch.ones(6)}
    ranks = shared_ranks(worth, shapes, 0.5)
    assert ranks["c"] is None  # each of its directions is worth more than any other
    assert ranks["a"] is not None
    assert ranks["b"] is not None
    assert ranks["a"] > ranks["b"] >= 1
    kept = 48 + 70 * (ranks["a"] + ranks["b"])
    assert kept <= 0.5 * (1200 + 1200 + 48) < kept + 2 * 70
    with pytest.raises(ValueError, match=r"size=0\.01 allows .* one direction per layer needs 154"):
        shared_ranks(worth, shapes, 0.01)
