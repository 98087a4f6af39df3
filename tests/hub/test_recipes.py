"""A recipe pushes its best model, and the model comes back."""

from __future__ import annotations

from tests.processes import RECIPES

REPO = "user/best"
RECIPE = f"""
import runpy
import sys

sys.path.insert(0, {str(RECIPES)!r})
sys.argv = ["image_classification.py", "--embedded", "--use_cpu", "--seeds", "0"]
sys.argv += ["--max_steps", "20", "--methods", "pdb", "--fractions", "0.5"]
sys.argv += ["--output_dir", "out", "--push_to_hub", {REPO!r}]
runpy.run_path({str(RECIPES / "image_classification.py")!r}, run_name="__main__")
"""
PULL = f"""
import hf_rmt
from transformers import AutoImageProcessor, AutoModelForImageClassification
model = AutoModelForImageClassification.from_pretrained({REPO!r})
AutoImageProcessor.from_pretrained({REPO!r})
saved = AutoModelForImageClassification.from_pretrained("out/digits/best")
ours, theirs = model.state_dict(), saved.state_dict()
print(float(max((ours[key] - theirs[key]).abs().max() for key in ours | theirs)))
"""


def test_the_best_model_is_pushed_with_its_card(loopback_hub):
    loopback_hub.run(RECIPE)
    card = loopback_hub.repos[REPO]["README.md"].decode()
    assert "Noise removed after training: digits" in card
    assert "| PDB |" in card
    assert float(loopback_hub.run(PULL).stdout.splitlines()[-1]) == 0
