"""The spectrum (eigenvalues of the weight) of one layer, as reports hold it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hf_rmt.report import records, tables
from hf_rmt.report.figures.bins import misfit_note
from hf_rmt.spectra import Phase, SpectrumFit

MISFITS = (Phase.HEAVY_TAILED, Phase.UNEVEN, Phase.DEGENERATE)
MISFIT = "hollow: the law of the noise does not hold"
"""What a hollow marker means in the figures of spectra. The law is the density that theory
predicts for noise."""


@dataclass(frozen=True)
class LayerSpectrum:
    """The spectrum (eigenvalues, which are squared singular values) of one weight.

    Args:
        name: Name of the module in the loaded model, as in `model.get_submodule(name)`.
        shape: Shape of the weight, (out_features, in_features).
        fit: The spectrum of the weight, split into noise and signal.

    Raises:
        ValueError: If `fit` belongs to a weight of another shape.
    """

    name: str
    shape: tuple[int, int]
    fit: SpectrumFit

    def __post_init__(self) -> None:
        if sorted(self.shape) != sorted(self.fit.shape):
            raise ValueError(
                f"the fit of layer {self.name!r} must have its shape {self.shape}, in any order, "
                f"got {self.fit.shape}; fit this layer's own eigenvalues"
            )

    @property
    def is_misfit(self) -> bool:
        """Whether the law, the density that theory predicts for noise, does not hold here.

        It is True for the phases `heavy-tailed`, `uneven entries` and `degenerate` (see
        `SpectrumFit`). Figures then show a hollow marker for the layer.
        """
        return self.fit.phase in MISFITS

    @property
    def notes(self) -> str:
        """What is unusual about the spectrum of this layer; empty if nothing is.

        For example, the text says why the law, the density that theory predicts for noise, does not
        hold, or that its fit did not converge.
        """
        fit = self.fit
        remarks = [fit.reason]
        if fit.noise_law is not None:
            gap = fit.noise_law.bulk_edges.ravel()[1:3]
            inside = fit.is_signal & (fit.eigenvalues > gap[0]) & (fit.eigenvalues < gap[-1])
            in_gap = f"{tables.counted(int(inside.sum()))} in the gap of the bulk"
            remarks.append(in_gap if inside.any() else "")
            remarks.append("" if fit.converged or fit.reason else "not converged")
            remarks.append(misfit_note(fit))
        return "; ".join(filter(None, remarks))

    def to_row(self) -> dict[str, Any]:
        """The row of the layer in a table: values by the names of their columns."""
        fit = self.fit
        mixing, first, second = records.parameters_of(fit.law)
        return {
            "name": self.name,
            "shape": tables.shape_text(self.shape),
            "phase": str(fit.phase),
            "spikes": fit.n_spikes,
            "signal_energy": tables.Share(fit.signal_energy),
            "stable_rank": fit.stable_rank,
            "edge": fit.upper_edge,
            "Kolmogorov_distance": fit.distance,
            "t": mixing,
            "sigma1^2": first,
            "sigma2^2": second,
            "notes": self.notes,
        }
