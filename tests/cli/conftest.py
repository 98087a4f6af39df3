from __future__ import annotations

import pytest

from tests.huggingface.models import tiny_model


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a small BERT."""
    folder = tmp_path_factory.mktemp("dense")
    tiny_model("bert").save_pretrained(folder)
    return str(folder)
