"""The weight that most tests of one weight use."""

from __future__ import annotations

import pytest
import torch

from hf_rmt.spectra.ensembles import double_bulk_matrix
from tests.compression.decisions import SPIKES


@pytest.fixture(scope="module")
def weight() -> torch.Tensor:
    matrix = double_bulk_matrix((200, 120), mixing=0.4, variances=(3.0, 1.0), spikes=SPIKES, seed=3)
    return torch.from_numpy(matrix).float()
