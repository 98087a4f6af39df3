"""The methods whose options set how many directions are kept: `svd` and `slr`.

A direction is a singular value of a weight with its two singular vectors.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hf_rmt.checks import check_integer, check_number
from hf_rmt.compression.methods.spectral import SPECTRAL_OPTIONS, SpectralMethod
from hf_rmt.settings import COMMON_OPTIONS, CompressionSettings, Option, register_method

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from hf_rmt.compression.decision import Decision
    from hf_rmt.compression.spectrum import Decomposition
    from hf_rmt.spectra import SpectrumFit


def _share(name: str, value: Any) -> float | None:
    return None if value is None else check_number(name, value, "(0")


RANK = Option(
    "rank",
    None,
    lambda name, value: None if value is None else check_integer(name, value, 1),
    "For svd and slr: how many directions are kept. A layer with fewer directions keeps all. "
    "svd needs one of rank, energy and fraction; slr needs one of rank and fraction.",
    parse=int,
)
ENERGY = Option(
    "energy",
    None,
    _share,
    "For svd: the share of the squared Frobenius norm of a weight to keep, in (0, 1], with as few "
    "directions as possible.",
    parse=float,
)
FRACTION = Option(
    "fraction",
    None,
    _share,
    "For svd and slr: the share of a layer's directions that is kept, in (0, 1]. For magnitude and "
    "uniform: the share of its entries.",
    parse=float,
)


class TruncatedSVD(SpectralMethod):
    """Keeps the largest directions (singular values with their vectors), as many as options say."""

    name = "svd"
    help = "The largest singular directions, as many as rank, energy or fraction say."
    concurrent = True
    options: tuple[Option, ...] = (RANK, ENERGY, FRACTION, *SPECTRAL_OPTIONS)
    one_of: tuple[str, ...] = ("rank", "energy", "fraction")
    finds_law = False

    def fit(
        self, eigenvalues: NDArray[Any], shape: tuple[int, int], settings: CompressionSettings
    ) -> SpectrumFit:
        """Count the largest squared singular values as signal, as many as the options say.

        `SpectralMethod.fit` explains the arguments, and `SpectrumFit` explains the result.
        """
        from hf_rmt.spectra.truncation import truncate

        taken = {key: getattr(settings, key) for key in self.one_of}
        return truncate(eigenvalues, shape, **taken)


class SparseLowRank(TruncatedSVD):
    """Keeps the largest directions; in rows and columns with small entries, only some of them.

    A direction is a singular value of a weight with its two singular vectors.
    """

    name = "slr"
    help = "svd with zeros in the factors for weak rows and columns (Swaminathan et al. 2020)."
    options = (RANK, FRACTION, *SPECTRAL_OPTIONS)
    one_of = ("rank", "fraction")
    stores_noise = False

    def cut(
        self,
        name: str,
        weight: Tensor,
        found: Decomposition,
        settings: CompressionSettings,
        kept: Tensor | None = None,
    ) -> Decision:
        """Factor the largest directions, and set some entries of the factors to zero.

        A direction is a singular value with its vectors. `SpectralMethod.cut` explains the
        arguments. The plan in the decision holds the number of entries that are not zero.
        """
        from hf_rmt.compression.decision import Decision, SpikedBuild
        from hf_rmt.compression.pruning import sparse_factors
        from hf_rmt.compression.weight import (
            choose_directions,
            factored,
            plan_layer,
            relative_energies,
        )
        from hf_rmt.plan import Outcome

        chosen = choose_directions(name, weight, found, settings) if kept is None else kept
        if isinstance(chosen, Decision):
            return chosen
        plan = plan_layer(name, weight, found.fit, chosen, settings)
        left, right = sparse_factors(*found.factors(weight, chosen), weight)
        signal, lost = relative_energies(weight, left @ right)
        replaced = plan.outcome is Outcome.REPLACED
        stored = (left, right) if replaced else (left @ right,)
        plan = replace(
            plan,
            outcome=plan.outcome if replaced else Outcome.REWRITTEN,
            signal_energy=signal,
            dropped_energy=lost,
            nonzero=sum(int(tensor.count_nonzero()) for tensor in stored),
        )
        return factored(plan, found.fit, SpikedBuild(left, right, settings.noise))


def of_rank(settings: CompressionSettings, rank: int) -> CompressionSettings:
    """Settings of the method `svd` that keep `rank` directions of a weight.

    The options that every `SpectralMethod` has are copied from `settings`, except for
    `recover_spikes`, which `svd` cannot use.

    Args:
        settings: Settings of a `SpectralMethod`.
        rank: How many directions (singular values with their vectors) to keep.
    """
    options = {option.name for option in (*SPECTRAL_OPTIONS, *COMMON_OPTIONS)}
    shared = {name: getattr(settings, name) for name in options - {"recover_spikes"}}
    return CompressionSettings(method=TruncatedSVD.name, rank=rank, **shared)


register_method(TruncatedSVD())
register_method(SparseLowRank())
