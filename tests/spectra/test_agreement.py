from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest

from hf_rmt.spectra import DoubleBulk, MarchenkoPastur
from hf_rmt.spectra.agreement import kolmogorov_distance


@pytest.mark.parametrize("law", [MarchenkoPastur(2.0, 0.5), DoubleBulk(0.4, (4.0, 1.0), 1.0)])
@pytest.mark.parametrize("stretch", [0.8, 1.0, 1.3])
def test_it_is_the_statistic_of_the_one_sample_test(law: object, stretch: float) -> None:
    noise = stretch * law.quantile(np.random.default_rng(0).random(300))
    assert kolmogorov_distance(law, noise) == pytest.approx(kstest(noise, law.cdf).statistic)


def test_without_noise_there_is_no_distance() -> None:
    with pytest.raises(ValueError, match="at least 1 eigenvalue"):
        kolmogorov_distance(MarchenkoPastur(1.0, 0.5), [])
