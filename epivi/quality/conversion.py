"""Conversion and call errors of each sample, estimated from cytosines whose methylation is known.

Among n reads of unmethylated cytosines the share read as methylated estimates eps, the sample's false_methylated; among
n reads of methylated ones the share read as unmethylated estimates delta, its false_unmethylated.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from scipy.special import betaincinv

from epivi.cohort.samples import ALL_READS, SampleSheet
from epivi.ingest.controls import METHYLATED, UNMETHYLATED, ReadSums

# METHOD: fewer reads of controls than this say too little to be used: at 1,000 an error of 0.5 % is known to within
# half of itself.
MIN_READS = 1000
# METHOD: a larger share of errors means that the control is not what the configuration says.
MAX_RATE = 0.2
INTERVAL = 0.95

log = logging.getLogger(__name__)

Sums = Mapping[str, Mapping[str, Sequence[Any]]]  # sample -> name -> fields of ReadSums


class ErrorRate(NamedTuple):
    """An error probability and its 95 % interval, from `reads` reads at `rows` positions and strands."""

    rate: float
    lower: float
    upper: float
    reads: int
    rows: int


class SampleErrors(NamedTuple):
    """One error probability of one sample: what the controls and the sheet say, and what the likelihood uses."""

    sample: str
    estimated: ErrorRate | None  # None without reads of controls
    given: float | None  # None where the sheet leaves it open
    used: float
    reason: str  # sheet, controls, or why neither

    @property
    def disagrees(self) -> bool:
        """Whether the sheet's value lies outside the interval of a usable estimate."""
        return (
            self.estimated is not None
            and self.given is not None
            and _is_usable(self.estimated)
            and not self.estimated.lower <= self.given <= self.estimated.upper
        )


def error_rate(sums: ReadSums, *, counts_methylated: bool) -> ErrorRate | None:
    """Share of the reads that are methylated, or are not, with its 95 % interval; None without reads.

    # METHOD: errors cluster (a fragment that was not denatured, a motif that is called badly), so that reads of one
    # position are not independent. The variance of the ratio r = sum m / sum n between positions,
    # K / (K - 1) sum (m - r n)^2 / (sum n)^2, over the binomial r (1 - r) / sum n is the design effect; reads are
    # divided by it, where it is above 1, and the interval is Jeffreys' for what is left (Korn and Graubard 1998,
    # Survey Methodology 24:193; Brown, Cai and DasGupta 2001, Statistical Science 16:101).
    """
    if not sums.reads:
        return None
    errors = sums.methylated if counts_methylated else sums.reads - sums.methylated
    rate = errors / sums.reads
    effect = _design_effect(sums)
    a, b = errors / effect + 0.5, (sums.reads - errors) / effect + 0.5
    tail = (1 - INTERVAL) / 2
    lower = float(betaincinv(a, b, tail)) if errors else 0.0
    upper = float(betaincinv(a, b, 1 - tail)) if errors < sums.reads else 1.0
    return ErrorRate(rate, min(lower, rate), max(upper, rate), sums.reads, sums.rows)


def _design_effect(sums: ReadSums) -> float:
    """Variance of the methylated share between positions over that of independent reads, at least 1."""
    share = sums.methylated / sums.reads
    if sums.rows < 2 or share in (0.0, 1.0):
        return 1.0
    squares = sums.methylated_squared - 2 * share * sums.reads_methylated + share**2 * sums.reads_squared
    return max(1.0, sums.rows / (sums.rows - 1) * squares / (share * (1 - share) * sums.reads))


def sample_errors(sheet: SampleSheet, sums: Sums) -> dict[str, tuple[SampleErrors, ...]]:
    """`false_methylated` and `false_unmethylated` of every sample, in the order of the sheet.

    # METHOD: an explicit value of the sheet wins. Errors belong to a library, not to a haplotype: rows of the sheet
    # that name the same file share the reads of its controls, which carry no haplotype.
    """
    pooled = _pooled(sheet, sums)
    columns = (
        ("false_methylated", UNMETHYLATED, True, sheet.false_methylated, sheet.open_false_methylated),
        ("false_unmethylated", METHYLATED, False, sheet.false_unmethylated, sheet.open_false_unmethylated),
    )
    return {
        column: tuple(
            _resolved(
                sample,
                error_rate(pooled[library].get(control, ReadSums()), counts_methylated=counts_methylated),
                None if sample in left_open else float(value),
            )
            for sample, library, value in zip(sheet.samples, _libraries(sheet), values, strict=True)
        )
        for column, control, counts_methylated, values, left_open in columns
    }


def _libraries(sheet: SampleSheet) -> list[tuple[str, str]]:
    """What was sequenced at once, [S]: the haplotypes of a file; whole samples of one file are columns of a matrix."""
    rows = zip(sheet.samples, sheet.paths, sheet.haplotypes, strict=True)
    return [(path, sample if haplotype == ALL_READS else "") for sample, path, haplotype in rows]


def _pooled(sheet: SampleSheet, sums: Sums) -> dict[tuple[str, str], dict[str, ReadSums]]:
    """Sums of the controls of each library; rows of different haplotypes hold different reads of it."""
    seen: set[tuple[tuple[str, str], str]] = set()
    libraries = _libraries(sheet)
    pooled: dict[tuple[str, str], dict[str, ReadSums]] = {library: {} for library in libraries}
    for sample, library, haplotype in zip(sheet.samples, libraries, sheet.haplotypes, strict=True):
        if (library, haplotype) in seen:
            continue
        seen.add((library, haplotype))
        for name, values in sums.get(sample, {}).items():
            pooled[library][name] = pooled[library].get(name, ReadSums()) + ReadSums(*values)
    return pooled


def _is_usable(estimated: ErrorRate) -> bool:
    return estimated.reads >= MIN_READS and estimated.rate <= MAX_RATE


def _resolved(sample: str, estimated: ErrorRate | None, given: float | None) -> SampleErrors:
    if given is not None:
        return SampleErrors(sample, estimated, given, given, "sheet")
    if estimated is None:
        return SampleErrors(sample, None, None, 0.0, "no controls")
    if _is_usable(estimated):
        return SampleErrors(sample, estimated, None, estimated.rate, "controls")
    reason = "few reads" if estimated.reads < MIN_READS else "implausible rate"
    return SampleErrors(sample, estimated, None, 0.0, reason)


def with_estimated_errors(sheet: SampleSheet, sums: Sums) -> SampleSheet:
    """The sheet with error probabilities that it leaves open filled in from the controls; the log says which."""
    errors = sample_errors(sheet, sums)
    for column, rows in errors.items():
        _log(column, rows)
    used = {column: np.array([row.used for row in rows], dtype=np.float64) for column, rows in errors.items()}
    return replace(sheet, false_methylated=used["false_methylated"], false_unmethylated=used["false_unmethylated"])


def _log(column: str, rows: Sequence[SampleErrors]) -> None:
    """One line on what is estimated, one on explicit values that win."""
    used = [row.used for row in rows if row.reason == "controls"]
    if used:
        log.info("%s of %d samples from controls: %.3g to %.3g", column, len(used), min(used), max(used))
    won = [
        f"{row.sample} {row.given:.3g} (controls {row.estimated.rate:.3g})"
        for row in rows
        if row.given is not None and row.estimated is not None
    ]
    if won:
        log.info("%s of the sample sheet wins over controls in %d samples: %s", column, len(won), ", ".join(won))
