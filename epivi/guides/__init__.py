"""Amortized guides: what the encoder sees of a locus, and how each guide shapes the posterior."""

from __future__ import annotations

from epivi.guides.structured import meanfield_guide, structured_guide

GUIDES = {"structured": structured_guide, "meanfield": meanfield_guide}
