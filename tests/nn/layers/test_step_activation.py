from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from hf_rmt.nn import StepActivation

ONE = ([-0.7, 1.3], [2.1, 0.0, 2.1], 0.6)
TWO = ([-1.7, -0.4, 0.3, 1.6], [0.9, 0.0, 1.4, 0.0, 0.9], 0.25)
MANY = ([-2.0, -1.1, 0.0, 0.1, 0.7, 3.0], [3.0, 1.0, -2.0, 0.5, 0.0, 7.0, -1.0], -0.3)
CASES = pytest.mark.parametrize("case", [ONE, TWO, MANY])


def steps(case: tuple[list[float], list[float], float], **options: object) -> StepActivation:
    thresholds, heights, mean = case
    return StepActivation(thresholds, heights, mean=mean, **options)


def around(thresholds: list[float], dtype: type[np.floating]) -> np.ndarray:
    """The thresholds, their neighbours in the dtype, and a grid."""
    at = np.array(thresholds, dtype)
    below, above = np.nextafter(at, dtype(-np.inf)), np.nextafter(at, dtype(np.inf))
    return np.concatenate([at, below, above, np.linspace(-5, 5, 101, dtype=dtype), [-1e9, 1e9]])


@CASES
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_at_and_beside_thresholds(
    case: tuple[list[float], list[float], float], dtype: type[np.floating]
) -> None:
    thresholds, heights, mean = case
    x = around(thresholds, dtype).astype(dtype)
    places = np.searchsorted(np.array(thresholds, dtype), x)
    expected = np.array(heights, dtype)[places] - dtype(mean)
    activation = steps(case, dtype=torch.from_numpy(x).dtype)
    assert np.array_equal(activation(torch.from_numpy(x)).numpy(), expected)
    ready = torch.from_numpy(x).requires_grad_()
    assert np.array_equal(activation(ready).detach().numpy(), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_inputs_of_another_dtype(dtype: torch.dtype) -> None:
    x = torch.linspace(-3, 3, 61).to(dtype)
    result = steps(TWO)(x)
    assert result.dtype == dtype
    heights, mean = np.array(TWO[1], np.float32), np.float32(TWO[2])
    thresholds = np.array(TWO[0], np.float32)
    expected = heights[np.searchsorted(thresholds, x.double().numpy())] - mean
    torch.testing.assert_close(result, torch.tensor(expected).to(dtype), rtol=1e-6, atol=1e-6)


@CASES
def test_gradient_is_that_of_the_triangles(
    case: tuple[list[float], list[float], float],
) -> None:
    thresholds, heights, _ = case
    width = 0.4
    x = torch.linspace(-4, 4, 333, dtype=torch.float64).requires_grad_()
    steps(case, width=width, dtype=torch.float64)(x).sum().backward()
    expected = np.zeros(333)
    for threshold, low, high in zip(thresholds, heights, heights[1:], strict=False):
        distance = np.abs(x.detach().numpy() - threshold) / width
        expected += (high - low) * np.maximum(0, 1 - distance) / width
    np.testing.assert_allclose(x.grad.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("surrogate", [torch.tanh, nn.GELU()])
def test_gradient_of_a_surrogate(surrogate: nn.Module) -> None:
    x = torch.linspace(-4, 4, 50).requires_grad_()
    other = torch.linspace(1, 2, 50)
    (steps(ONE, surrogate=surrogate)(x) * other).sum().backward()
    y = x.detach().clone().requires_grad_()
    (surrogate(y) * other).sum().backward()
    assert torch.equal(x.grad, y.grad)


def test_a_network_of_steps_trains() -> None:
    torch.manual_seed(0)
    x = torch.randn(300, 4)
    labels = (x[:, 0] * x[:, 1] > 0).long()
    model = nn.Sequential(nn.Linear(4, 32), steps(TWO), nn.Linear(32, 2))
    first = model[0].weight.detach().clone()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(80):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
    assert not torch.equal(model[0].weight, first)
    assert (model(x).argmax(1) == labels).float().mean() > 0.9


@pytest.mark.parametrize("surrogate", [None, nn.GELU()])
def test_copies_and_state(surrogate: nn.Module | None) -> None:
    activation, x = steps(MANY, surrogate=surrogate, width=0.2), torch.linspace(-3, 4, 99)
    empty = StepActivation([0, 1, 2, 3, 4, 5], [0] * 7)
    empty.load_state_dict(activation.state_dict())
    for other in (copy.deepcopy(activation), pickle.loads(pickle.dumps(activation)), empty):
        assert torch.equal(other(x), activation(x))
    assert "thresholds=[-2.0, " in repr(activation)
    assert "mean=-0.3" in repr(activation)


def test_compiled_and_autocast() -> None:
    activation, x = steps(TWO), torch.linspace(-3, 3, 50)
    assert torch.equal(torch.compile(activation, backend="aot_eager")(x), activation(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(activation(x), activation(x.clone()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.0], [1.0]), "1 thresholds need 2 heights, one for each piece, got 1"),
        (([1.0, 0.0], [1.0, 2.0, 3.0]), "thresholds must increase"),
        (([0.0, 0.0], [1.0, 2.0, 3.0]), "thresholds must increase"),
        (([0.0, float("inf")], [1.0, 2.0, 3.0]), "must be finite"),
        (([0.0], [1.0, float("nan")]), "must be finite"),
    ],
)
def test_bad_steps(arguments: tuple[list[float], list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StepActivation(*arguments)


def test_bad_width() -> None:
    with pytest.raises(ValueError, match="width must be positive, got 0"):
        StepActivation([0.0], [0.0, 1.0], width=0)
