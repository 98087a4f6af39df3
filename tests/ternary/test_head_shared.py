"""Ternary heads on two processes, each with batches of its own."""

from __future__ import annotations

from pathlib import Path

import torch

from hf_rmt import RMTConfig, compress
from tests.processes import succeed
from tests.ternary.test_head import batches, logits, trained

WORKER = """
import sys, torch
import hf_rmt
from torch import distributed
from tests.ternary.test_head import batches, trained
distributed.init_process_group("gloo")
rank, states = distributed.get_rank(), {}
data = batches(6)
for label, own in (("halves", data[rank::2]), ("one", data if rank == 0 else [])):
    model = trained()
    hf_rmt.compress(model, hf_rmt.RMTConfig(method="ntk", activation="keep"), calibration=own)
    states |= {f"{label}.{key}": value for key, value in model.state_dict().items()}
torch.save(states, f"{sys.argv[1]}/{rank}.pt")
distributed.destroy_process_group()
"""


def test_two_processes_fit_to_the_batches_of_both(tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    succeed(worker, tmp_path, processes=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    config = RMTConfig(method="ntk", activation="keep")
    alone, half, shared = trained(), trained(), trained()
    compress(alone, config, calibration=batches(6))
    compress(half, config, calibration=batches(6)[::2])
    expected = {key: value for key, value in alone.state_dict().items()}
    assert all(torch.equal(first[f"one.{key}"], value) for key, value in expected.items())
    compress(shared, config, calibration=batches(1))
    shared.load_state_dict({key: first[f"halves.{key}"] for key in expected})
    distances = [float((logits(each) - logits(alone)).norm()) for each in (shared, half)]
    assert distances[0] < 0.1 * distances[1]


STEPS = """
import sys, torch
import hf_rmt
from torch import distributed
from tests.ternary.head_types import batches, head_type
distributed.init_process_group("gloo")
rank, states = distributed.get_rank(), {}
for way in ("auto", "matched"):
    model = head_type("distilbert")
    config = hf_rmt.RMTConfig(method="ntk", activation=way)
    report = hf_rmt.compress(model, config, calibration=batches()[rank::2])
    states |= {f"{way}.{key}": value for key, value in model.state_dict().items()}
    states[way] = [plan.reason for plan in report.plan]
torch.save(states, f"{sys.argv[1]}/{rank}.pt")
distributed.destroy_process_group()
"""


def test_two_processes_choose_alike_and_place_the_same_steps(tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(STEPS)
    succeed(worker, tmp_path, processes=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first.keys() == second.keys()
    assert (first["auto"], first["matched"]) == (second["auto"], second["matched"])
    assert all(torch.equal(first[key], second[key]) for key in first if "." in key)
    assert "error on held-out rows" in first["auto"][0]
    assert "matched.pre_classifier.step.values" in first
