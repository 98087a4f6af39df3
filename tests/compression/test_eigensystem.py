"""Eigenvalues and chosen eigenvectors: exact, the same bits in any company, on any thread."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from hf_rmt.compression.calibration.excited import excited_directions
from hf_rmt.compression.calibration.low_rank import LayerMoments, low_rank
from hf_rmt.compression.eigensystem import (
    Eigenvectors,
    TridiagonalForm,
    eigensystem,
    eigenvectors_of,
)
from hf_rmt.compression.execution.threads import map_over_threads, suited_threads
from hf_rmt.compression.lapack import lapack

SIDES = [1, 2, 3, 40, 200]
DTYPES = [torch.float32, torch.float64]


def matrices(side: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Symmetric matrices that are easy and hard: spikes, equal eigenvalues, low rank, nothing."""
    generator = torch.Generator().manual_seed(side)
    x = torch.randn(2 * side, side, generator=generator, dtype=torch.float64)
    spiked = x.clone()
    spiked[:, 0] *= 30
    low = x[:, : side // 2] @ x[: side // 2] if side > 1 else x
    made = {
        "noise": x.T @ x,
        "spiked": spiked.T @ spiked,
        "low rank": low.T @ low,
        "indefinite": x[:side] + x[:side].T,
        "identity": torch.eye(side, dtype=torch.float64),
        "zero": torch.zeros(side, side, dtype=torch.float64),
    }
    return {name: matrix.to(dtype) for name, matrix in made.items()}


def chosen_positions(side: int) -> list[torch.Tensor]:
    """None, the first, two runs, every second one, all."""
    runs = sorted({0, 1, side - 2, side - 1} & set(range(side)))
    return [
        torch.arange(0),
        torch.arange(1),
        torch.tensor(runs),
        torch.arange(0, side, 2),
        torch.arange(side),
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side", SIDES)
def test_values_and_vectors_solve_the_eigenproblem(side: int, dtype: torch.dtype) -> None:
    epsilon = torch.finfo(dtype).eps
    # The reference is in float64, and so are the vectors of the tridiagonal matrix.
    of_values, of_vectors = {torch.float32: (4, 40), torch.float64: (40, 1000)}[dtype]
    for name, matrix in matrices(side, dtype).items():
        values, basis = eigensystem(matrix.clone())
        exact = torch.linalg.eigvalsh(matrix.double()).flip(0)
        size = float(exact.abs().amax())
        assert values.dtype == dtype
        assert float((values.double() - exact).abs().amax()) <= of_values * epsilon * size, name
        for positions in chosen_positions(side):
            vectors = basis.chosen(positions)
            assert vectors.shape == (side, len(positions))
            assert vectors.dtype == dtype
            wide, identity = vectors.double(), torch.eye(len(positions), dtype=torch.float64)
            rest = matrix.double() @ wide - wide * values[positions].double()
            torch.testing.assert_close(wide.T @ wide, identity, rtol=0, atol=of_vectors * epsilon)
            assert (
                float(rest.norm(dim=0).amax() if len(positions) else 0)
                <= of_vectors * epsilon * size
            )


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_the_same_positions_give_the_same_bits(share: float) -> None:
    """After other positions were asked for, after a copy, and beside other threads."""
    matrix = matrices(200, torch.float32)["spiked"]
    positions = torch.arange(int(200 * share))
    wanted = eigensystem(matrix.clone())[1].chosen(positions).clone()
    basis = eigensystem(matrix.clone())[1]
    basis.chosen(torch.arange(0, 200, 3))
    assert torch.equal(basis.chosen(positions), wanted)
    assert torch.equal(basis.chosen(positions), wanted)
    copy = eigenvectors_of({name: part.clone() for name, part in basis.tensors().items()})
    assert torch.equal(copy.chosen(positions), wanted)

    def work(_: int) -> torch.Tensor:
        return eigensystem(matrix.clone())[1].chosen(positions)

    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        found = list(map_over_threads(work, range(20), [matrix.shape] * 20))
    finally:
        torch.set_num_threads(before)
    assert len(found) == 20
    assert all(torch.equal(each, wanted) for each in found)


@pytest.mark.parametrize("side", [24, 48, 64, 200])
@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_the_number_of_threads_does_not_matter(side: int, share: float) -> None:
    matrix, positions = matrices(side, torch.float32)["noise"], torch.arange(int(side * share))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            values, basis = eigensystem(matrix.clone())
            found.append((values, basis.chosen(positions)))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *found))


def test_vectors_of_other_devices_are_computed_when_they_are_needed() -> None:
    matrix = matrices(40, torch.float64)["noise"]
    all_columns = torch.linalg.eigh(matrix).eigenvectors.flip(1)
    positions = torch.tensor([0, 7, 39])
    for basis in (Eigenvectors(matrix=matrix), Eigenvectors(all_columns)):
        again = eigenvectors_of(basis.tensors())
        assert torch.equal(basis.chosen(positions), all_columns[:, positions])
        assert torch.equal(again.chosen(positions), all_columns[:, positions])


def test_all_vectors_where_lapack_cannot_compute_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise np.linalg.LinAlgError

    matrix, positions = matrices(40, torch.float64)["noise"], torch.arange(2)
    wanted = eigensystem(matrix.clone())[1].chosen(positions)
    monkeypatch.setattr("hf_rmt.compression.eigensystem.eigh_tridiagonal", fail)
    found = eigensystem(matrix.clone())[1].chosen(positions)
    torch.testing.assert_close(found.abs(), wanted.abs())


def test_an_error_of_lapack_is_one_of_linear_algebra() -> None:
    with pytest.raises(torch.linalg.LinAlgError, match="dsterf ended with info=-1"):
        lapack("dsterf", -1, np.zeros(1), np.zeros(1))


def numbers_of_threads() -> set[int]:
    return {each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"}


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_numpy_uses_as_many_threads_as_are_suited(threads: int) -> None:
    """One for small weights, also on the threads of a pool; afterwards as many as before."""
    small, large = (24, 24), (2048, 2048)
    before, seen = torch.get_num_threads(), []
    with threadpool_limits(4, user_api="blas"):
        if not numbers_of_threads():
            pytest.skip("NumPy and SciPy use a library whose threads cannot be set")

        def work(_: int) -> tuple[set[int], int]:
            return numbers_of_threads(), torch.get_num_threads()

        torch.set_num_threads(threads)
        try:
            seen = list(map_over_threads(work, range(4), [small, small, large, small]))
            with suited_threads(small):
                seen.append(work(0))
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
        assert seen == [({n}, n) for n in (1, 1, threads, 1, 1)]
        assert numbers_of_threads() == {4}


def test_matrices_on_the_cpu_are_decomposed_under_any_default_device() -> None:
    weight, matrix = torch.randn(40, 30), matrices(40, torch.float64)["noise"]
    positions = torch.arange(3)
    with torch.device("meta"):
        values, basis = eigensystem(matrix.clone())
        found, factors = basis.chosen(positions), low_rank(weight, 4)
        directions = excited_directions(weight, LayerMoments(torch.eye(30, device="cpu")))
    assert values.device == found.device == factors[0].device == directions[0].device
    assert found.device.type == "cpu"


def test_a_matrix_is_reduced_in_place() -> None:
    matrix = matrices(40, torch.float32)["noise"]
    form = TridiagonalForm.of(matrix)
    assert form.reflections.data_ptr() == matrix.data_ptr()
