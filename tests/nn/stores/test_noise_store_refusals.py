from __future__ import annotations

import math

import pytest
import torch

from hf_rmt.nn import NOISE_KINDS, NoiseStore, stored_bits
from hf_rmt.nn.stores.codebooks import CODEBOOKS
from tests.nn.stores.filled import filled, gaussian

PACKED = tuple(CODEBOOKS)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_weights_are_refused(bad: float) -> None:
    weight = gaussian(4, 4)
    weight[1, 2] = bad
    with pytest.raises(ValueError, match="nan, inf"):
        filled("int8", weight)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"noise must be one of .* got 'int3'"):
        NoiseStore("int3", 4, 4)
    with pytest.raises(ValueError, match="got 'int3'"):
        stored_bits((4, 4), 1, "int3", dtype=torch.float32)
    with pytest.raises(ValueError, match=r"shape \(4, 4\), got \(4, 5\)"):
        NoiseStore("int8", 4, 4).store(torch.zeros(4, 5))
    with pytest.raises(ValueError, match="stores no noise"):
        NoiseStore("drop", 4, 4).dense()


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_what_was_stored_passes_the_check(kind: str) -> None:
    filled(kind, gaussian(9, 70)).check()
    filled(kind, torch.zeros(3, 5)).check()


@pytest.mark.parametrize("kind", [*PACKED, "keep"])
def test_every_tensor_is_checked(kind: str) -> None:
    """Missing, of another shape, of another dtype: each is refused under its name."""
    for name in dict(filled(kind, gaussian(9, 70)).named_buffers()):
        for bad, words in (
            (lambda t: t.to("meta"), "was not loaded"),
            (lambda t: t[:-1] if len(t) > 1 else torch.cat([t, t]), "must have shape"),
            (lambda t: t.to(torch.int16), "must be"),
        ):
            store = filled(kind, gaussian(9, 70))
            setattr(store, name, bad(getattr(store, name)))
            with pytest.raises(ValueError, match=f"noise.{name} {words}"):
                store.check()


@pytest.mark.parametrize("base", [math.nan, math.inf, -1.0])
def test_a_scale_that_cannot_be_is_refused(base: float) -> None:
    store = filled("int8", gaussian(9, 70))
    store.base.copy_(torch.tensor([base]).view(torch.int32))
    with pytest.raises(ValueError, match="largest scale and must be finite"):
        store.check()


def test_codes_that_no_five_trits_have_are_refused() -> None:
    store = filled("ternary", gaussian(9, 70))
    store.codes[3] = 243
    with pytest.raises(ValueError, match="must be below 243, got 243"):
        store.check()


@pytest.mark.parametrize("kind", PACKED)
def test_weights_below_the_range_of_the_scales_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="scales in float32 need"):
        filled(kind, gaussian(8, 80).double() * 1e-60)
    filled("keep", gaussian(8, 80).double() * 1e-60).check()
    filled(kind, torch.zeros(8, 80).double())
