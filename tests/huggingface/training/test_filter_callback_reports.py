"""The spectra that `RMTCallback` logs."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_rmt import RMTConfig
from hf_rmt.compression.weight import compress_weight
from hf_rmt.huggingface.training.filter_callback import RMTCallback
from tests.huggingface.training.training import QUERY, Watcher, fine_tune, spectra

CURVES = ("spikes", "signal_energy", "stable_rank")


def test_spectra_reach_every_report_and_leave_the_losses_alone(tmp_path: Path) -> None:
    report, eye = Watcher(), Watcher()
    trainer = fine_tune(tmp_path, report, RMTCallback(schedule=6, log="layers"), eye)
    logged = [log for log in report.logs if "rmt/spikes" in log]
    assert [log["step"] for log in logged] == [0, 6, 12, 16]
    assert [log["step"] for log in report.logs if "loss" in log] == list(range(1, 17))
    for key in CURVES:
        layers = [name for name in logged[0] if name.startswith("rmt/bert") and key in name]
        assert len(layers) == 6
        mean = sum(logged[0][name] for name in layers) / 6
        assert logged[0][f"rmt/{key}"] == pytest.approx(mean)
    assert sum(value for key, value in logged[0].items() if key.startswith("rmt/phases/")) == 6
    assert logged[1]["rmt/signal_energy"] < 0.5 < logged[2]["rmt/signal_energy"]
    assert spectra(trainer) == logged
    assert not any(name.startswith("rmt/bert") for log in eye.logs for name in log)
    assert sum("rmt/spikes" in log for log in eye.logs) == 4


def test_by_default_there_are_four_curves(tmp_path: Path) -> None:
    scheduled = fine_tune(tmp_path, RMTCallback(schedule=6))
    curves = {key for log in scheduled.state.log_history for key in log if key.startswith("rmt/")}
    assert curves == {*(f"rmt/{key}" for key in CURVES), "rmt/energy_dropped"}
    annealed = fine_tune(tmp_path, RMTCallback(size=0.5))
    curves = {key for log in annealed.state.log_history for key in log if key.startswith("rmt/")}
    names = ("noise_left", "energy_scaled_away", "parameter_share", "rank")
    assert curves == {f"rmt/{name}" for name in names}


def test_logged_numbers_are_those_of_the_fit(tmp_path: Path) -> None:
    before, after = Watcher(), Watcher()
    trainer = fine_tune(tmp_path, before, RMTCallback(schedule=6, log="layers"), after)
    result = compress_weight(QUERY, before.weights[6], RMTConfig(noise="drop"))
    fit = result.fit
    assert fit is not None
    log = spectra(trainer)[1]
    for key in (*CURVES, "n_spikes", "upper_edge"):
        logged = log[f"rmt/{QUERY}/{key.removeprefix('n_')}"]
        assert logged == getattr(fit, "n_spikes" if key == "spikes" else key)
    assert log[f"rmt/phases/{fit.phase}"] >= 1


def test_a_filter_that_takes_a_tenth_of_the_energy_warns_at_its_first_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fine_tune(tmp_path, RMTCallback.published(schedule=4))
    (warning,) = [record.getMessage() for record in caplog.records if "at once" in record.msg]
    share = float(warning.partition(" %")[0].rpartition(" ")[2]) / 100
    assert share > 0.1
    caplog.clear()
    fine_tune(tmp_path, RMTCallback.published(target="update", schedule=4))
    fine_tune(tmp_path, RMTCallback())
    assert not [record for record in caplog.records if "at once" in record.msg]


def test_nothing_is_logged_when_told_so(tmp_path: Path) -> None:
    trainer = fine_tune(tmp_path, RMTCallback(schedule="epoch", log=False))
    assert spectra(trainer) == []
