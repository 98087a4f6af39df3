from collections.abc import Collection
from typing import Any

import pytest
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_rmt.compression.targets.selection import select_layers
from hf_rmt.settings import CompressionSettings


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
    return select_layers(Model(), CompressionSettings(**settings))


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
    assert select_layers(Model(), settings, protected={"layers.0.query"}) == ["layers.1.query"]


@pytest.mark.parametrize("targets", ["no.such.layer", ["query", "nowhere"]])
def test_a_target_that_matches_nothing_is_named_with_a_choice(targets: list[str] | str) -> None:
    with pytest.raises(ValueError, match=r"layers\.0\.query") as caught:
        select(target_modules=targets)
    assert ("nowhere" if isinstance(targets, list) else targets) in str(caught.value)
    assert "'query'" not in str(caught.value)


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(ValueError, match="no layer of Model is left"):
        select(modules_to_not_convert=["query", "mlp"])


class Headed(Model):
    """A head of its own after the blocks, whose weights lie elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        del self.pooler
        self.head = nn.Linear(8, 10)


@pytest.mark.parametrize(
    ("model", "settings", "protected", "words"),
    [
        (nn.Sequential(nn.Linear(4, 4)), {}, (), "last layer counts as the head.* among 0$"),
        (nn.Linear(4, 4), {}, (), "a Linear on its own .* wrap it: nn.Sequential"),
        (nn.Linear(4, 4), {"method": "ntk"}, (), "a Linear on its own"),
        (nn.Sequential(nn.Conv2d(3, 3, 2)), {"target_modules": "all-linear"}, (), "no linear"),
        (
            nn.Sequential(nn.Conv2d(3, 3, 2)),
            {"method": "ntk"},
            (),
            "no linear layer, the only",
        ),
        (nn.ModuleList([Model().layers]), {"method": "ntk"}, (), "after its blocks; name layers"),
        (Headed(), {"method": "ntk"}, ["head"], "picks head. head is a head or .*; name it"),
        (nn.Sequential(nn.Linear(4, 4)), {"target_modules": "all-linear"}, ["0"], "0 is a head or"),
        (Headed(), {"target_modules": ["head"]}, ["head"], "head is tied to another layer"),
        (Model(), {"target_modules": ["head"]}, (), "head is tied to another layer"),
        (nn.Sequential(nn.Conv1d(4, 4, 3)), {}, (), "or plain two-dimensional convolution"),
        (
            Headed(),
            {"method": "ntk", "modules_to_not_convert": ["head"]},
            (),
            "head is named in modules_to_not_convert; take it out",
        ),
    ],
)
def test_nothing_left_says_why_and_nothing_else(
    model: nn.Module, settings: dict[str, Any], protected: Collection[str], words: str
) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        select_layers(model, CompressionSettings(**settings), protected=protected)
    told = str(caught.value)
    assert ("tied" in told.replace("not tied", "")) == ("tied" in words)
    assert ("modules_to_not_convert" in told) == ("modules_to_not_convert" in words)


def test_a_method_that_takes_linears_says_so_of_a_convolution() -> None:
    with pytest.raises(ValueError, match="no linear layer, the only kind that method='ntk' takes"):
        select_from(Residual(), method="ntk", target_modules=["wide"])
    accepted = "linear layer or plain two-dimensional convolution"
    with pytest.raises(ValueError, match=f"matches no {accepted}; .* among stem"):
        select_from(Residual(), target_modules=["narrow"])


@pytest.mark.parametrize("targets", ["((", ""])
def test_a_string_that_is_no_expression_is_refused(targets: str) -> None:
    with pytest.raises(ValueError, match="target_modules"):
        select(target_modules=targets)


class Stage(nn.Module):
    """One of every kind of convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(8, 8, 3)
        self.point = nn.Conv2d(8, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.up = nn.ConvTranspose2d(8, 8, 2)
        self.line = nn.Conv1d(8, 8, 3)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 7)
        self.stages = nn.ModuleList([Stage()])
        self.head = nn.Linear(8, 10)


class Decoder(Model):
    """Transposed weights in the blocks, and a patch embedding before them."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.layers.append(nn.ModuleDict({"c_attn": Conv1D(24, 8)}))


def vgg() -> nn.Sequential:
    features = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)]
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 10))


def select_from(model: nn.Module, **settings: object) -> list[str]:
    return select_layers(model, CompressionSettings(**settings))


def test_default_is_the_convolutions_of_blocks_without_linears() -> None:
    assert select_from(Residual()) == ["stages.0.wide", "stages.0.point"]


def test_default_of_a_plain_network_is_what_lies_between_input_and_head() -> None:
    assert select_from(vgg()) == ["2", "5"]
    dense = nn.Sequential(nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 3))
    assert select_from(dense) == ["0", "2"]


def test_blocks_with_linears_keep_their_convolutions_dense() -> None:
    model = Decoder()
    model.layers[0].local = nn.Conv2d(8, 8, 3)
    assert select_from(model) == [*BLOCKS, "layers.2.c_attn"]
    assert select_from(model, target_modules="all-linear") == [
        *BLOCKS,
        "layers.2.c_attn",
        "pooler",
    ]


@pytest.mark.parametrize("targets", [["patches", "query"], r"patches|.*\.query"])
def test_names_and_expressions_choose_convolutions_anywhere(targets: list[str] | str) -> None:
    chosen = select_from(Decoder(), target_modules=targets)
    assert chosen == ["layers.0.query", "layers.1.query", "patches"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [("depthwise", "in 8 groups"), ("up", "transposed"), ("line", "a Conv1d, and only nn.Conv2d")],
)
def test_a_convolution_without_a_matrix_is_refused_by_name(name: str, reason: str) -> None:
    for targets in ([name], rf".*\.{name}", ["wide", f"stages.0.{name}"]):
        with pytest.raises(ValueError, match=f"asks for 'stages.0.{name}', which is .*{reason}"):
            select_from(Residual(), target_modules=targets)


def test_an_expression_leaves_convolutions_without_a_matrix_dense() -> None:
    chosen = select_from(Residual(), target_modules=r"stages\..*")
    assert chosen == ["stages.0.wide", "stages.0.point"]


def test_a_noise_removal_for_a_layer_that_is_not_compressed_is_refused() -> None:
    removal = {BLOCKS[0]: 0.5, "layers.7.query": 0.5}
    with pytest.raises(ValueError, match=r"noise_removal names 'layers\.7\.query', which is not"):
        select_from(Decoder(), noise="drop", noise_removal=removal)
    assert BLOCKS[0] in select_from(Decoder(), noise="drop", noise_removal={BLOCKS[0]: 0.5})
