from __future__ import annotations

import json
from dataclasses import fields, replace

import numpy as np
import pytest

from hf_rmt.report import records
from hf_rmt.spectra import Phase, PowerLawBulk
from tests.report.samples import make_cut, make_degenerate, make_fit, make_unit, spectral_report


def assert_same(fit, other):
    for entry in fields(fit):
        ours, theirs = getattr(fit, entry.name), getattr(other, entry.name)
        assert type(ours) is type(theirs), entry.name
        np.testing.assert_array_equal(ours, theirs, err_msg=entry.name)
        if isinstance(ours, np.ndarray):
            assert ours.dtype == theirs.dtype


def round_trip(fit):
    return records.fit_of(json.loads(records.json_text(fit)))


@pytest.mark.parametrize(
    "fit",
    [
        make_fit(spikes=(40.0, 1 / 3 * 100)),
        make_fit(variances=(4e-12, 1e-13)),
        make_fit(residual=np.inf, reason="far off"),
        make_degenerate(),
        make_unit(),
        replace(make_fit(), law=PowerLawBulk(-1.0, (3.0, 1 / 3), 0.5), phase=Phase.UNEVEN),
        make_cut(),
        make_degenerate(np.array([np.nan, np.inf] * 50), "the matrix holds nan or inf"),
    ],
    ids=[
        "spiked",
        "tiny",
        "infinite residual",
        "zero",
        "unit bulk",
        "power law",
        "cut",
        "nan and inf",
    ],
)
def test_fit_survives_json_to_the_last_bit(fit):
    again = round_trip(fit)
    assert_same(fit, again)
    assert again.law == fit.law
    assert again.n_spikes == fit.n_spikes


def test_json_is_strict():
    text = records.json_text(make_degenerate(np.full(100, np.nan)))
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_field_of_a_newer_version_is_refused():
    record = {**records.plain(make_fit()), "surprise": 1}
    with pytest.raises(ValueError, match=r"\['surprise'\].*upgrade"):
        records.fit_of(record)


def test_file_ends_in_one_newline(tmp_path):
    for text in ("a", "a\n"):
        assert records.written(text, tmp_path / "file") == text
        assert (tmp_path / "file").read_bytes() == b"a\n"


@pytest.mark.parametrize("write", ["to_html", "to_json", "to_csv"])
def test_a_report_is_written_to_a_name_of_its_kind_only(write, tmp_path):
    report, weights = spectral_report({"a": make_fit()}), tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    for name in (weights.name, "new.txt", "new"):
        with pytest.raises(
            ValueError, match=rf"must end in \..*got '.*{name}'; choose a name such"
        ):
            getattr(report, write)(tmp_path / name)
    assert weights.read_bytes() == b"weights"
    assert list(tmp_path.iterdir()) == [weights]
    own = tmp_path / f"report.{write.removeprefix('to_')}"
    assert getattr(report, write)(own) == getattr(report, write)(own)
    with pytest.raises(FileNotFoundError, match="does not exist; make it first"):
        getattr(report, write)(tmp_path / "nowhere" / own.name)


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=r"is saved in a folder, and .* is a file"):
        spectral_report({"a": make_fit()}).save(tmp_path / "file")
