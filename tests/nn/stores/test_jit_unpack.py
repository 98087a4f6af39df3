"""Noise unpacked by compiled code: the same bits as torch's, wherever a store is used."""

from __future__ import annotations

import errno
import logging
import pickle
import sys
from collections.abc import Iterator

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from hf_rmt.nn import NoiseStore, SpikedLinear
from hf_rmt.nn.stores import jit_packing, jit_product, jit_unpack, machine_code
from hf_rmt.nn.stores.codebooks import CODEBOOKS, LEVELS, SCALES, SPIRAL, table
from tests.nn.stores.filled import filled, gaussian

numba = pytest.importorskip("numba", reason="needs the extra `fast`")
caching = pytest.importorskip("numba.core.caching")
SHAPES = [(1, 1), (37, 53), (128, 640), (300, 2048)]


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def by_torch(store: NoiseStore, *arguments: object) -> torch.Tensor:
    """Rows of a store as they are without Numba."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine_code, "numba", lambda: None)
        return store.rows(*arguments).clone()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", CODEBOOKS)
def test_gives_the_bits_that_torch_gives(kind, dtype, shape, threads):
    store = filled(kind, gaussian(*shape))
    assert machine_code.can_read(store.codes)
    for rows in ((0, shape[0]), (shape[0] // 3, max(1, shape[0] // 2))):
        assert torch.equal(store.rows(*rows, dtype), by_torch(store, *rows, dtype))
    assert torch.equal(store.dense(dtype, scratch=True), store.dense(dtype))


@pytest.mark.parametrize("module", [jit_packing, jit_product, jit_unpack])
def test_processes_that_compile_together_do_not_mix_up_their_loops(module, monkeypatch, tmp_path):
    """One process keeps its index before another one, and its machine code after it."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    file, made, late = caching.IndexDataCacheFile, module._kernel.__wrapped__, []
    hits = []
    with monkeypatch.context() as patch:
        patch.setattr(file, "_load_index", lambda self: {})  # the others have not written yet
        save = file._save_data
        patch.setattr(file, "_save_data", lambda *arguments: late.append(arguments))
        for kind in CODEBOOKS:
            made(kind)
        for arguments in reversed(late):
            save(*arguments)
    assert len(late) == len(CODEBOOKS)
    for kind in CODEBOOKS:
        kernel = made(kind)
        monkeypatch.setattr(module, "_kernel", lambda _, kernel=kernel: kernel)
        store = filled(kind, gaussian(37, 53))
        x = gaussian(3, 53)
        wanted = by_torch(store, 0, 37)
        assert torch.equal(store.dense(), wanted)
        torch.testing.assert_close(store.product(x), x @ wanted.T, rtol=1e-4, atol=1e-4)
        hits.append(sum(kernel.stats.cache_hits.values()))
    assert hits == [1] * len(CODEBOOKS)


@pytest.mark.parametrize("step", ["ensure_cache_path", "save_overload"])
def test_numba_compiles_although_nothing_can_be_written(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no folder for the cache can be made, and where the disk is full."""
    asked = []

    def fail(*_: object) -> None:
        asked.append(step)
        raise OSError(errno.ENOSPC, "no space left on device")

    store = filled("int8", gaussian(16, 64))
    wanted = by_torch(store, 0, 16)
    owner = caching._CacheLocator if step == "ensure_cache_path" else caching.FunctionCache
    monkeypatch.setattr(owner, step, fail)
    monkeypatch.setattr(caching.FunctionCache, "load_overload", lambda *_: None)
    jit_unpack._kernel.cache_clear()
    try:
        assert torch.equal(store.dense(), wanted)
    finally:
        jit_unpack._kernel.cache_clear()
    assert asked


def test_a_damaged_file_in_the_cache_is_compiled_over(monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled("int8", gaussian(16, 64))
    wanted = by_torch(store, 0, 16)

    def damaged(*_: object) -> None:
        raise pickle.UnpicklingError("pickle data was truncated")

    monkeypatch.setattr(caching.FunctionCache, "load_overload", damaged)
    jit_unpack._kernel.cache_clear()
    try:
        assert torch.equal(store.dense(), wanted)
    finally:
        jit_unpack._kernel.cache_clear()


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_the_default_dtype_of_torch_changes_nothing(default: torch.dtype) -> None:
    store = filled("int4", gaussian(37, 53))
    wanted = store.dense()
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        assert torch.equal(store.dense(), wanted)
        assert torch.equal(store.rows(3, 9, default), wanted[3:9].to(default))
    finally:
        torch.set_default_dtype(before)


def test_a_large_weight_is_shared_out_over_the_threads(threads, monkeypatch):
    asked = []
    pool = machine_code.pool
    monkeypatch.setattr(
        machine_code, "pool", lambda process: asked.append(process) or pool(process)
    )
    store = filled("int4", gaussian(600, 1000))
    assert torch.equal(store.dense(), by_torch(store, 0, 600))
    assert bool(asked) == (threads > 1)


@pytest.mark.parametrize("kind", CODEBOOKS)
def test_bytes_that_no_store_holds_read_no_other_memory(kind):
    store = filled(kind, gaussian(32, 160))
    for name in ("codes", "fine", "coarse"):
        getattr(store, name).fill_(255)
    scale = table(SCALES, store.codes.device)[(255 + 15) % 256] * store.base.view(torch.float32)
    last = {"int8": LEVELS[255:], "int4": SPIRAL[255], "ternary": (0.0,)}[kind]
    values = store.dense().view(-1, len(last))
    assert torch.equal(values, (torch.tensor(last) * scale).expand_as(values))


@pytest.mark.parametrize("kind", CODEBOOKS)
def test_modes_that_trace_or_map_see_an_operator(kind):
    x = gaussian(3, 40, 160)
    factors = gaussian(32, 2), gaussian(2, 160)
    layer = SpikedLinear.from_factors(*factors, gaussian(32, 160), None, noise=kind)
    with torch.no_grad():
        wanted = layer(x)
        torch.testing.assert_close(torch.vmap(layer)(x), wanted, rtol=1e-4, atol=1e-4)
        graph = make_fx(layer)(x)
        layer.noise.codes.fill_(100)
        assert torch.equal(graph(x), layer(x))
    with torch.inference_mode():
        assert layer(x).shape == wanted.shape
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert layer(torch.empty(3, 40, 160)).shape == wanted.shape


@pytest.mark.parametrize("broken", [False, True], ids=["missing", "broken"])
def test_without_numba_torch_unpacks(monkeypatch, caplog, tmp_path, broken):
    store = filled("int8", gaussian(16, 64))
    wanted = store.dense()
    monkeypatch.delitem(sys.modules, "numba")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    if broken:
        (tmp_path / "numba.py").write_text("raise ImportError('needs an older NumPy')")
    machine_code.numba.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert torch.equal(store.dense(), wanted)
            assert torch.equal(store.dense(), wanted)
        assert not machine_code.has_numba()
    finally:
        machine_code.numba.cache_clear()
    assert len(caplog.records) == int(broken)
    assert all("needs an older NumPy" in record.getMessage() for record in caplog.records)
