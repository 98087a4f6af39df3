from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hf_rmt.compression import spectrum as spectra
from hf_rmt.compression.methods.spectral import SPECTRAL_OPTIONS, SpectralMethod
from hf_rmt.compression.methods.truncation import RANK
from hf_rmt.settings import CompressionSettings, register_method, unregister_method
from hf_rmt.spectra import Phase, SpectrumFit
from hf_rmt.spectra.eigenvalues import RELATIVE_ZERO, sorted_eigenvalues
from hf_rmt.spectra.ensembles import double_bulk_matrix, heavy_tailed_matrix
from hf_rmt.spectra.split import without_law


def spectrum(weight: torch.Tensor, settings: CompressionSettings | None = None) -> SpectrumFit:
    """The fit of the double bulk, or of other settings."""
    return spectra.spectrum(weight, settings or CompressionSettings())


def decompose(
    weight: torch.Tensor, settings: CompressionSettings | None = None
) -> spectra.Decomposition:
    """The same, with vectors."""
    return spectra.decompose(weight, settings or CompressionSettings())


def spiked(shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    weight = double_bulk_matrix(
        shape, mixing=0.4, variances=(3.0, 1.0), spikes=(60.0, 40.0, 25.0), seed=3
    )
    return torch.from_numpy(weight).to(dtype)


@pytest.mark.parametrize("shape", [(200, 120), (120, 200), (150, 150)])
def test_factors_are_the_truncated_svd(shape: tuple[int, int]) -> None:
    weight = spiked(shape)
    found = decompose(weight)
    kept = torch.arange(found.fit.n_spikes)
    left, right = found.factors(weight, kept)
    u, s, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    k = len(kept)
    assert k == 3
    torch.testing.assert_close(
        (left @ right).double(), u[:, :k] * s[:k] @ vh[:k], rtol=0, atol=1e-5 * float(s[0])
    )


def test_factors_share_the_singular_value_evenly() -> None:
    weight = spiked((200, 120))
    left, right = decompose(weight).factors(weight, torch.arange(3))
    torch.testing.assert_close(left.norm(dim=0), right.norm(dim=1), rtol=1e-4, atol=0)


def test_chosen_directions_need_not_be_the_first() -> None:
    weight = spiked((200, 120))
    left, right = decompose(weight).factors(weight, torch.tensor([1, 5]))
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    expected = u[:, [1, 5]] * s[[1, 5]] @ vh[[1, 5]]
    torch.testing.assert_close(left @ right, expected, rtol=0, atol=1e-4 * float(s[0]))


def test_recovered_spikes_replace_the_eigenvalues() -> None:
    weight = spiked((400, 200))
    found = decompose(weight)
    ratio = found.recovery(torch.arange(5)).numpy()
    np.testing.assert_allclose(ratio[:3] ** 2 * found.fit.eigenvalues[:3], found.fit.spikes)
    assert (ratio[3:] == 1).all()
    np.testing.assert_allclose(found.fit.spikes, [60, 40, 25], rtol=0.25)
    assert (found.fit.spikes < found.fit.eigenvalues[:3]).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_eigenvalues_are_squared_singular_values(dtype: torch.dtype) -> None:
    weight = spiked((150, 100), dtype)
    expected = torch.linalg.svdvals(weight.double()) ** 2
    got = spectrum(weight).eigenvalues
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-6 * float(expected[0]))


@pytest.mark.parametrize("scale", [1e-15, 1e-6, 1e6, 1e15])
def test_scaling_a_weight_scales_its_eigenvalues_only(scale: float) -> None:
    weight = spiked((150, 100))
    plain, scaled = spectrum(weight), spectrum(weight * scale)
    assert scaled.n_spikes == plain.n_spikes
    np.testing.assert_allclose(scaled.eigenvalues, plain.eigenvalues * scale**2, rtol=1e-3)


def test_a_dominant_direction_does_not_drown_the_noise() -> None:
    """A spike of 1e5 times the edge leaves float32 squares nothing of the bulk."""
    weight = spiked((150, 100))
    direction = torch.ones(150, 1) @ torch.ones(1, 100)
    exact = torch.linalg.svdvals((weight + 3e3 * direction).double()) ** 2
    np.testing.assert_allclose(
        spectrum(weight + 3e3 * direction).eigenvalues[1:-1], exact[1:-1], rtol=1e-2
    )


def test_a_small_part_of_the_noise_is_not_taken_for_low_rank() -> None:
    """A fifth of the eigenvalues is 1e-7 of the largest, which float32 squares do not resolve."""
    left, _, right = torch.linalg.svd(spiked((150, 100), torch.float64), full_matrices=False)
    sizes = torch.cat([torch.linspace(1.0, 0.1, 80), torch.full((20,), 1e-7**0.5)]).double()
    weight = (left * sizes @ right).float()
    found = spectrum(weight)
    np.testing.assert_allclose(found.eigenvalues, sizes**2, rtol=1e-2)
    assert "rank" not in found.reason


def agree(weight: torch.Tensor) -> None:
    """The fits of a float32 weight and of its float64 copy find the same spikes and edge."""
    single, double = spectrum(weight), spectrum(weight.double())
    assert single.n_spikes == double.n_spikes
    assert single.upper_edge == pytest.approx(double.upper_edge, rel=1e-3)
    assert len(single.noise) == len(double.noise)
    assert single.phase is double.phase


@pytest.mark.parametrize("side", [96, 200])
@pytest.mark.parametrize("seed", range(4))
def test_the_dtype_of_a_square_weight_does_not_matter(side: int, seed: int) -> None:
    """The least eigenvalues of a square weight lie below the rounding of float32 squares."""
    weight = double_bulk_matrix(
        (side, side), mixing=0.3, variances=(4.0, 1.0), spikes=(300.0, 90.0), seed=seed
    )
    agree(torch.from_numpy(weight).float())


@pytest.mark.parametrize("null", [1, 4, 9])
def test_the_dtype_of_a_square_weight_with_few_null_directions_does_not_matter(null: int) -> None:
    left, sizes, right = torch.linalg.svd(spiked((200, 200), torch.float64))
    sizes[-null:] = 0
    weight = (left * sizes @ right).float()
    agree(weight)
    assert len(spectrum(weight).noise) + spectrum(weight).n_spikes == 200 - null


def test_the_dtype_of_a_trained_square_weight_does_not_matter(trained_bert: Path) -> None:
    tensors = load_file(next(trained_bert.rglob("model.safetensors")))
    for layer in (0, 4, 5):
        agree(tensors[f"encoder.layer.{layer}.attention.self.query.weight"])


def test_a_product_of_few_directions_is_seen_as_one() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(96, 8, generator=generator) @ torch.randn(8, 96, generator=generator)
    assert "rank 8 of 96" in spectrum(weight).reason


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (torch.full((60, 40), torch.nan), "nan or inf"),
        (torch.zeros(60, 40), "zero"),
        (torch.ones(60, 40), "rank 1 of 40"),
        (torch.randn(1, 40), "fewer"),
        (torch.randn(0, 40), ""),
    ],
)
def test_hopeless_weights_are_degenerate_with_a_reason(weight: torch.Tensor, words: str) -> None:
    found = decompose(weight)
    assert found.fit.phase == Phase.DEGENERATE
    assert words in found.fit.reason
    with pytest.raises(ValueError, match="degenerate"):
        found.factors(weight, torch.arange(0))


def test_the_weight_is_not_changed() -> None:
    weight = spiked((150, 100))
    before = weight.clone()
    decompose(weight).factors(weight, torch.arange(2))
    assert torch.equal(weight, before)


class KeepTwo(SpectralMethod):
    """A method of the file that a contributor writes."""

    name = "other"
    help = "Keeps two directions more than it is told."
    options = (RANK, *SPECTRAL_OPTIONS)
    one_of = ("rank",)
    finds_law = False

    def fit(
        self, eigenvalues: np.ndarray, shape: tuple[int, int], settings: CompressionSettings
    ) -> SpectrumFit:
        assert shape == (150, 100)
        values = sorted_eigenvalues(eigenvalues, shape)
        return without_law(shape, values, n_signal=settings.rank + 2, phase=Phase.LAWLESS)


def test_a_method_is_one_class_that_is_registered() -> None:
    register_method(KeepTwo())
    try:
        settings = CompressionSettings(method="other", rank=3, noise="drop")
        weight = spiked((150, 100))
        found = decompose(weight, settings)
        assert found.fit.n_spikes == spectrum(weight, settings).n_spikes == 5
        assert found.recovery(torch.arange(7)).tolist() == [1.0] * 7
        assert spectrum(weight).n_spikes == 3
    finally:
        unregister_method("other")
    with pytest.raises(ValueError, match="method must be one of pdb"):
        CompressionSettings(method="other", noise="drop")


def test_a_weight_that_no_law_fits_can_be_cut() -> None:
    weight = torch.ones(60, 1) @ torch.randn(1, 40) + torch.randn(60, 1) @ torch.randn(1, 40)
    settings = CompressionSettings(method="svd", rank=2)
    left, right = decompose(weight, settings).factors(weight, torch.arange(2))
    torch.testing.assert_close(left @ right, weight, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(200, 120), (120, 200), (150, 150)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_heavy_tailed_noise_is_no_signal_with_and_without_vectors(shape, dtype) -> None:
    weight = torch.from_numpy(heavy_tailed_matrix(shape, exponent=2.5, seed=1)).to(dtype)
    found, plain = decompose(weight).fit, spectrum(weight)
    assert "explained by the entries" in found.reason
    assert (found.phase, found.reason) == (plain.phase, plain.reason)
    assert found.phase is Phase.HEAVY_TAILED
    assert found.n_spikes > 0


def test_an_identity_has_no_law_and_no_signal() -> None:
    found = decompose(torch.eye(64))
    assert found.fit.phase is Phase.LAWLESS
    assert "orthogonal" in found.fit.reason
    assert found.fit.n_spikes == 0


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_a_scale_without_squares_is_named(scale: float) -> None:
    fit = spectrum(scale * spiked((80, 60), torch.float64))
    assert fit.phase is Phase.DEGENERATE
    assert "scale the weight" in fit.reason


@pytest.mark.parametrize("scale", [1e-151, 1e-130, 1e-99, 1e99, 1e130, 1e150])
def test_any_other_scale_changes_nothing(scale: float) -> None:
    weight = spiked((120, 80), torch.float64)
    assert spectrum(scale * weight).n_spikes == spectrum(weight).n_spikes == 3


@pytest.mark.parametrize("shape", [(40, 40), (300, 300), (60, 40)])
@pytest.mark.parametrize("times", [0.0, 0.5, 2.0, 100.0])
def test_the_rank_is_full_if_no_eigenvalue_is_below_the_limit(
    shape: tuple[int, int], times: float
) -> None:
    side = min(shape)
    generator = torch.Generator().manual_seed(side)
    bases = [
        torch.linalg.qr(torch.randn(rows, side, generator=generator, dtype=torch.float64)).Q
        for rows in shape
    ]
    values = torch.linspace(1, 2, side, dtype=torch.float64)
    values[0] = (times * RELATIVE_ZERO * side * 4) ** 0.5
    weight = bases[0] * values @ bases[1].T
    assert spectra._full_rank(weight, 4.0) == (times > 1)


def test_an_all_zero_row_and_a_repeated_one_are_no_full_rank() -> None:
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    for row, other in ((3, torch.zeros(64)), (3, weight[4].clone())):
        weight[row] = other
        assert not spectra._full_rank(weight, 200.0)
