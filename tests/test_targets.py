import pytest
import torch
from torch import nn

from hf_rmt.settings import CompressionSettings
from hf_rmt.targets import select_linears


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(8, 8)
        self.mlp = nn.Linear(8, 16)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.layers = nn.ModuleList([Block(), Block()])
        self.pooler = nn.Linear(8, 8)
        self.head = nn.Linear(8, 10, bias=False)
        self.head.weight = self.embed.weight


def select(**settings: object) -> list[str]:
    return select_linears(Model(), CompressionSettings(**settings))


BLOCKS = ["layers.0.query", "layers.0.mlp", "layers.1.query", "layers.1.mlp"]


def test_default_is_the_linears_of_repeated_blocks() -> None:
    assert select() == BLOCKS


def test_all_linear_leaves_out_tied_weights() -> None:
    assert select(target_modules="all-linear") == [*BLOCKS, "pooler"]


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["query"], ["layers.0.query", "layers.1.query"]),
        (["layers.1.mlp", "pooler"], ["layers.1.mlp", "pooler"]),
        (r"layers\.0\..*", ["layers.0.query", "layers.0.mlp"]),
    ],
)
def test_names_endings_and_expressions(targets: list[str] | str, expected: list[str]) -> None:
    assert select(target_modules=targets) == expected


def test_an_ending_is_a_whole_part_of_a_name() -> None:
    with pytest.raises(ValueError, match="uery"):
        select(target_modules=["uery"])


def test_skipped_and_protected_layers_stay_dense() -> None:
    settings = CompressionSettings(modules_to_not_convert=["mlp"])
    assert select_linears(Model(), settings, protected={"layers.0.query"}) == ["layers.1.query"]


@pytest.mark.parametrize("targets", ["no.such.layer", ["query", "nowhere"]])
def test_a_target_that_matches_nothing_is_named_with_a_choice(targets: list[str] | str) -> None:
    with pytest.raises(ValueError, match=r"layers\.0\.query") as caught:
        select(target_modules=targets)
    assert ("nowhere" if isinstance(targets, list) else targets) in str(caught.value)
    assert "'query'" not in str(caught.value)


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(ValueError, match="no linear layer of Model is left"):
        select(modules_to_not_convert=["query", "mlp"])


def test_a_model_without_blocks_says_so() -> None:
    with torch.device("meta"), pytest.raises(ValueError, match="left to compress"):
        select_linears(nn.Sequential(nn.Linear(4, 4)), CompressionSettings())
