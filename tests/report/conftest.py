from __future__ import annotations

import pytest

from hf_rmt.plan import CompressionPlan
from hf_rmt.report import SpectralReport
from hf_rmt.spectra import Phase
from tests.report.samples import (
    dense_plan,
    layer_plan,
    make_degenerate,
    make_fit,
    spectral_report,
)


@pytest.fixture
def report() -> SpectralReport:
    tail = "the number of spikes keeps growing: 30 of 100"
    return spectral_report(
        {
            "encoder.layer.0.key": make_fit(spikes=(40.0, 30.0)),
            "encoder.layer.0.mlp": make_fit(spikes=(900.0, 90.0, 30.0)),
            "encoder.layer.1.key": make_fit(phase=Phase.RANDOM),
            "encoder.layer.1.mlp": make_fit(
                spikes=(50.0,), phase=Phase.HEAVY_TAILED, reason=tail, converged=False
            ),
            "head": make_degenerate(),
        }
    )


@pytest.fixture
def plan() -> CompressionPlan:
    return CompressionPlan(
        (layer_plan(), layer_plan("blocks.0.mlp", rank=7, latency=1.5), dense_plan())
    )
