"""Whether the families of a cohort are enough to learn the weights of the hypotheses from.

What all loci share (batch, composition of cells, the one draw of a few individuals) correlates individuals at every
locus alike. Thousands of loci do not replicate it: only individuals and families do. With one family it cannot be
distinguished from transmission, however many loci there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from epivi.quality.columns import FAMILY_FACTOR

# METHOD: below FEWEST_FAMILIES the weights are not learned: every hypothesis keeps the same weight, and nothing is
# called. Below FAMILIES_TO_TRUST they are, with a warning that goes to the summary.
FEWEST_FAMILIES = 2
FAMILIES_TO_TRUST = 3
# Keys in files' metadata.
FAMILIES_METADATA = "epivi.families"
CANNOT_TELL_METADATA = "epivi.cannot_tell"


def why_nothing_is_called(families: int | None) -> str:
    """The reason, for a number of families with two or more sampled relatives.

    Empty where there are enough, or where they do not matter (None).
    """
    if families is None or families >= FEWEST_FAMILIES:
        return ""
    reason = (
        "only one family has two or more sampled relatives. What its members share at all loci, such as batch or "
        "cells, cannot be distinguished from transmission"
        if families
        else "no two of the sampled individuals are related, so that nothing shows what is passed on"
    )
    return (
        f"cannot tell: {reason}. No locus is called, and every hypothesis keeps the same weight; log evidences and the "
        "posteriors within a hypothesis stand for single loci"
    )


def warning_of_few_families(families: int | None) -> str:
    """What the user is warned of; empty where nothing is to be warned of."""
    if families is None or families >= FAMILIES_TO_TRUST:
        return ""
    return why_nothing_is_called(families) or (
        f"families with sampled relatives: {families}. What a whole family shares cannot be distinguished from the "
        "baseline of the locus, so that the weights of the hypotheses rest on the priors; look at the posteriors "
        "within a hypothesis"
    )


def why_family_is_not_told(findings: Sequence[Mapping[str, str]]) -> str:
    """The reason against calls, from rows of findings; empty where no factor coincides with families."""
    return next((f"{one['text']}. No locus is called" for one in findings if one["check"] == FAMILY_FACTOR), "")
