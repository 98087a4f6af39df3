"""What `search` refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hf_rmt import RMTConfig, compress, search
from tests.huggingface.models import tiny_model
from tests.huggingface.search.search_blocks import Blocks


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"tolerance": -0.1}, ValueError, "tolerance must be at least 0 and finite, got -0.1"),
        ({"tolerance": float("inf")}, ValueError, "at least 0 and finite, got inf"),
        ({"fractions": (0.0, 1.0)}, ValueError, r"fractions must lie in \(0, 1\]"),
        ({"fractions": (0.5, 1.5)}, ValueError, r"fractions must lie in \(0, 1\]"),
        ({"fractions": ()}, ValueError, r"at least one, got \[\]"),
        ({"max_evaluations": 8}, ValueError, "max_evaluations must be at least 9, got 8"),
        ({"config": RMTConfig()}, ValueError, "noise='int8'.* set noise='drop'"),
        ({"config": RMTConfig(noise="drop", method="magnitude", fraction=0.5)}, ValueError, "magn"),
        (
            {"config": RMTConfig(noise="drop", noise_removal=0.5)},
            ValueError,
            "got noise_removal=0.5; leave it at 1.0",
        ),
        ({"evaluate": lambda model: {"accuracy": 1}}, TypeError, "must return a number"),
        ({"evaluate": lambda model: float("nan")}, ValueError, "must be finite, got nan"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], error: type, match: str) -> None:
    options = {"evaluate": lambda model: 0.0, "tolerance": 0.1, **options}
    with pytest.raises(error, match=match):
        search(Blocks(), options.pop("evaluate"), **options)


def test_a_model_without_noise_is_refused() -> None:
    model = Blocks()
    for block in model.blocks:
        block[0].weight.data.zero_()
    with pytest.raises(ValueError, match="none of 4 layers has noise to remove"):
        search(model, lambda model: 0.0, tolerance=0.1)


def test_what_is_no_dense_model_is_refused() -> None:
    model = tiny_model("bert")
    compress(model)
    for other, error, match in (
        (model, ValueError, "quantized already"),
        ("folder", TypeError, "needs a loaded model, got 'folder'"),
    ):
        with pytest.raises(error, match=match):
            search(other, lambda model: 0.0, tolerance=0.1)


def test_a_file_that_cannot_serve_is_refused_before_anything_is_evaluated(tmp_path: Path) -> None:
    def evaluate(model: Any) -> float:
        raise AssertionError("too late")

    (tmp_path / "bad.json").write_text("no json")
    for path, words in (
        (tmp_path / "nowhere" / "x.json", "a file in a folder that exists"),
        (tmp_path, "a file in a folder that exists"),
        (
            tmp_path / "bad.json",
            "bad.json is damaged or is not a file of a search .*delete it to start anew",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            search(Blocks(), evaluate, tolerance=0.1, resume_from=path)
