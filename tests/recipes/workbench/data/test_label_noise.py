from __future__ import annotations

from workbench.data.label_noise import shuffled_labels

import pytest


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_noise_permutes_the_labels_of_its_share(share: float) -> None:
    labels = list(range(1000))
    noisy = shuffled_labels(labels, share, seed=3)
    moved = sum(one != other for one, other in zip(labels, noisy, strict=True))
    assert sorted(noisy) == labels
    # a random permutation has one fixed point on average, more than 10 with probability 1e-8
    assert 1000 * share - 10 <= moved <= 1000 * share
    assert noisy == shuffled_labels(labels, share, seed=3)
    assert not share or noisy != shuffled_labels(labels, share, seed=4)


def test_noise_beyond_all_rows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"share must lie in \[0, 1\], got 1.5"):
        shuffled_labels([0, 1], 1.5, seed=0)
