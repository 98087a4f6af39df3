from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from hf_rmt.nn import LatentTernaryLinear, TernaryLinear


def linear(outputs: int = 3, inputs: int = 40) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs)


@pytest.mark.parametrize("sparsity", [None, 0.0, 0.6])
@pytest.mark.parametrize("scale", ["row", "tensor"])
def test_forward_is_that_of_the_frozen_layer(sparsity: float | None, scale: str) -> None:
    latent = LatentTernaryLinear.from_linear(linear(), sparsity=sparsity, scale=scale)
    frozen = latent.freeze()
    assert isinstance(frozen, TernaryLinear)
    assert frozen.scale.shape == ((3,) if scale == "row" else (1,))
    x = torch.randn(7, 40)
    assert torch.equal(latent(x), nn.functional.linear(x, frozen.dense(), frozen.bias))
    assert torch.equal(
        frozen.dense(), TernaryLinear.from_linear(linear(), sparsity=sparsity, scale=scale).dense()
    )


def test_gradient_passes_straight_through() -> None:
    latent = LatentTernaryLinear.from_linear(linear(), sparsity=0.5)
    x = torch.randn(7, 40, requires_grad=True)
    other = torch.randn(7, 3)
    (latent(x) * other).sum().backward()
    torch.testing.assert_close(latent.weight.grad, other.T @ x.detach())
    torch.testing.assert_close(latent.bias.grad, other.sum(0))
    torch.testing.assert_close(x.grad, other @ latent.freeze().dense())


def test_parameters_and_state_are_those_of_the_linear() -> None:
    dense = linear()
    latent = LatentTernaryLinear.from_linear(dense.eval())
    assert latent.weight is dense.weight
    assert latent.bias is dense.bias
    assert not latent.training
    nn.Linear(40, 3).load_state_dict(latent.state_dict())
    assert LatentTernaryLinear.from_linear(nn.Linear(4, 2, bias=False)).bias is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", ["row", "tensor"])
def test_a_ternary_layer_begins_to_train_where_it_was(scale: str, dtype: torch.dtype) -> None:
    ternary = TernaryLinear.from_linear(linear().to(dtype), sparsity=0.7, scale=scale)
    ternary.scale.mul_(torch.linspace(0.5, 2.0, len(ternary.scale)))
    latent = LatentTernaryLinear.from_ternary(ternary.eval())
    x = torch.randn(7, 40, dtype=dtype)
    expected = nn.functional.linear(x, ternary.dense(), ternary.bias)
    assert torch.equal(latent(x), expected)
    assert latent(x).dtype == dtype
    assert latent.bias is ternary.bias
    assert latent.weight.requires_grad
    assert latent.weight.dtype == torch.float32
    assert not latent.training
    again = latent.freeze()
    assert torch.equal(again.dense(dtype), ternary.dense())
    assert torch.equal(again.scale.to(dtype), ternary.scale)


def test_a_sparsity_that_was_asked_for_is_kept() -> None:
    sparse = TernaryLinear.from_linear(linear(), sparsity=0.9)
    free = TernaryLinear.from_linear(linear())
    for ternary, counts in ((sparse, {36}), (free, None)):
        latent = LatentTernaryLinear.from_ternary(ternary)
        with torch.no_grad():
            latent.weight.add_(torch.randn(3, 40))
        zeros = set((latent.freeze().dense() == 0).sum(1).tolist())
        assert zeros == counts if counts else len(zeros) > 1


def test_copies() -> None:
    latent = LatentTernaryLinear.from_linear(linear(), sparsity=0.7, scale="tensor")
    x = torch.randn(2, 40)
    for other in (copy.deepcopy(latent), pickle.loads(pickle.dumps(latent))):
        assert torch.equal(other(x), latent(x))
    assert "sparsity=0.7, scale='tensor'" in repr(latent)


def test_training_heals_what_rounding_to_ternary_broke() -> None:
    torch.manual_seed(1)
    x = torch.randn(400, 40)
    labels = (linear()(x)).argmax(1)
    latent = LatentTernaryLinear.from_linear(linear())
    loss = nn.CrossEntropyLoss()
    before = loss(latent.freeze()(x), labels).item()
    optimizer = torch.optim.SGD(latent.parameters(), lr=0.3)
    for _ in range(60):
        optimizer.zero_grad()
        loss(latent(x), labels).backward()
        optimizer.step()
    assert loss(latent.freeze()(x), labels).item() < 0.5 * before


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="sparsity must lie"):
        LatentTernaryLinear(4, 2, sparsity=2.0)
    with pytest.raises(ValueError, match="scale must be one of"):
        LatentTernaryLinear(4, 2, scale="channel")
