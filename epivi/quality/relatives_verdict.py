"""What the resemblance of relatives says of a cohort, in plain words: warnings, and a verdict of a few sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from epivi.cohort.relatives import WITHOUT_BLOOD
from epivi.quality.by_relative import SAME_LEVEL, Resemblance, Row, critical
from epivi.quality.findings import Finding

# METHOD: replicates of one individual share all but the library, so that at least this much of what differs between
# samples should be the individual's.
REPLICATES_SHARE = 0.5
NEGATIVE_CONTROLS = {"mates": "mates (parents of a child)", "in_laws": "in-laws"}


def relatives_findings(
    found: Resemblance, is_related: NDArray[np.bool_], columns: Mapping[str, NDArray[np.int32]]
) -> Iterator[Finding]:
    """Warnings of relatives that resemble each other where nothing is passed on, or do not where they should.

    is_related: pairs of samples related by blood, [S, S]. columns: level of each sample, [S], in the columns that were
    looked within.
    """
    for row in found.rows:
        if row.kind in NEGATIVE_CONTROLS and not row.column and _exceeds(row, 0.0, found.tests):
            yield _negative_control(row, found)
        if row.kind == "replicates" and not row.column and _falls_short(row, found.tests):
            yield _replicates(row)
        if row.kind == SAME_LEVEL and _exceeds(row, 0.0, found.tests):
            yield _same_level(row)
    for column, level in columns.items():
        if coincides(level[:, None] == level[None, :], is_related):
            yield _coincides(column)


def coincides(same_level: NDArray[np.bool_], is_related: NDArray[np.bool_]) -> bool:
    """Whether relatives share their level and no others do, so that pairs say nothing of the one beside the other."""
    off = ~np.eye(len(same_level), dtype=bool)
    return bool(is_related[off].any() and (same_level == is_related)[off].all())


def _exceeds(row: Row, limit: float, tests: int) -> bool:
    return _has_error(row) and row.correlation - critical(row.freedom, tests) * row.error > limit


def _falls_short(row: Row, tests: int) -> bool:
    """Replicates are compared by the error over loci where one family alone has them."""
    error = row.error if _has_error(row) else row.se_loci
    freedom = row.freedom if _has_error(row) else 30
    return bool(row.correlation + critical(freedom, tests) * error < REPLICATES_SHARE)


def _has_error(row: Row) -> bool:
    return bool(np.isfinite(row.correlation) and np.isfinite(row.se_families) and row.freedom > 0)


def _negative_control(row: Row, found: Resemblance) -> Finding:
    text = (
        f"{NEGATIVE_CONTROLS[row.kind]} resemble each other: correlation {_number(row)} above that of "
        f"{words(found.reference)}, in {row.pairs} pairs of {row.families} families. Nothing is passed on between "
        "them: what families share otherwise (household, batch, age) looks like inheritance in this cohort"
    )
    return Finding("relatives", "", "", row.correlation, 0.0, text)


def _replicates(row: Row) -> Finding:
    text = (
        f"samples of one individual hardly resemble each other: correlation {_number(row)}, in {row.pairs} pairs. Most "
        "of what differs between samples differs between libraries of one individual: are samples swapped, or is it "
        "preparation or batch?"
    )
    return Finding("relatives", "", "", row.correlation, REPLICATES_SHARE, text)


def _same_level(row: Row) -> Finding:
    text = (
        f"samples with the same {row.column} are more alike than pairs of the same kind that differ in it: correlation "
        f"{_number(row)} more. Where relatives share it, it looks like inheritance: name it in model.covariates, or as "
        "environment of a hypothesis"
    )
    return Finding("relatives", "", "", row.correlation, 0.0, text)


def _coincides(column: str) -> Finding:
    text = (
        f"column {column!r} coincides with the families: all who are related share it and no others do, so that what "
        "it does to methylation cannot be distinguished from inheritance"
    )
    return Finding("relatives", "", "", float("nan"), float("nan"), text)


def verdict(found: Resemblance) -> str:
    """What the pairs without blood in common say, or why they say nothing, in one or two sentences."""
    if not found.reference:
        return "no two samples are unrelated by blood: nothing to compare relatives with"
    if not found.sd:
        return "samples do not differ beyond what their reads explain: relatives cannot be compared"
    controls = [row for row in found.rows if row.kind in NEGATIVE_CONTROLS and not row.column and not row.is_reference]
    if not controls:
        return (
            "no mates or in-laws among the samples to show what a household or batch of families does"
            + _relative_to(found)
        )
    return "; ".join(_of_control(row, found.tests) for row in controls) + _relative_to(found)


def _relative_to(found: Resemblance) -> str:
    return "" if found.reference == WITHOUT_BLOOD[-1] else f" (relative to {words(found.reference)}: all are connected)"


def _of_control(row: Row, tests: int) -> str:
    name = words(row.kind)
    if not _has_error(row):
        return (
            f"{name}: {row.correlation:.3f}, without a standard error, as there are not enough families "
            f"({row.families}) to leave one out"
        )
    if _exceeds(row, 0.0, tests):
        return f"{name} resemble each other, {_number(row)}: household, batch or age looks like inheritance here"
    return (
        f"{name} do not resemble each other beyond error ({_number(row)}; from {row.detectable:.2f} on it would show)"
    )


def _number(row: Row) -> str:
    return f"{row.correlation:.3f} (SE {row.se_families:.3f} over families, {row.se_loci:.3f} over loci)"


def words(kind: str) -> str:
    """A kind of pair in a sentence."""
    return {"unrelated": "unrelated samples", "in_laws": "in-laws"}.get(kind, kind.replace("_", " "))
