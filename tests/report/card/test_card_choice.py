"""What a card says about the choice of the directions."""

from __future__ import annotations

import pytest

from hf_rmt.plan import CompressionPlan
from hf_rmt.report import model_card
from tests.report.card.cards import card, section
from tests.report.samples import dense_plan, layer_plan


def test_a_cut_without_a_law_is_not_called_random_matrix_theory(plan):
    cut = CompressionPlan(
        (layer_plan(phase="no law", noise="drop", dropped_energy=0.2, rank=4), dense_plan())
    )
    text = model_card(cut, config={"method": "svd", "rank": 4})
    assert "Random matrix theory says" not in text
    assert "Every weight keeps 4 singular directions" in text
    assert "These are the largest ones." in text
    assert "free of the noise" not in text
    assert "Random matrix theory says" in model_card(plan, config={})


LAW = {"method": "pdb"}
CHOICES = {
    "law": ("bulk+spikes", LAW, "says which singular", "decide"),
    "law, calibrated": ("bulk+spikes", LAW | {"calibrated": True}, "says how many", "free of the"),
    "size": (
        *("no law", LAW | {"calibrated": True, "size": 0.5}),
        *("Together, the layers keep 50 % of their parameters", "analyze"),
    ),
    "rank": ("no law", {"method": "svd", "rank": 1}, "keeps 1 singular direction,", "decide"),
    "energy": (
        *("no law", {"method": "svd", "energy": 0.9}),
        *("as many singular directions as hold 90 % of its squared norm", "decide"),
    ),
    "fraction": ("no law", {"method": "slr", "fraction": 0.1}, "10 % of its singular", "decide"),
    "svd, calibrated": (
        *("no law", {"method": "svd", "rank": 4, "calibrated": True}),
        *("keeps 4 singular directions", "largest"),
    ),
    "of another package": ("no law", {"method": "mine"}, "`mine` says which", "largest"),
}


@pytest.mark.parametrize("case", CHOICES)
def test_how_the_directions_were_chosen(case):
    phase, config, said, not_said = CHOICES[case]
    text = card(CompressionPlan((layer_plan(phase=phase, noise="drop"),)), config=config)
    done = text[: text.index("## ")]
    assert said in done
    assert not_said not in done
    assert ("calibration" in done) == bool(config.get("calibrated"))
    assert ("Random matrix theory" in done) == (phase != "no law")
    assert "requested number" not in done
    settings = section(text, "Settings")
    assert "calibrated" not in settings
    assert "size" not in settings
