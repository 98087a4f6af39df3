from __future__ import annotations

import pytest
from transformers.utils import logging

from tests.huggingface.lora.adapters import tiny, tune

logging.disable_progress_bar()


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Folders of a BERT and of what became of it."""
    folder, base = tmp_path_factory.mktemp("pair"), tiny("bert")
    base.save_pretrained(folder / "base")
    tune(base).save_pretrained(folder / "tuned")
    return str(folder / "base"), str(folder / "tuned")
