"""Spikes of a noisy update, shrunk to what their vectors still tell."""

from __future__ import annotations

import pytest
import torch

from hf_rmt.compression.shrinkage import (
    along,
    leading_directions,
    optimal_singular_values,
    participation_ratio,
    shrunk_update,
)

ROWS, COLUMNS, NOISE = 400, 300, 0.05


@pytest.mark.parametrize("ratio", [0.25, 1.0])
def test_values_are_those_of_the_signal_times_the_cosines_of_its_vectors(ratio: float) -> None:
    """Benaych-Georges and Nadakuditi: y^2 = (x + 1/x)(x + b/x), and how far the vectors turn."""
    x = torch.tensor([1.2, 2.0, 5.0], dtype=torch.float64)
    y = torch.sqrt((x + 1 / x) * (x + ratio / x))
    left = torch.sqrt((x**4 - ratio) / (x**4 + ratio * x**2))
    right = torch.sqrt((x**4 - ratio) / (x**4 + x**2))
    rows = 100
    scale = NOISE * rows**0.5
    found = optimal_singular_values(y * scale, (int(ratio * rows), rows), NOISE)
    torch.testing.assert_close(found, x * left * right * scale)


def test_below_the_edge_nothing_is_left() -> None:
    edge = NOISE * (ROWS**0.5 + COLUMNS**0.5)
    values = torch.tensor([edge * 1.01, edge * 0.99, 0.0])
    found = optimal_singular_values(values, (ROWS, COLUMNS), NOISE)
    assert found[0] > 0
    assert found[1:].tolist() == [0.0, 0.0]
    assert not found.isnan().any()


def test_no_other_size_of_the_spikes_is_nearer_to_the_signal() -> None:
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(ROWS, 3, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(COLUMNS, 3, generator=generator)).Q
    edge = NOISE * (ROWS**0.5 + COLUMNS**0.5)
    signal = left * (edge * torch.tensor([3.0, 2.0, 1.5])) @ right.T
    update = signal + NOISE * torch.randn(ROWS, COLUMNS, generator=generator)
    shrunk, count = shrunk_update(update)
    assert count == 3
    error = (shrunk - signal).norm()
    # a percent of a spike moves the error by far more than the fluctuations of its optimum
    assert error <= min((scale * shrunk - signal).norm() for scale in (0.9, 1.1))
    u, s, v = torch.linalg.svd(update, full_matrices=False)
    assert error < (u[:, :3] * s[:3] @ v[:3] - signal).norm()


@pytest.mark.parametrize("scale", [1e-30, 0.005, 0.3, 40.0, 1e20])
@pytest.mark.parametrize("shape", [(400, 300), (300, 400), (200, 200)])
def test_the_scale_of_an_update_does_not_matter(shape: tuple[int, int], scale: float) -> None:
    generator = torch.Generator().manual_seed(1)
    left = torch.linalg.qr(torch.randn(shape[0], 3, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(shape[1], 3, generator=generator)).Q
    edge = shape[0] ** 0.5 + shape[1] ** 0.5
    update = torch.randn(shape, generator=generator)
    update += left * (edge * torch.tensor([3.0, 2.0, 1.5])) @ right.T
    plain, count = shrunk_update(update)
    scaled, same = shrunk_update(scale * update)
    assert same == count
    assert count in (3, 4)  # the published edge has no margin, so one noise value may pass
    torch.testing.assert_close(scaled / scale, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_update_that_is_not_finite_is_kept_as_it_is(value: float) -> None:
    update = torch.randn(40, 30)
    update[2, 3] = value
    found, count = shrunk_update(update)
    assert found is update
    assert count == 30


def test_an_update_of_few_directions_is_kept_as_it_is() -> None:
    update = torch.randn(40, 3) @ torch.randn(3, 30)
    assert shrunk_update(update.double())[0].equal(update.double())


def test_an_update_of_nothing_is_kept_as_it_is() -> None:
    nothing = torch.zeros(40, 30)
    assert torch.equal(shrunk_update(nothing)[0], nothing)


@pytest.mark.parametrize("shape", [(12, 9), (9, 12)])
def test_as_many_directions_lead_as_the_participation_ratio_says(shape: tuple[int, int]) -> None:
    update = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(update, full_matrices=False)
    count = round(float((s**2).sum() ** 2 / (s**4).sum()))
    assert 1 < count < 9
    part = along(update, *leading_directions(update))
    torch.testing.assert_close(part, u[:, :count] * s[:count] @ v[:count], rtol=1e-4, atol=1e-5)
    # the scale of an update does not matter, and an equal spread leaves everything
    tiny = along(update, *leading_directions(update * 1e-30))
    torch.testing.assert_close(tiny, part, rtol=1e-4, atol=1e-5)
    equal = u @ v
    torch.testing.assert_close(along(update, *leading_directions(equal)), update, atol=1e-5, rtol=0)


def test_an_update_of_nothing_leads_nowhere() -> None:
    nothing = torch.zeros(4, 3)
    assert not along(torch.ones(4, 3), *leading_directions(nothing)).any()
    assert participation_ratio(torch.zeros(3)) == 0.0


def test_what_lies_beside_the_directions_is_gone_and_the_rest_keeps_its_size() -> None:
    early = torch.outer(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0]))
    later = torch.tensor([[5.0, 3.0], [7.0, 2.0], [1.0, 1.0]])
    part = along(later, *leading_directions(early))
    torch.testing.assert_close(part, 3 * early)
