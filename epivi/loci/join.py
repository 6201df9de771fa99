"""Join the counts of several samples, a large contig or a group of small ones at a time, into sums by locus.

They are gone through in windows of positions, all samples side by side, so that memory is bounded by a window (about
one million counts), besides one page of each sample of a large contig or its rows of a group, whatever the genome and
cohort; only intervals that are still open are carried on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from epivi.loci.contig_line import ContigLine, Places
from epivi.loci.counts_file import CountRows, CountsFile
from epivi.loci.loci_file import PanelRows
from epivi.loci.masks import LineMask, Mask
from epivi.loci.units import CG, MINUS, PLUS, UNKNOWN, Sums, concatenate, context_of, keys_of, sum_equal_keys

# Counts (loci x samples) that a window should hold, and its least length in a contig that needs several.
WINDOW_VALUES = 1 << 20
MIN_WINDOW_BP = 1 << 10
BATCH_ROWS = 1 << 14  # of a sample's rows that are looked at together
BEYOND_ANY_CONTIG = 1 << 58
MAX_READS = np.iinfo(np.uint16).max


class Rows(NamedTuple):
    """Counts of all samples in a window of a group's line, sample after sample."""

    pos0: np.ndarray  # int64 [R]
    strand_code: np.ndarray  # int8 [R]
    context_code: np.ndarray  # int8 [R]
    meth: np.ndarray  # int32 [R]
    total: np.ndarray  # int32 [R]
    sample: np.ndarray  # int64 [R]


def _sum_positions(keys: np.ndarray, rows: Rows, n_samples: int) -> Sums:
    """Reads by key and sample; a sample's rows of one key (the two strands of a CpG) add up."""
    # Sorting is several times faster here than np.unique, which hashes.
    ordered = np.sort(keys)
    distinct = ordered[np.diff(ordered, prepend=-1) > 0]
    cell = np.searchsorted(distinct, keys) * n_samples + rows.sample
    shape = (distinct.size, n_samples)
    # Sums of 32-bit counts are exact in double precision.
    meth, total = (
        np.bincount(cell, counts, distinct.size * n_samples).astype(np.int64).reshape(shape)
        for counts in (rows.meth, rows.total)
    )
    return Sums(distinct, meth, total)


# ------------------------------------------------------------------------------------------------------------- strands


class _Resolved(NamedTuple):
    """Keys [R] of the positions that R rows count for, with strands agreed over all samples."""

    keys: np.ndarray
    has_open: bool  # CpG rows of unknown strand, which might be either base of theirs
    pairs_are_own: bool  # of these each counts for its own position
    strands_are_own: bool  # each row that keeps its strand had it of itself


def _resolve(rows: Rows, merge_strands: bool, stretch: int) -> _Resolved:
    """stretch: as in the ContigLine whose positions these are."""
    offset = _offsets(rows.pos0)
    strand = _known_strand(offset, rows.strand_code)
    pos0 = rows.pos0.copy()
    is_merged = merge_strands & (rows.context_code == CG)
    is_open = is_merged & (rows.strand_code == UNKNOWN)
    if is_merged.any():
        is_second = _is_second_base(offset[is_merged], rows.strand_code[is_merged])
        # Before the first base of a contig lies no other of it, whatever the strand said to be there.
        pos0[is_merged] -= is_second & (pos0[is_merged] % stretch > 0)
    pairs_are_own = np.array_equal(pos0[is_open], rows.pos0[is_open])
    strands_are_own = np.array_equal(strand[~is_merged], rows.strand_code[~is_merged])
    strand[is_merged] = UNKNOWN
    return _Resolved(keys_of(pos0, rows.context_code, strand), bool(is_open.any()), pairs_are_own, strands_are_own)


def _offsets(pos0: np.ndarray) -> np.ndarray:
    """Small numbers from 1 on, in the order of the positions, that differ by one where the positions do, else by more.

    Arrays by offset are bounded by the rows, however far apart these lie.
    """
    ordered = np.sort(pos0)
    distinct = ordered[np.diff(ordered, prepend=-1) > 0]
    offset = np.cumsum(np.minimum(np.diff(distinct, prepend=distinct[0] - 1), 2))
    return offset[np.searchsorted(distinct, pos0)]


def _known_strand(offset: np.ndarray, strand_code: np.ndarray) -> np.ndarray:
    """Strand code of each row: what any sample knows of its position."""
    known = np.full(offset.max() + 1, UNKNOWN, np.int8)
    for strand in (MINUS, PLUS):
        known[offset[strand_code == strand]] = strand
    return known[offset]


def _is_second_base(offset: np.ndarray, strand_code: np.ndarray) -> np.ndarray:
    """Whether each CpG row [R > 0] sits at the G of its CpG, that is, counts for the position before it.

    METHOD: readers that know the strand decide. Otherwise a position next to a known C of a + strand is its partner;
    runs of the remaining adjacent positions, seen in any sample, pair up from the left, and one left over counts as C.
    """
    size = offset.max() + 2
    is_plus, is_minus, is_open = np.zeros((3, size), bool)
    for mask, strand in ((is_plus, PLUS), (is_minus, MINUS), (is_open, UNKNOWN)):
        mask[offset[strand_code == strand]] = True
    is_plus[:-1] |= is_minus[1:]
    follows_plus = np.zeros(size, bool)
    follows_plus[1:] = is_plus[:-1]
    is_second = follows_plus & ~is_plus
    run = np.flatnonzero(is_open & ~is_plus & ~follows_plus)
    number = np.arange(run.size)
    run_start = np.maximum.accumulate(np.where(np.diff(run, prepend=-2) != 1, number, 0))
    is_second[run] = (number - run_start) % 2 == 1
    return np.where(strand_code == UNKNOWN, is_second[offset], strand_code == MINUS)


def _frontier(rows: Rows, stop: int, merge_strands: bool) -> int:
    """Where rows can be cut without tearing a run of adjacent CpG positions: just after a position without CpG rows."""
    is_cg = rows.context_code == CG
    if not (merge_strands and np.any(is_cg & (rows.pos0 == stop - 1))):
        return stop
    seen = np.unique(rows.pos0[is_cg])
    breaks = np.flatnonzero(np.diff(seen) > 1)
    return int(seen[breaks[-1] + 1]) if breaks.size else int(seen[0])


# ------------------------------------------------------------------------------------------------------------- joining


class _Cursor:
    """Hands out one sample's rows of a group, up to a position of its line at a time."""

    def __init__(self, file: CountsFile, line: ContigLine, sample: int) -> None:
        self._batches = _line_rows(file, line)
        self._sample = sample
        self._held: list[CountRows] = []

    def take(self, stop: int) -> Rows:
        """The rows not yet taken that lie before `stop`."""
        while not self._held or self._held[-1].pos0[-1] < stop:
            batch = next(self._batches, None)
            if batch is None:
                break
            self._held.append(batch)
        rows = concatenate([*self._held, _NO_COUNTS])
        cut = int(np.searchsorted(rows.pos0, stop))
        self._held = [CountRows(*(array[cut:] for array in rows))] if cut < rows.pos0.size else []
        return Rows(*[*(array[:cut] for array in rows), np.full(cut, self._sample, np.int64)])


_NO_COUNTS = CountRows(*(np.empty(0, dtype) for dtype in (np.int64, np.int8, np.int8, np.int32, np.int32)))


def _line_rows(file: CountsFile, line: ContigLine) -> Iterator[CountRows]:
    """One sample's rows, at their positions on the line (int64): as they are read, or at once if of several contigs."""
    if len(line.contigs) == 1:
        for rows in file.rows(line.contigs[0], BATCH_ROWS):
            yield rows._replace(pos0=rows.pos0.astype(np.int64))
        return
    rows, number = file.rows_of(line.contigs)
    rows = rows._replace(pos0=line.on_line(number, rows.pos0))
    for start in range(0, number.size, BATCH_ROWS):
        yield CountRows(*(array[start : start + BATCH_ROWS] for array in rows))


def _window_stops(files: Sequence[CountsFile], line: ContigLine) -> Iterator[int]:
    """Ends of the windows of a line; the last lies after its last position.

    A contig of more counts than a window should have is cut; others share windows.
    """
    values = stop = 0
    for number, contig in enumerate(line.contigs):
        parts = [file.contigs[contig] for file in files if contig in file.contigs]
        first, last = min(part.first_pos0 for part in parts), max(part.last_pos0 for part in parts)
        # Twice the densest sample, since samples cover different positions.
        own = 2 * len(files) * max(part.n_rows for part in parts)
        if stop and values + own > WINDOW_VALUES:
            yield stop
            values = 0
        if own > WINDOW_VALUES:
            width = max(MIN_WINDOW_BP, WINDOW_VALUES * (last - first + 1) // own)
            yield from range(number * line.stretch + first + width, number * line.stretch + last + 1, width)
        values, stop = values + own, number * line.stretch + last + 1
    yield stop


def _windows(files: Sequence[CountsFile], line: ContigLine, merge_strands: bool) -> Iterator[tuple[Rows, int]]:
    """Rows of all samples window by window, each with the position up to which rows are now complete."""
    cursors = [_Cursor(file, line, sample) for sample, file in enumerate(files)]
    carried: list[Rows] = []
    for stop in _window_stops(files, line):
        rows: Rows = concatenate([*carried, *(cursor.take(stop) for cursor in cursors)])
        frontier = _frontier(rows, stop, merge_strands)
        is_complete = rows.pos0 < frontier
        carried = [Rows(*(array[~is_complete] for array in rows))]
        # A later row on the - strand may still count for the position before the frontier.
        yield Rows(*(array[is_complete] for array in rows)), frontier - 1
    yield carried[0], BEYOND_ANY_CONTIG


class Joined(NamedTuple):
    """Complete loci of a group, after those before; their keys are those of its line."""

    sums: Sums
    # Whether each sample's rows would be at the same loci without the others, and beside any that agree on strands;
    is_settled: bool
    # and whether that asks, besides, that no other CpG be a base apart from one of these.
    has_open: bool
    masked: np.ndarray  # int64 [M], cytosines that each mask leaves out


def joined(
    files: Sequence[CountsFile], line: ContigLine, merge_strands: bool, masks: Sequence[Mask] = ()
) -> Iterator[Joined]:
    """Loci of a group in order, with reads of at least one sample; each contig must have rows in one of the files.

    masks: files of sites; cytosines at which are left out of the sums of tiles and intervals.
    """
    unit, line_mask = line.unit, LineMask.of(masks, line, merge_strands)
    pending: list[Sums] = []
    for rows, frontier in _windows(files, line, merge_strands):
        is_settled, has_open = True, False
        masked = np.zeros(len(masks), np.int64)
        if rows.pos0.size:
            resolved = _resolve(rows, merge_strands, line.stretch)
            has_open = resolved.has_open
            # Sums over positions do not show which of them had reads.
            is_settled = resolved.pairs_are_own and resolved.strands_are_own if unit.is_stranded else not has_open
            positions = _sum_positions(resolved.keys, rows, len(files))
            if masks:
                touched = line_mask.touch(positions.keys)
                masked = touched.sum(axis=1)
                positions = Sums(*(array[~touched.any(axis=0)] for array in positions))
            pending.append(unit.collect(positions) if positions.keys.size else positions)
        if not pending:
            continue
        sums = sum_equal_keys(concatenate(pending)) if len(pending) > 1 else pending[0]
        cut = int(np.searchsorted(sums.keys, unit.first_open(frontier)))
        pending = [Sums(*(array[cut:] for array in sums))] if cut < sums.keys.size else []
        yield Joined(Sums(*(array[:cut] for array in sums)), is_settled, has_open, masked)


def panel_rows(places: Places, sums: Sums) -> PanelRows:
    """The loci as stored: counts of MAX_READS and more are scaled down to it, keeping their proportion."""
    excess = sums.total > MAX_READS
    meth, total = sums.meth, np.minimum(sums.total, MAX_READS)
    if excess.any():
        meth = np.where(excess, np.rint(sums.meth * (MAX_READS / np.maximum(sums.total, 1))).astype(np.int64), meth)
    return PanelRows(
        places.pos0,
        places.end0,
        (sums.keys % 4).astype(np.int8),
        context_of(sums.keys).astype(np.int8),
        meth.astype(np.uint16),
        total.astype(np.uint16),
    )
