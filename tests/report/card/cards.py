"""Cards of plans, and their parts."""

from __future__ import annotations

import re

import yaml

from hf_rmt.report import model_card

CONFIG = {"quant_method": "rmt", "noise": "int8", "max_rank": None, "layers": {"a": {}}}


def card(plan, **changes):
    return model_card(plan, **{"config": CONFIG, "repo_id": "me/small", **changes})


def front_matter(text):
    _, head, _ = text.split("---\n", 2)
    return yaml.safe_load(head)


def section(text, title):
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.M | re.S)[1]
