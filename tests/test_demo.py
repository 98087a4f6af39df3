from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hf_rmt import demo


def test_the_demo_keeps_the_similarities_and_reloads_exactly(
    trained_bert: Path, tmp_path: Path
) -> None:
    result = demo.run_demo(tmp_path)
    assert result.layers == 36
    assert result.reload_difference == 0.0
    assert result.spearman > 0.9999
    assert result.bits_per_weight < 12.5
    assert result.bytes_after < 0.75 * result.bytes_before
    assert (tmp_path / "model" / "README.md").exists()
    assert (tmp_path / "spectra" / "spectra.svg").exists()


def test_similarities_are_compared_by_rank() -> None:
    vectors = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    assert demo.similarity_spearman(3 * vectors, vectors) == pytest.approx(1.0)
    other = torch.randn(20, 8, generator=torch.Generator().manual_seed(1))
    assert abs(demo.similarity_spearman(other, vectors)) < 0.3


def test_a_missing_model_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "DEMO_PACKAGE", "no_such_package")
    with pytest.raises(ImportError, match=r"\[demo\]"):
        demo.demo_model_path()
