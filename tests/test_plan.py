import json
from dataclasses import replace

import pytest

from hf_rmt.plan import CompressionPlan, LayerPlan, Outcome

COMPRESSED = LayerPlan(
    name="a",
    shape=(10, 20),
    outcome=Outcome.REPLACED,
    rank=2,
    noise="int8",
    bits=2000,
    dense_bits=6400,
    dropped_energy=0.25, upper_edge=1.5,
)  # fmt: skip
DENSE = LayerPlan(
    name="b", shape=(5, 20), outcome=Outcome.KEPT, bits=3200, dense_bits=3200, reason="!"
)


def test_totals_are_over_the_compressed_layers() -> None:
    plan = CompressionPlan((COMPRESSED, DENSE))
    assert plan.compressed == (COMPRESSED,)
    assert COMPRESSED.bits_per_weight == plan.bits_per_weight == 10
    assert plan.size_ratio == 2000 / 6400
    assert plan.dropped_energy == 0.25
    assert [layer.name for layer in plan] == ["a", "b"]
    assert len(plan) == 2


def test_a_layer_filtered_in_place_counts_as_a_loss() -> None:
    filtered = replace(DENSE, name="c", outcome=Outcome.REWRITTEN, dropped_energy=0.75)
    plan = CompressionPlan((COMPRESSED, DENSE, filtered))
    assert plan.changed == (COMPRESSED, filtered)
    assert plan.dropped_energy == 0.5
    assert plan.bits_per_weight == 10


def test_a_plan_that_compresses_nothing_has_neutral_totals() -> None:
    plan = CompressionPlan((DENSE,))
    assert (plan.bits_per_weight, plan.size_ratio, plan.dropped_energy) == (0.0, 1.0, 0.0)


def test_json_and_back() -> None:
    plan = CompressionPlan((COMPRESSED, DENSE))
    assert CompressionPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_fields_of_a_newer_version_are_refused() -> None:
    entry = {**CompressionPlan((DENSE,)).to_dict()["b"], "colour": 3}
    with pytest.raises(ValueError, match=r"'b' has unknown fields \['colour'\]"):
        CompressionPlan.from_dict({"b": entry})


def test_parameters_count_what_is_not_zero():
    """100 x 200: factors of rank 3 have 900 entries, stored noise has 20,000 more."""
    plain = LayerPlan("a", (100, 200), outcome=Outcome.REPLACED, rank=3, noise="drop")
    packed, dense = replace(plain, noise="int8"), LayerPlan("b", (100, 200), outcome=Outcome.KEPT)
    thinned = replace(plain, nonzero=700)
    assert [p.parameters for p in (plain, packed, dense, thinned)] == [900, 20_900, 20_000, 700]
    assert thinned.parameter_share == 700 / 20_000
    assert CompressionPlan((thinned, dense)).parameter_share == 20_700 / 40_000
    assert CompressionPlan(()).parameter_share == 1.0


def test_every_field_has_a_rule() -> None:
    """A field without one could be written and never be read again."""
    from dataclasses import fields

    from hf_rmt.plan import field_rules

    assert {field.name for field in fields(LayerPlan)} == set(field_rules._RULES)
    layer = replace(COMPRESSED, rounding_error=1e-5)
    assert CompressionPlan.from_dict(CompressionPlan((layer,)).to_dict()).layers == (layer,)
