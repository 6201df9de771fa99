"""From the rows of one contig to its loci: sort, sum duplicates, merge the strands of CpGs, apply coverage limits."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from epivi.ingest.layout import CG, MINUS, PLUS, UNKNOWN, Counts, IngestSettings
from epivi.tables.columns import CONTEXTS

# METHOD: with six reads a CpG's chance to have them all on one strand is 3 %, whatever the depth, if the library reads
# both strands.
WELL_COVERED_READS = 6


class Pairing(NamedTuple):
    """How loci of one context lie to each other, which shows whether they are of that context.

    loci: CpGs with their strands summed, or where no CpGs are read, the others. impossible: those that cannot stand
    beside their neighbour: CpGs one base after another, or other cytosines with one of the - strand after them, which
    are CpGs. well_covered, one_stranded: CpGs of at least WELL_COVERED_READS reads, and those of them with rows of one
    strand alone.
    """

    loci: int
    impossible: int
    well_covered: int = 0
    one_stranded: int = 0


class ContigLoci(NamedTuple):
    """Loci of one contig, and what became of its rows.

    Rows that were kept = loci + duplicates_merged + strands_merged.
    """

    loci: Counts
    dropped: dict[str, int]  # reason -> rows
    duplicates_merged: int  # rows added to an earlier row of their own position and strand
    strands_merged: int  # rows added to a row of the opposite strand
    strand_unknown: int  # CpGs written at their own position because their strand is not known
    was_sorted: bool
    pairing: Pairing


class _Groups(NamedTuple):
    """Candidate loci with the number of rows in each, and how many of these are distinct strands."""

    loci: Counts  # meth and total int64
    rows: np.ndarray  # int64 [loci]
    strands: np.ndarray  # int64 [loci]

    def select(self, index: np.ndarray) -> _Groups:
        return _Groups(self.loci.select(index), self.rows[index], self.strands[index])


def contig_loci(rows: Counts, settings: IngestSettings) -> ContigLoci:
    """Loci of the rows of one contig, which may come in any order."""
    was_sorted = bool(np.all(rows.pos0[1:] >= rows.pos0[:-1]))
    groups = _grouped(rows, settings.merge_strands)
    if settings.merge_strands:
        groups = _pair_unknown_strands(groups)
        pairing = _pairing(groups)
    else:
        pairing = _pairing(_pair_unknown_strands(_grouped(rows, merge_strands=True)))
    if CONTEXTS[CG] not in settings.contexts:
        pairing = _neighbours(groups.loci)
    total = groups.loci.total
    is_low, is_high = total < settings.min_coverage, total > settings.max_coverage
    dropped = {
        "below_min_coverage": int(groups.rows[is_low].sum()),
        "above_max_coverage": int(groups.rows[is_high].sum()),
    }
    kept = groups.select(~(is_low | is_high)) if any(dropped.values()) else groups
    is_lone = (kept.loci.strand == UNKNOWN) & (kept.loci.context == CG)
    loci = kept.loci._replace(meth=kept.loci.meth.astype(np.int32), total=kept.loci.total.astype(np.int32))
    return ContigLoci(
        loci,
        dropped,
        duplicates_merged=int((kept.rows - kept.strands).sum()),
        strands_merged=int((kept.strands - 1).sum()),
        strand_unknown=int(np.count_nonzero(is_lone)) if settings.merge_strands else 0,
        was_sorted=was_sorted,
        pairing=pairing,
    )


def _pairing(groups: _Groups) -> Pairing:
    """Of groups whose strands are merged."""
    loci = groups.loci
    is_cpg = loci.context == CG
    pos0 = loci.pos0[is_cpg & (loci.strand != UNKNOWN)]
    is_covered = is_cpg & (loci.total >= WELL_COVERED_READS)
    return Pairing(
        loci=int(np.count_nonzero(is_cpg)),
        impossible=int(np.count_nonzero(np.diff(pos0) == 1)),
        well_covered=int(np.count_nonzero(is_covered)),
        one_stranded=int(np.count_nonzero(is_covered & (groups.strands == 1))),
    )


def _neighbours(loci: Counts) -> Pairing:
    """Of loci without CpGs."""
    plus, minus = (loci.pos0[loci.strand == strand] for strand in (PLUS, MINUS))
    return Pairing(len(loci.pos0), len(np.intersect1d(plus + 1, minus)))


def _grouped(rows: Counts, merge_strands: bool) -> _Groups:
    """Sum rows of one position, strand and context; with `merge_strands` a minus-strand CpG counts at the base before.

    Reads of a variant may give the C of a CpG another context than those of the other strand do: two loci.
    """
    is_reverse = (rows.strand == MINUS) & (rows.context == CG) & merge_strands
    pos0 = rows.pos0 - is_reverse.astype(np.int32)
    strand = np.where(is_reverse, PLUS, rows.strand).astype(np.int8)
    # One sort key: position, strand and context of the locus, strand of the row.
    key = ((pos0.astype(np.int64) * 4 + strand) * 4 + rows.context) * 4 + rows.strand
    merged = Counts(pos0, strand, rows.context, rows.meth.astype(np.int64), rows.total.astype(np.int64))
    if np.any(key[1:] < key[:-1]):
        order = np.argsort(key, kind="stable")
        key, merged = key[order], merged.select(order)
    is_new_strand = _is_new(key)
    starts = np.flatnonzero(_is_new(key >> 2))
    loci = merged.select(starts) if len(starts) < len(key) else merged
    return _Groups(
        loci._replace(meth=_sums(merged.meth, starts), total=_sums(merged.total, starts)),
        rows=np.diff(starts, append=len(key)),
        strands=_sums(is_new_strand.astype(np.int64), starts),
    )


def _is_new(key: np.ndarray) -> np.ndarray:
    """Where a sorted key differs from the one before it."""
    is_new = np.ones(len(key), dtype=bool)
    is_new[1:] = key[1:] != key[:-1]
    return is_new


def _sums(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    return values if len(starts) == len(values) else np.add.reduceat(values, starts)


def _pair_unknown_strands(groups: _Groups) -> _Groups:
    """Add each CpG cytosine of unknown strand to the base before it where the two are plainly one CpG.

    # METHOD: adjacent covered bases of unknown strand are the two strands of a CpG. A run of two, or of any even length
    # (CGCG), is paired from the left. In a run of odd length a strand is missing and nothing here says which, so its
    # rows stay apart with strand "."; the join over samples settles them, as it does a base that stands alone.
    """
    loci = groups.loci
    unknown = np.flatnonzero((loci.strand == UNKNOWN) & (loci.context == CG))
    if not len(unknown):
        return groups
    follows = np.zeros(len(unknown) + 1, dtype=bool)  # the one before; the last stands for the end
    follows[1:-1] = loci.pos0[unknown[1:]] - loci.pos0[unknown[:-1]] == 1
    unknown = unknown[follows[:-1] | follows[1:]]  # runs of two and more
    if not len(unknown):
        return groups
    run_starts = np.flatnonzero(np.diff(loci.pos0[unknown], prepend=-2) != 1)
    run_lengths = np.diff(run_starts, append=len(unknown))
    place = np.arange(len(unknown)) - np.repeat(run_starts, run_lengths)
    is_second = (np.repeat(run_lengths, run_lengths) % 2 == 0) & (place % 2 == 1)
    second = np.flatnonzero(is_second)
    first, second = unknown[second - 1], unknown[second]
    for column in (loci.meth, loci.total, groups.rows, groups.strands):
        column[first] += column[second]
    loci.strand[first] = PLUS
    keep = np.ones(len(loci.pos0), dtype=bool)
    keep[second] = False
    return groups.select(keep)
