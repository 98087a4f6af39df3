"""The small repositories that are damaged, and what counts as loading them right."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

import hf_rmt
from hf_rmt import RMTConfig
from hf_rmt.huggingface.api import load_if_path
from hf_rmt.huggingface.saving import card
from tests.huggingface.models import tiny_model

State = dict[str, torch.Tensor]


def quieten() -> None:
    """No progress, no reports on what is loaded, no pictures: thousands of models are loaded."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    card._drawn = lambda *_: b""
    sys.stdin = io.StringIO()  # nobody is there to be asked whether code may run


def compressed(noise: str, *, family: str = "bert", rank: int = 8) -> Any:
    model = tiny_model(family)
    hf_rmt.compress(model, RMTConfig(method="svd", rank=rank, noise=noise))
    return model


def state_of(model: torch.nn.Module) -> State:
    return {key: value.clone() for key, value in model.state_dict().items()}


def load(folder: Path) -> State:
    return state_of(load_if_path(str(folder)))


def equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
