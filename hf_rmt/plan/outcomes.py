"""Names for what a compression does to a layer, and for why it does not replace a layer."""

from __future__ import annotations

from enum import StrEnum

SPIKED, TERNARY = "spiked", "ternary"
"""Kinds of compressed layers. A `spiked` layer holds the low-rank signal of a weight, and the rest
of the weight, the noise. A `ternary` layer holds one matrix of -1, 0 and 1 with scales."""


class Outcome(StrEnum):
    """What a compression does to one layer."""

    KEPT = "kept"
    """The layer stays as it is."""
    REWRITTEN = "rewritten"
    """The layer is not compressed, but gets another weight."""
    REPLACED = "replaced"
    """A compressed layer takes the place of the layer."""


class Cause(StrEnum):
    """Why a layer is not replaced, for use in code; `LayerPlan.reason` gives the cause in words."""

    NONE = ""
    TOO_SMALL = "too small"
    NOT_NAMED = "not named"
    NOT_FINITE = "not finite"
    ALL_ZERO = "all zero"
    NO_EIGENVALUES = "no eigenvalues"
    DEGENERATE = "degenerate"
    NO_SIGNAL = "no signal"
    DENSE_IS_SMALLER = "dense is smaller"
    NOT_STORABLE = "not storable"
    ZEROS_IN_PLACE = "zeros in place"
    NOT_REACHED = "not reached"
    FROZEN = "frozen"
    NO_GRADIENT = "no gradient"
    ALL_WORTH = "all worth"
    READ_BY_PARENT = "read by parent"
    ROUTER = "router"
    CONVERTED = "converted"
    SUBCLASS = "subclass"
    MADE_ANEW = "made anew"
    CARRIES = "carries what cannot be moved"
    TIED = "tied"
    REFERRED_TO = "referred to elsewhere"
