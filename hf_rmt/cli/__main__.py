"""`python -m hf_rmt.cli` is `hf-rmt`."""

from __future__ import annotations

import sys

from hf_rmt.cli import main

if __name__ == "__main__":
    sys.exit(main())
