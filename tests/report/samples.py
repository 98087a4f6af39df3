"""Spectra and plans with known content, built by hand: no estimator takes part."""

from __future__ import annotations

import numpy as np

from hf_rmt.plan import LayerPlan, Outcome
from hf_rmt.report import LayerSpectrum, SpectralReport
from hf_rmt.spectra import DoubleBulk, MarchenkoPastur, Phase, SpectrumFit

ROWS, COLUMNS = 200, 100


def make_fit(*, spikes=(), variances=(4.0, 1.0), phase=Phase.SPIKED, **changes) -> SpectrumFit:
    law = DoubleBulk(0.4, variances, (COLUMNS - len(spikes)) / ROWS)
    n_noise = COLUMNS - len(spikes)
    noise = law.quantile((np.arange(n_noise) + 0.5) / n_noise)[::-1]
    fields = {
        "shape": (ROWS, COLUMNS),
        "eigenvalues": np.concatenate([np.sort(spikes)[::-1], noise]),
        "law": law,
        "is_signal": np.arange(COLUMNS) < len(spikes),
        "upper_edge": 1.05 * law.upper_edge,
        "residual": 0.1,
        "distance": 0.02,
        "converged": True,
        "phase": phase,
    }
    return SpectrumFit(**{**fields, **changes})


def make_degenerate(eigenvalues=None, reason="the matrix is zero", **changes) -> SpectrumFit:
    nan = float("nan")
    fields = {
        "eigenvalues": np.zeros(COLUMNS) if eigenvalues is None else eigenvalues,
        "law": None,
        "is_signal": np.zeros(COLUMNS, dtype=bool),
        "upper_edge": nan,
        "residual": nan,
        "distance": nan,
        "converged": False,
        "phase": Phase.DEGENERATE,
        "reason": reason,
    }
    return make_fit(**{**fields, **changes})


def make_unit(spikes=(40.0,)) -> SpectrumFit:
    """A unit bulk of variance 2, as a baseline fits it."""
    law = MarchenkoPastur(2.0, COLUMNS / ROWS)
    n_noise = COLUMNS - len(spikes)
    noise = law.quantile((np.arange(n_noise) + 0.5) / n_noise)[::-1]
    values = np.concatenate([np.sort(spikes)[::-1], noise])
    return make_fit(spikes=spikes, eigenvalues=values, law=law, published=True)


def make_cut(count=30) -> SpectrumFit:
    """A spectrum cut after so many directions, by no law."""
    return make_degenerate(
        make_fit(spikes=(40.0,)).eigenvalues,
        reason="",
        is_signal=np.arange(COLUMNS) < count,
        phase=Phase.LAWLESS,
    )


def spectral_report(fits) -> SpectralReport:
    return SpectralReport(
        tuple(
            LayerSpectrum(name, (COLUMNS, ROWS) if k % 2 else (ROWS, COLUMNS), fit)
            for k, (name, fit) in enumerate(fits.items())
        )
    )


def layer_plan(name="blocks.0.key", **changes) -> LayerPlan:
    fields = {
        "name": name,
        "shape": (100, 200),
        "outcome": Outcome.REPLACED,
        "rank": 3,
        "noise": "int8",
        "phase": "bulk+spikes",
        "n_spikes": 3,
        "upper_edge": 9.0,
        "signal_energy": 0.25,
        "dropped_energy": 0.0,
        "bits": 200_000,
        "dense_bits": 640_000,
    }
    return LayerPlan(**{**fields, **changes})


def dense_plan(name="blocks.1.key", reason="nothing gained", **changes) -> LayerPlan:
    fields = {
        "outcome": Outcome.KEPT,
        "rank": 0,
        "noise": "keep",
        "bits": 0,
        "signal_energy": 0.0,
        "reason": reason,
    }
    return layer_plan(name, **{**fields, **changes})
