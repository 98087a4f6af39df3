"""Runs the command `hf-rmt` when it is called as `python -m hf_rmt.cli`."""

from __future__ import annotations

import sys

from hf_rmt.cli import main

if __name__ == "__main__":
    sys.exit(main())
