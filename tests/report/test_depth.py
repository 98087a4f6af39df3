from __future__ import annotations

import pytest

from hf_rmt.report.depth import Place, places, short_names


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            ["bert.encoder.layer.11.attention.self.query"],
            [Place("attention.self.query", 11)],
        ),
        (
            ["encoder.block.2.layer.0.SelfAttention.q", "decoder.block.1.layer.0.SelfAttention.q"],
            [
                Place("encoder.block.layer.SelfAttention.q", 2),
                Place("decoder.block.layer.SelfAttention.q", 1),
            ],
        ),
        (
            ["layers.3.experts.0.up", "layers.3.experts.7.up"],
            [Place("experts.up", 3), Place("experts.up", 3)],
        ),
        (["features.0", "features.3"], [Place("features", 0), Place("features", 3)]),
        (["0", "2"], [Place("layer", 0), Place("layer", 2)]),
        (["lm_head", "layer1.conv"], [Place("lm_head", None), Place("layer1.conv", None)]),
    ],
    ids=["bert", "two stacks", "experts", "sequential", "bare numbers", "no blocks"],
)
def test_places(names, expected):
    assert places(names) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["m.layer.0.key", "m.layer.10.key"], ["0.key", "10.key"]),
        (["m.key", "m.key.sub"], ["key", "key.sub"]),
        (["only.one"], ["only.one"]),
        ([], []),
    ],
)
def test_short_names_lose_what_all_share(names, expected):
    assert short_names(names) == expected


def test_short_names_are_cut_at_the_front():
    (name,) = short_names(["x" * 20 + ".query"], longest=10)
    assert name == "…xxx.query"
    assert len(name) == 10
