from __future__ import annotations

import copy
import io
import math
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hf_rmt.nn import NOISE_KINDS, NoiseStore, stored_bits
from hf_rmt.nn.stores.codebooks import CODEBOOKS, HALF_WIDTH, LEVELS, SPIRAL
from hf_rmt.nn.stores.packing import CHUNK
from hf_rmt.settings import PACKED_KINDS
from tests.nn.stores.filled import filled, gaussian

PACKED = tuple(CODEBOOKS)
GAUSSIAN_ERROR = {"int8": 1.9e-5, "int4": 4.9e-3, "ternary": 0.19}
"""Squared error over that of the noise: what the closed forms promise on 2^18 Gaussians, with 5 %
to spare."""
SHAPES = [(1, 1), (1, 3), (3, 1), (2, 2), (5, 7), (1, 129), (129, 1), (9, 640), (641, 3)]


def relative_error(kind: str, weight: torch.Tensor) -> float:
    error = filled(kind, weight).dense().double() - weight.double()
    return float(error.square().sum() / weight.double().square().sum())


def uniform_least_error(weight: torch.Tensor, bits: int, group: int) -> float:
    """Relative error of a uniform grid whose scale is the best of 60 for each group."""
    groups = weight.reshape(-1, group)
    top = 2 ** (bits - 1)
    best = torch.full((len(groups),), torch.inf)
    for factor in torch.linspace(0.4, 1.1, 60):
        scale = groups.abs().amax(1, keepdim=True) / top * factor
        error = (groups / scale).round().clamp(-top, top - 1) * scale - groups
        best = torch.minimum(best, error.square().sum(1))
    return float(best.sum() / weight.square().sum())


def naive_dense(store: NoiseStore) -> torch.Tensor:
    """The format read weight by weight, from its description."""
    book = CODEBOOKS[store.kind]
    base = float(store.base.view(torch.float32))
    values = []
    for index in range(store.out_features * store.in_features):
        group, run = index // book.group, index // (16 * book.group)
        byte = int(store.codes[index // book.block])
        place, member = index % book.block, group % 16
        nibble = int(store.fine[8 * run + member % 8]) >> (4 if member >= 8 else 0) & 15
        scale = base * 2.0 ** (-(int(store.coarse[run]) + nibble) / 8)
        if store.kind == "int8":
            unit = LEVELS[byte]
        elif store.kind == "int4":
            unit = SPIRAL[byte][place]
        else:
            unit = byte // 3**place % 3 - 1.0
        values.append(unit * scale)
    return torch.tensor(values).view(store.out_features, store.in_features)


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("shape", SHAPES)
def test_dense_is_what_the_format_says(kind: str, shape: tuple[int, int]) -> None:
    store = filled(kind, gaussian(*shape))
    assert store.dense().shape == shape
    torch.testing.assert_close(store.dense(), naive_dense(store), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", PACKED)
def test_error_on_gaussian_noise(kind: str) -> None:
    assert relative_error(kind, gaussian(512, 512)) < GAUSSIAN_ERROR[kind]


def test_int4_beats_the_best_uniform_grid_of_as_many_bits() -> None:
    weight = gaussian(256, 512, seed=1)
    assert relative_error("int4", weight) < 0.7 * uniform_least_error(weight, 4, 32)


def test_int8_beats_the_best_uniform_grid_of_as_many_bits() -> None:
    weight = gaussian(256, 512, seed=1)
    assert relative_error("int8", weight) < 0.75 * uniform_least_error(weight, 8, 32)


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("shape", [(33, 35), (1, 900), (97, 480)])
def test_ragged_shapes_are_as_exact_as_large_ones(kind: str, shape: tuple[int, int]) -> None:
    assert relative_error(kind, gaussian(*shape, seed=2)) < 2 * GAUSSIAN_ERROR[kind]


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("factor", [1e-30, 1e-6, 1e6, 1e30])
def test_scale_of_the_weight_does_not_matter(kind: str, factor: float) -> None:
    weight = gaussian(64, 96, seed=3)
    scaled = filled(kind, weight * factor).dense().double() / factor
    torch.testing.assert_close(scaled, filled(kind, weight).dense().double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", PACKED)
def test_groups_of_very_different_scale(kind: str) -> None:
    weight = gaussian(64, 640, seed=4) * 10.0 ** torch.linspace(-4, 4, 64)[:, None]
    stored = filled(kind, weight).dense()
    error = (stored - weight).square().sum(1) / weight.square().sum(1)
    assert error.max() < 1.5 * GAUSSIAN_ERROR[kind]


@pytest.mark.parametrize("kind", PACKED)
def test_zeros_stay_zero(kind: str) -> None:
    assert filled(kind, torch.zeros(5, 70)).dense().eq(0).all()
    weight = gaussian(8, 1280, seed=5)
    weight[2] = 0
    weight[5, 640:] = 0
    stored = filled(kind, weight).dense()
    assert stored[2].eq(0).all()
    assert stored[5, 640:].eq(0).all()


@pytest.mark.parametrize("kind", PACKED)
def test_constant_weight(kind: str) -> None:
    assert relative_error(kind, torch.full((16, 80), -3.7)) < 0.01


def test_spiral_covers_and_is_symmetric_enough() -> None:
    points = torch.tensor(SPIRAL, dtype=torch.float64)
    assert len({point for point in SPIRAL}) == 256
    assert points[0].eq(0).all()
    assert points.mean(0).abs().max() < 0.02
    assert points.abs().max() < HALF_WIDTH < 1.1 * points.norm(dim=1).max()


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_encoding_finds_the_nearest_point(kind: str) -> None:
    book = CODEBOOKS[kind]
    values = gaussian(500, book.group, seed=6) * (60 if kind == "int8" else 1.0)
    points = torch.tensor(LEVELS if kind == "int8" else SPIRAL).view(256, book.block)
    distances = torch.cdist(values.view(-1, book.block), points).amin(1).square().sum()
    codes = book.encode(values)
    error = (book.decode(codes.flatten()) - values.flatten()).square().sum()
    assert distances <= error * (1 + 1e-5)
    assert error < 1.02 * distances  # the table of cells is that fine


@pytest.mark.parametrize("kind", PACKED)
def test_chunks_do_not_show(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = gaussian(61, 77, seed=7)
    whole = filled(kind, weight).state_dict()
    monkeypatch.setattr("hf_rmt.nn.stores.packing.CHUNK", 77 * 4)
    monkeypatch.setattr("hf_rmt.nn.stores.packing.CHUNKS", 10**6)
    pieces = filled(kind, weight).state_dict()
    assert all(torch.equal(whole[key], pieces[key]) for key in whole)


@pytest.mark.parametrize("kind", [*PACKED, "keep"])
def test_rows_are_rows_of_dense(kind: str) -> None:
    store = filled(kind, gaussian(37, 53, seed=8))
    for start, stop in [(0, 1), (5, 20), (36, 37)]:
        assert torch.equal(store.rows(start, stop), store.dense()[start:stop])


@pytest.mark.parametrize("kind", [*PACKED, "keep"])
def test_signal_is_subtracted(kind: str) -> None:
    weight, left, right = gaussian(40, 60), gaussian(40, 2, seed=1), gaussian(2, 60, seed=2)
    store = NoiseStore(kind, 40, 60)
    store.store(weight, (left, right))
    torch.testing.assert_close(store.dense(), filled(kind, weight - left @ right).dense())


def test_keep_is_exact_in_double() -> None:
    weight = gaussian(9, 7).double() + 1e-12
    assert torch.equal(filled("keep", weight).dense(), weight)


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
def test_casts_change_nothing(kind: str, cast: str) -> None:
    store = filled(kind, gaussian(20, 30) * 1e-6)
    assert torch.equal(getattr(copy.deepcopy(store), cast)().dense(), store.dense())
    assert store.dense(torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", [*PACKED, "keep"])
def test_state_dict_fills_an_empty_store_on_meta(kind: str) -> None:
    store = filled(kind, gaussian(13, 11))
    file = io.BytesIO()
    torch.save(store.state_dict(), file)
    file.seek(0)
    empty = NoiseStore(kind, 13, 11, device="meta")
    empty.load_state_dict(torch.load(file), assign=True)
    assert torch.equal(empty.dense(), store.dense())


@pytest.mark.parametrize("kind", NOISE_KINDS)
@pytest.mark.parametrize("shape", [(1, 1), (7, 9), (64, 128), (129, 640)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stored_bits_are_those_of_the_buffers(
    kind: str, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    store = NoiseStore(kind, *shape, dtype=dtype)
    bits = 8 * sum(b.numel() * b.element_size() for b in store.state_dict().values())
    width = 16 if kind in PACKED else 8 * dtype.itemsize
    for rank in (0, 1):
        expected = bits + rank * width * sum(shape)
        assert stored_bits(shape, rank, kind, dtype=dtype) == expected


@pytest.mark.parametrize(
    ("kind", "bits"), [("int8", 8.5625), ("int4", 4.28125), ("ternary", 1.7125)]
)
def test_bits_per_weight_of_a_large_weight(kind: str, bits: float) -> None:
    shape = (1920, 2560)
    per_weight = stored_bits(shape, 0, kind, dtype=torch.float32) / math.prod(shape)
    assert per_weight == pytest.approx(bits, abs=1e-4)


class LiveBytes(TorchDispatchMode):
    """Largest number of bytes that tensors made inside hold at one time."""

    def __init__(self, *known: torch.Tensor) -> None:
        super().__init__()
        self.live, self.peak = 0, 0
        self.seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self._watch(tensor.untyped_storage())
        return result

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.seen:
            return
        self.seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.live -= size


@pytest.mark.parametrize("kind", PACKED)
def test_packing_needs_a_fraction_of_the_matrix(kind: str) -> None:
    weight = gaussian(1024, 1024)
    assert weight.numel() > 8 * CHUNK
    store = filled(kind, weight[:1].expand(1024, 1024))  # tables are made once
    with LiveBytes(weight, *store.buffers()) as bytes_:
        store.store(weight, (weight[:, :3], weight[:3]))
    assert 0 < bytes_.peak < weight.nbytes / 2  # two copies would be seen: see below
    with LiveBytes(weight) as bytes_:
        copies = [weight + 1, weight + 2]
    assert bytes_.peak == sum(copy.nbytes for copy in copies)


def test_the_packed_kinds_that_can_be_asked_for_have_codebooks() -> None:
    assert set(CODEBOOKS) == set(PACKED_KINDS)


def test_scratch_memory_is_shared_and_of_the_wanted_dtype() -> None:
    store = filled("int4", gaussian(33, 70))
    first = store.dense(scratch=True)
    expected = first.clone()
    assert torch.equal(store.dense(), expected)
    assert store.dense(scratch=True).data_ptr() == first.data_ptr()
    assert store.dense().data_ptr() != first.data_ptr()
    assert torch.equal(store.dense(torch.bfloat16, scratch=True), expected.bfloat16())


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("scratch", [True, False])
def test_pieces_do_not_show(kind: str, scratch: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(kind, gaussian(61, 77))
    whole = store.dense().clone()
    monkeypatch.setattr("hf_rmt.nn.stores.noise_store.PIECE", 640)
    assert torch.equal(store.dense(scratch=scratch), whole)
    assert torch.equal(store.rows(7, 50, scratch=scratch), whole[7:50])
