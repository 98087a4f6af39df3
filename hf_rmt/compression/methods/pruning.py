"""The compression methods that set entries of a weight to zero: `magnitude` and `uniform`."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hf_rmt.compression.methods.spectral import SPECTRAL_OPTIONS, SpectralMethod
from hf_rmt.compression.methods.truncation import FRACTION
from hf_rmt.settings import CompressionSettings, register_method

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from hf_rmt.compression.decision import Decision
    from hf_rmt.compression.spectrum import Decomposition
    from hf_rmt.spectra import SpectrumFit

ZEROS_IN_PLACE = "entries were zeroed in place, and zeros save no memory by themselves"


class Pruning(SpectralMethod):
    """The base class of methods that keep a share of a weight's entries and zero the others.

    The spectrum of the weight (the list of its squared singular values) is only reported. It has no
    effect on which entries stay.
    """

    options = (FRACTION, *SPECTRAL_OPTIONS)
    one_of = ("fraction",)
    finds_law = False
    stores_noise = False
    chooses_directions = False
    concurrent = True

    @abstractmethod
    def prune(self, weight: Tensor, fraction: float, generator: np.random.Generator) -> Tensor:
        """The weight with a share of its entries kept and all others set to zero.

        `fraction` is this share. `generator` is for methods that choose the entries at random.
        """

    def fit(
        self, eigenvalues: NDArray[Any], shape: tuple[int, int], settings: CompressionSettings
    ) -> SpectrumFit:
        """Return a fit in which none of the squared singular values counts as signal.

        `SpectralMethod.fit` explains the arguments, and `SpectrumFit` explains the result.
        """
        from hf_rmt.spectra.truncation import unsplit

        return unsplit(eigenvalues, shape)

    def cut(
        self,
        name: str,
        weight: Tensor,
        found: Decomposition,
        settings: CompressionSettings,
        kept: Tensor | None = None,
    ) -> Decision:
        """Set entries of a weight to zero; `SpectralMethod.cut` explains arguments and result.

        Some methods choose the entries at random; then all processes choose the same entries.
        """
        from hf_rmt.compression.decision import Decision, dense_plan
        from hf_rmt.compression.execution.seeding import layer_generator
        from hf_rmt.compression.weight import relative_energies
        from hf_rmt.plan import Cause, Outcome

        generator = layer_generator(settings.seed, name)
        pruned = self.prune(weight, settings.fraction, generator)
        signal, lost = relative_energies(weight, pruned)
        plan = replace(
            dense_plan(name, weight, Cause.ZEROS_IN_PLACE, ZEROS_IN_PLACE),
            outcome=Outcome.REWRITTEN,
            phase=str(found.fit.phase),
            signal_energy=signal,
            dropped_energy=lost,
            nonzero=int(pruned.count_nonzero()),
        )
        return Decision(plan, found.fit, rewritten=pruned)


class Magnitude(Pruning):
    """Keeps the entries of a weight with the largest absolute values, and sets others to zero."""

    name = "magnitude"
    help = "The largest entries stay, the others become zero (Han et al. 2015)."

    def prune(self, weight: Tensor, fraction: float, generator: np.random.Generator) -> Tensor:
        """Keep the largest entries; see `hf_rmt.compression.pruning.largest_entries`."""
        from hf_rmt.compression.pruning import largest_entries

        return largest_entries(weight, fraction=fraction)


class Uniform(Pruning):
    """Keeps random entries of a weight, and sets all others to zero."""

    name = "uniform"
    help = "Random entries stay, the others become zero."

    def prune(self, weight: Tensor, fraction: float, generator: np.random.Generator) -> Tensor:
        """Keep random entries; see `hf_rmt.compression.pruning.random_entries`."""
        from hf_rmt.compression.pruning import random_entries

        return random_entries(weight, fraction=fraction, generator=generator)


register_method(Magnitude())
register_method(Uniform())
