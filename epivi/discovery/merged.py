"""Groups of hypotheses that the design of a cohort cannot separate, as `epivi design` finds them: one in all results.

What the data say of a group is its sum; how that divides among the members is what the priors say.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from epivi.base.errors import UserError
from epivi.tables.parquet import open_parquet

Array = NDArray[np.float64]
Groups = tuple[tuple[int, ...], ...]  # of all H hypotheses, in the order of their first members

# Keys in files' metadata.
GROUPS_METADATA = "epivi.groups"
SENTENCES_METADATA = "epivi.design"


def each_alone(hypotheses: int) -> Groups:
    """Groups of one."""
    return tuple((h,) for h in range(hypotheses))


def group_name(group: Sequence[int], hypotheses: Sequence[str]) -> str:
    """Names of the members joined by |."""
    return "|".join(hypotheses[h] for h in group)


def groups_of(names: Sequence[str], merged: Sequence[str]) -> Groups:
    """Groups from the name of each hypothesis's group [H]."""
    members: dict[str, list[int]] = {}
    for h, _ in enumerate(names):
        members.setdefault(merged[h], []).append(h)
    return tuple(map(tuple, members.values()))


def read_groups(path: Path, hypotheses: Sequence[str], pedigree_hash: str) -> Groups:
    """Groups from a table `design`. Raises UserError where it is of other hypotheses or of another pedigree."""
    file, provenance = open_parquet(path, "design")
    named = json.loads((file.schema_arrow.metadata or {}).get(GROUPS_METADATA.encode(), b"[]"))
    if sorted(name for group in named for name in group) != sorted(hypotheses):
        found = ", ".join(name for group in named for name in group)
        raise UserError(f"{path}: holds the hypotheses {found}; expected {', '.join(hypotheses)}, as configured")
    if provenance.pedigree_hash != pedigree_hash:
        raise UserError(f"{path}: is of another pedigree than the evidence; run epivi design again")
    position = {name: h for h, name in enumerate(hypotheses)}
    return tuple(sorted(tuple(sorted(position[name] for name in group)) for group in named))


def read_sentences(path: Path) -> tuple[str, ...]:
    """What `epivi design` said."""
    file, _ = open_parquet(path, "design")
    return tuple(json.loads((file.schema_arrow.metadata or {}).get(SENTENCES_METADATA.encode(), b"[]")))


def merged_nulls(is_null: NDArray[np.bool_], groups: Groups) -> NDArray[np.bool_]:
    """Hypotheses [H] that count as null: with a null hypothesis its whole group does.

    # METHOD: where nothing can separate a null hypothesis from one that transmits, to call the second would be a choice
    # between the two that no data make.
    """
    merged = is_null.copy()
    for group in groups:
        merged[list(group)] = is_null[list(group)].any()
    return merged


def why_nothing_is_separate(is_null: NDArray[np.bool_], groups: Groups) -> str:
    """Why nothing is called where every hypothesis that transmits is one with a null hypothesis; else empty."""
    if is_null.all() or not merged_nulls(is_null, groups).all():
        return ""
    return (
        "cannot tell: the samples cannot separate any transmission from a hypothesis without it, whatever the loci. No "
        "locus is called"
    )


def warnings_of_groups(hypotheses: Sequence[str], is_null: NDArray[np.bool_], groups: Groups) -> tuple[str, ...]:
    """What the user is warned of: hypotheses that are never called because nothing separates them from a null one."""
    found = []
    for group in groups:
        null = [hypotheses[h] for h in group if is_null[h]]
        others = [hypotheses[h] for h in group if not is_null[h]]
        if null and others:
            found.append(
                f"{group_name(group, hypotheses)}: the samples cannot separate {' or '.join(others)} from "
                f"{' or '.join(null)}, so that {' or '.join(others)} counts as null and is never called"
            )
    return tuple(found)


def summed(values: Array, groups: Groups) -> Array:
    """Values [..., H] of the hypotheses added up within groups, [..., G]."""
    return np.stack([values[..., list(group)].sum(-1) for group in groups], axis=-1)
