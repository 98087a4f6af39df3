"""Sphinx settings: `sphinx-build -W -b html docs docs/_build` makes the pages."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import hf_rmt

project = "hf_rmt"
author = "The hf_rmt contributors"
copyright = author
version = release = hf_rmt.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "from_code",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "_ext"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_google_docstring = True
napoleon_use_ivar = True  # or attributes with a default are described twice
napoleon_custom_sections = ["Source"]
html_theme = "furo"
html_title = f"hf_rmt {release}"
html_copy_source = False
