"""The spectra that `RMTCallback` logs."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_rmt import RMTConfig
from hf_rmt.compression.weight import compress_weight
from hf_rmt.huggingface.training.filter_callback import RMTCallback
from tests.huggingface.training.training import QUERY, Watcher, fine_tune, spectra


def test_spectra_reach_every_report_and_leave_the_losses_alone(tmp_path: Path) -> None:
    report, eye = Watcher(), Watcher()
    trainer = fine_tune(tmp_path, report, RMTCallback(schedule=6), eye)
    logged = [log for log in report.logs if "rmt/spikes" in log]
    assert [log["step"] for log in logged] == [0, 6, 12, 16]
    assert [log["step"] for log in report.logs if "loss" in log] == list(range(1, 17))
    for key in ("spikes", "upper_edge", "signal_energy", "stable_rank", "phase"):
        layers = [name for name in logged[0] if name.startswith("rmt/bert") and key in name]
        assert len(layers) == 6
        mean = sum(logged[0][name] for name in layers) / 6
        assert logged[0][f"rmt/{key}"] == pytest.approx(mean)
    assert logged[1]["rmt/signal_energy"] < 0.5 < logged[2]["rmt/signal_energy"]
    assert spectra(trainer) == logged
    assert not any(name.startswith("rmt/bert") for log in eye.logs for name in log)
    assert sum("rmt/spikes" in log for log in eye.logs) == 4


def test_logged_numbers_are_those_of_the_fit(tmp_path: Path) -> None:
    watcher = Watcher()
    trainer = fine_tune(tmp_path, watcher, RMTCallback(schedule=6))
    fit = compress_weight(QUERY, watcher.weights[6], RMTConfig(noise="drop")).fit
    assert fit is not None
    log = spectra(trainer)[1]
    assert log[f"rmt/{QUERY}/spikes"] == fit.n_spikes
    assert log[f"rmt/{QUERY}/upper_edge"] == fit.upper_edge
    assert log[f"rmt/{QUERY}/signal_energy"] == fit.signal_energy
    assert log[f"rmt/{QUERY}/stable_rank"] == fit.stable_rank
    phases = ["random", "bulk+spikes", "heavy-tailed", "degenerate"]
    assert log[f"rmt/{QUERY}/phase"] == phases.index(fit.phase)


def test_nothing_is_logged_when_told_so(tmp_path: Path) -> None:
    trainer = fine_tune(tmp_path, RMTCallback(log=False))
    assert spectra(trainer) == []
