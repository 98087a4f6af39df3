"""An annealed training on two processes that share the work."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.huggingface.training import annealed_worker
from tests.processes import succeed


def test_two_processes_end_with_the_same_weights_and_resume_to_them(tmp_path: Path) -> None:
    succeed(annealed_worker.__file__, tmp_path, processes=2)
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert list(first) == list(second)
    assert all(torch.equal(first[key], second[key]) for key in first)
    whole = {key.removeprefix("whole."): first[key] for key in first if key.startswith("whole.")}
    assert any(value.ndim == 2 and value.shape[1] == 48 + 48 for value in whole.values())
    assert all(torch.equal(value, first[f"resumed.{key}"]) for key, value in whole.items())
