"""Amortized guides: what the encoder sees of a locus, and how each guide shapes the posterior."""

from __future__ import annotations

from epivi.guides.states import full_guide, independent_guide
from epivi.guides.structured import meanfield_guide, structured_guide

# Of the family `transmission`, and of the family `epimutation`; keys are values of fit.guide.
GUIDES = {"structured": structured_guide, "meanfield": meanfield_guide}
STATE_GUIDES = {"structured": full_guide, "meanfield": independent_guide}
