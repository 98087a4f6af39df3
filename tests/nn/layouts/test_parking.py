from __future__ import annotations

import errno
import gc
import os
import tempfile
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_rmt.nn.layouts import parking
from hf_rmt.nn.layouts.parking import (
    SMALLEST,
    cache_folder,
    is_parked,
    let_go,
    lies_in_a_file,
    park,
    parking_folder,
    unpark,
)

LINUX = Path("/proc/self/maps").exists()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("hf_rmt.nn.layouts.parking.parking_folder", lambda: tmp_path)
    return tmp_path


def bytes_of(size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (size,), generator=generator).to(torch.uint8)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_a_parked_tensor_is_the_same_tensor(folder: Path, dtype: torch.dtype) -> None:
    tensor = bytes_of(2 * SMALLEST).to(dtype).view(2, -1)
    parked = park(tensor)
    assert is_parked(parked)
    assert not is_parked(tensor)
    assert torch.equal(parked, tensor)
    back = unpark(parked)
    assert torch.equal(back, tensor)
    assert not is_parked(back)
    assert list(folder.iterdir()) == []  # the file has no name, so nobody has to delete it


def test_what_is_written_to_a_parked_tensor_stays(folder: Path) -> None:
    parked = park(bytes_of(SMALLEST))
    parked[5:9] = 7
    let_go(parked)
    assert parked[5:9].eq(7).all()
    parked.copy_(torch.ones_like(parked))
    let_go(parked)
    assert parked.eq(1).all()


def test_small_tensors_and_parked_ones_stay_what_they_are(folder: Path) -> None:
    small = bytes_of(SMALLEST - 1)
    parked = park(bytes_of(SMALLEST))
    assert park(small) is small
    assert park(parked) is parked
    assert unpark(small) is small


def test_without_a_disk_a_tensor_stays_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = bytes_of(SMALLEST)
    monkeypatch.setattr("hf_rmt.nn.layouts.parking.parking_folder", lambda: None)
    assert park(tensor) is tensor
    monkeypatch.setattr("hf_rmt.nn.layouts.parking.parking_folder", lambda: Path("/nowhere"))
    assert park(tensor) is tensor


def test_an_address_is_forgotten_with_its_tensor(folder: Path) -> None:
    from hf_rmt.nn.layouts import parking

    before = set(parking._PARKED)
    parked = park(bytes_of(SMALLEST))
    assert len(parking._PARKED) == len(before) + 1
    del parked
    gc.collect()
    assert before == parking._PARKED


@pytest.mark.skipif(not LINUX, reason="only Linux tells what is mapped")
def test_tensors_of_a_checkpoint_lie_in_a_file_already(folder: Path) -> None:
    tensor, file = bytes_of(SMALLEST), folder / "model.safetensors"
    save_file({"codes": tensor}, file)
    loaded = load_file(file)["codes"]
    assert not lies_in_a_file(tensor)
    assert torch.equal(park(loaded), tensor)
    if lies_in_a_file(loaded):  # as safetensors of today does it
        assert park(loaded) is loaded


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_what_a_forked_process_writes_stays_there(folder: Path) -> None:
    parked = park(bytes_of(SMALLEST))
    before = parked.clone()
    child = os.fork()
    if child == 0:
        # Torch would wait for ever for threads that the fork did not copy; NumPy has none.
        parked.numpy().fill(0)
        os._exit(0)
    os.waitpid(child, 0)
    assert torch.equal(parked, before)


def test_a_parked_tensor_can_be_sent_to_another_process(folder: Path) -> None:
    parked = park(bytes_of(SMALLEST))
    sent = ForkingPickler.loads(ForkingPickler.dumps(parked))
    assert torch.equal(sent, bytes_of(SMALLEST))


def test_a_full_disk_leaves_the_tensor_in_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(parking, "_private_memory", full)
    tensor = bytes_of(SMALLEST)
    assert park(tensor) is tensor
    assert list(folder.iterdir()) == []


def test_a_user_without_a_home_has_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("HF_RMT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_folder() == Path("/home/me/.cache/hf_rmt")
    monkeypatch.setenv("HF_RMT_CACHE", "~/own")
    assert cache_folder() == Path("/home/me/own")
    monkeypatch.setattr(Path, "expanduser", none)
    assert cache_folder() == Path(tempfile.gettempdir(), "hf_rmt")


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("HF_RMT_CACHE", raising=False)
    assert cache_folder() == tmp_path / "hf_rmt"
    monkeypatch.setenv("HF_RMT_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.setattr("hf_rmt.nn.layouts.parking._file_system", lambda folder: "tmpfs")
    parking_folder.cache_clear()
    assert parking_folder() is None
    parking_folder.cache_clear()
