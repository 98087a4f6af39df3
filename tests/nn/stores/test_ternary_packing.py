from __future__ import annotations

import itertools

import pytest
import torch

from hf_rmt.nn.stores.ternary_packing import (
    from_fifths,
    pack_trits,
    ternarize,
    to_fifths,
    unpack_trits,
)

SIDES = [*itertools.product(range(1, 10), range(1, 10)), (2, 384), (33, 131)]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def trits(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(-1, 2, shape, generator=generator, dtype=torch.int8)


def test_packing_every_size() -> None:
    for shape in SIDES:
        signs, size = trits(*shape), shape[0] * shape[1]
        four, five = pack_trits(signs), to_fifths(signs)
        assert four.dtype == five.dtype == torch.int8
        assert four.shape == (1, -(-size // 4))
        assert five.shape == (-(-size // 5),)
        assert torch.equal(unpack_trits(four, shape), signs)
        assert torch.equal(from_fifths(five, shape), signs)


@pytest.mark.parametrize("members", [4, 5])
def test_packing_every_byte(members: int) -> None:
    signs = torch.tensor([*itertools.product((-1, 0, 1), repeat=members)], dtype=torch.int8)
    shape = tuple(signs.T.shape)
    assert torch.equal(unpack_trits(pack_trits(signs.T), shape), signs.T)
    assert torch.equal(from_fifths(to_fifths(signs.T), shape), signs.T)


def least_error(row: list[float]) -> tuple[float, float]:
    """Squared error and scale of the best of all ternary rows, tried one by one."""
    best = (sum(w * w for w in row), 0.0)
    for signs in itertools.product((-1, 0, 1), repeat=len(row)):
        kept = sum(s * s for s in signs)
        if kept:
            scale = sum(s * w for s, w in zip(signs, row, strict=True)) / kept
            error = sum((w - scale * s) ** 2 for s, w in zip(signs, row, strict=True))
            best = min(best, (error, scale))
    return best


def test_least_error_is_the_least_of_all() -> None:
    weight = normal(12, 6).double() ** 3
    signs, scales = ternarize(weight)
    for row, sign, scale in zip(weight, signs, scales, strict=True):
        error, best_scale = least_error(row.tolist())
        assert (row - scale * sign).square().sum().item() == pytest.approx(error, rel=1e-12)
        assert abs(scale.item()) == pytest.approx(abs(best_scale), rel=1e-12)


def test_one_scale_for_the_tensor_is_that_of_one_long_row() -> None:
    weight = normal(7, 9)
    signs, scales = ternarize(weight, scale="tensor")
    flat, scale = ternarize(weight.view(1, -1))
    assert torch.equal(signs, flat.view(7, 9))
    assert torch.equal(scales, scale)


@pytest.mark.parametrize("scale", ["row", "tensor"])
@pytest.mark.parametrize(("sparsity", "zeros"), [(0.0, 0), (0.25, 2), (0.9, 7), (1.0, 8)])
def test_requested_sparsity(scale: str, sparsity: float, zeros: int) -> None:
    weight = normal(5, 8)
    signs, scales = ternarize(weight, sparsity=sparsity, scale=scale)
    if scale == "row":
        assert (signs == 0).sum(1).tolist() == [zeros] * 5
    else:
        assert (signs == 0).sum() == round(sparsity * 40)
    kept = signs != 0
    assert torch.equal(signs[kept].float(), weight[kept].sign())
    if 0 < sparsity < 1 and scale == "tensor":
        assert weight[kept].abs().min() > weight[~kept].abs().max()
    expected = (weight.abs() * kept).sum(1) / kept.sum(1).clamp_min(1)
    if scale == "row":
        torch.testing.assert_close(scales, expected)
    else:
        mean = weight[kept].abs().mean() if kept.any() else torch.tensor(0.0)
        torch.testing.assert_close(scales, mean.view(1))


def test_ties_and_zeros() -> None:
    weight = torch.tensor([[2.0, -2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0]])
    signs, scales = ternarize(weight, sparsity=0.5)
    assert signs.abs().sum(1).tolist() == [2, 0, 1]
    assert scales.tolist() == [2.0, 0.0, 3.0]
    assert ternarize(weight)[1].tolist() == [2.0, 0.0, 3.0]


def test_a_ternary_weight_stays_itself() -> None:
    weight = trits(20, 300) * torch.linspace(0.1, 2.0, 20)[:, None]
    signs, scales = ternarize(weight)
    assert torch.equal(signs * scales[:, None], weight)


def test_rows_in_chunks_are_as_rows_at_once() -> None:
    weight = normal(90, 1500)
    signs, scales = ternarize(weight)
    for row in (0, 44, 89):
        one, scale = ternarize(weight[row : row + 1])
        assert torch.equal(signs[row], one[0])
        assert scales[row] == scale


@pytest.mark.parametrize("sparsity", [-0.1, 1.1, float("nan")])
def test_sparsity_out_of_range(sparsity: float) -> None:
    with pytest.raises(ValueError, match=r"sparsity must lie in \[0, 1\]"):
        ternarize(normal(2, 2), sparsity=sparsity)


def test_unknown_scale_and_bad_weights() -> None:
    with pytest.raises(ValueError, match="scale must be one of row, tensor, got 'column'"):
        ternarize(normal(2, 2), scale="column")
    with pytest.raises(ValueError, match="nan or inf"):
        ternarize(torch.tensor([[1.0, float("inf")]]))
