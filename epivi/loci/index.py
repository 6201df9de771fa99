"""The index of a cohort's loci: those covered in enough samples, and the row of each in every panel.

The panels of a contig, or of a group of small ones, are walked side by side, sorted by the same keys, so that memory is
bounded by a window whatever the contigs and the cohort.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from epivi.loci.columns import index_columns
from epivi.loci.contig_line import ContigLine, Places
from epivi.loci.join import MAX_READS
from epivi.loci.loci_file import IndexRows, LociFile, LociWriter, OpenFiles, Place, whole_file
from epivi.loci.masks import LineMask, Mask
from epivi.loci.units import CG, KEY_STEP, PLUS, UNKNOWN, LocusUnit, context_of, keys_of
from epivi.tables.parquet import Provenance

# Counts (loci x samples) that a window should hold, and its least loci: more than have one position.
WINDOW_VALUES = 1 << 20
LEAST_WINDOW = 4 * KEY_STEP
BEYOND_ANY_KEY = 1 << 60


class PanelPart(NamedTuple):
    """A panel as the index sees it."""

    folder: Path
    n_samples: int
    used: tuple[int, ...]  # columns of samples of the cohort
    has_open: bool  # as Panel says


class IndexContig(NamedTuple):
    """A contig, and its place in each panel."""

    name: str
    unit: LocusUnit
    places: tuple[Place, ...]


@dataclass(frozen=True)
class IndexJob:
    """One file of the index.

    masks: files of sites, loci at which are left out; none where loci are tiles or intervals.
    """

    path: Path
    contigs: tuple[IndexContig, ...]
    panels: tuple[PanelPart, ...]
    merge_strands: bool
    samples_needed: int
    provenance: Provenance
    masks: tuple[Mask, ...] = ()


class IndexedFile(NamedTuple):
    """A file of the index, and what became of its contigs."""

    file: LociFile
    tallies: tuple[ContigTally, ...]
    strands_agree: bool  # False: the panels differ on a strand, so that they must not stand side by side
    masked: np.ndarray  # int64 [M], loci covered in enough samples that each mask leaves out


class ContigTally(NamedTuple):
    """What became of one contig."""

    contig: str
    n_seen: int  # loci with at least one read
    n_loci: int  # loci kept
    n_masked: int  # loci covered in enough samples that are left out for a site
    n_scaled: int  # counts (locus and sample) of MAX_READS reads, to which larger ones were scaled down


class _Window(NamedTuple):
    """K loci with reads, of all panels; keys ascend."""

    keys: np.ndarray  # int64 [K]
    row: np.ndarray  # int32 [K, P]
    n_covered: np.ndarray  # int64 [K], samples with reads
    n_scaled: np.ndarray  # int64 [K], counts of MAX_READS


def index_file(job: IndexJob) -> IndexedFile:
    """Write one file of the index; none is left where no locus is kept."""
    line = ContigLine.of([(contig.name, contig.unit) for contig in job.contigs])
    # What was joined at once agrees with itself.
    is_whole = len(job.panels) == 1 and len(job.panels[0].used) == job.panels[0].n_samples
    has_open = any(panel.has_open for panel in job.panels)
    strands = _StrandCheck(job.merge_strands, has_open) if line.unit.is_stranded and not is_whole else None
    line_mask, masked = LineMask.of(job.masks, line, job.merge_strands), np.zeros(len(job.masks), np.int64)
    n_seen, n_loci, n_masked, n_scaled = np.zeros((4, len(line.contigs)), np.int64)
    with LociWriter(job.path, index_columns(len(job.panels)), job.provenance) as writer:
        for window in _windows(job, line):
            places = line.places(window.keys)
            kept = window.n_covered >= job.samples_needed
            touched = line_mask.touch(window.keys) & kept
            masked += touched.sum(axis=1)
            is_masked = touched.any(axis=0)
            kept &= ~is_masked
            writer.write(_index_rows(Places(*(array[kept] for array in places)), window.keys[kept], window.row[kept]))
            n_seen += np.bincount(places.number, minlength=n_seen.size)
            n_loci += np.bincount(places.number[kept], minlength=n_loci.size)
            n_masked += np.bincount(places.number[is_masked], minlength=n_loci.size)
            np.add.at(n_scaled, places.number[kept], window.n_scaled[kept])
            if strands:
                strands.see(window.keys)
    columns = (n_seen.tolist(), n_loci.tolist(), n_masked.tolist(), n_scaled.tolist())
    tallies = tuple(map(ContigTally, line.contigs, *columns))
    file = whole_file(job.path, line.by_contig(n_loci))
    return IndexedFile(file, tallies, strands is None or bool(strands.agree), masked)


def _index_rows(places: Places, keys: np.ndarray, row: np.ndarray) -> IndexRows:
    strand_code, context_code = (array.astype(np.int8) for array in (keys % 4, context_of(keys)))
    return IndexRows(places.pos0, places.end0, strand_code, context_code, row)


def _windows(job: IndexJob, line: ContigLine) -> Iterator[_Window]:
    files = OpenFiles()
    walks = [
        _Walk(line, [contig.places[number] for contig in job.contigs], panel, files)
        for number, panel in enumerate(job.panels)
    ]
    columns = [number for number, walk in enumerate(walks) if walk.is_open]
    panels = [walks[number] for number in columns]
    size = max(LEAST_WINDOW, WINDOW_VALUES // sum(part.n_samples for part in job.panels))
    while any(panel.is_open for panel in panels):
        # Whole positions only, of which the panel that goes least far has seen all.
        bound = min(panel.look(size) for panel in panels) // KEY_STEP * KEY_STEP
        yield _merged([panel.take(bound) for panel in panels], columns, len(job.panels))


class _Rows(NamedTuple):
    """R rows of one panel of which one of the cohort's samples has reads."""

    keys: np.ndarray  # int64 [R]
    row: np.ndarray  # int32 [R]
    n_covered: np.ndarray  # int64 [R]
    n_scaled: np.ndarray  # int64 [R]


def _merged(parts: Sequence[_Rows], columns: Sequence[int], n_panels: int) -> _Window:
    keys = np.sort(np.concatenate([part.keys for part in parts]))
    keys = keys[np.diff(keys, prepend=-1) > 0] if len(parts) > 1 else keys
    row = np.full((keys.size, n_panels), -1, np.int32)
    n_covered, n_scaled = np.zeros((2, keys.size), np.int64)
    for part, column in zip(parts, columns, strict=True):
        at = np.searchsorted(keys, part.keys)
        row[at, column] = part.row
        n_covered[at] += part.n_covered
        n_scaled[at] += part.n_scaled
    return _Window(keys, row, n_covered, n_scaled)


class _Stretch(NamedTuple):
    """Loci of consecutive contigs of a group that follow one another in a file of a panel."""

    place: Place
    contig: str  # the last of them


def _stretches(contigs: Sequence[str], places: Sequence[Place]) -> list[_Stretch]:
    stretches: list[_Stretch] = []
    for contig, place in zip(contigs, places, strict=True):
        if not place.n_loci:
            continue
        last = stretches[-1].place if stretches else None
        if last and (last.file, last.first + last.n_loci) == (place.file, place.first):
            stretches[-1] = _Stretch(last._replace(n_loci=last.n_loci + place.n_loci), contig)
        else:
            stretches.append(_Stretch(place, contig))
    return stretches


class _Walk:
    """Goes through one panel's rows of a group of contigs."""

    def __init__(self, line: ContigLine, places: Sequence[Place], part: PanelPart, files: OpenFiles) -> None:
        self._line, self._part, self._files = line, part, files
        n_loci = np.array([place.n_loci for place in places])
        self._ends = np.cumsum(n_loci)  # rows up to the end of each contig
        self._starts = self._ends - n_loci
        self._n_rows = int(self._ends[-1])
        self._stretches = _stretches(line.contigs, places)
        self._stretch_ends = np.cumsum([stretch.place.n_loci for stretch in self._stretches]).tolist()
        self._used = np.array(part.used)
        self._uses_all = len(part.used) == part.n_samples
        self._next_row = 0
        self._keys = np.empty(0, np.int64)
        self._row = np.empty(0, np.int64)
        self._total = np.empty((0, part.n_samples), np.uint16)

    @property
    def is_open(self) -> bool:
        return self._next_row < self._n_rows

    def look(self, size: int) -> int:
        """Read up to `size` of the rows not yet taken; the key up to which there are no others."""
        start, stop = self._next_row, min(self._next_row + size, self._n_rows)
        if start == stop:
            self._keys = self._keys[:0]
            return BEYOND_ANY_KEY
        pieces = list(self._pieces(start, stop))
        pos0, end0, strand_code, context_code, _, self._total = (
            pieces[0] if len(pieces) == 1 else map(np.concatenate, zip(*pieces, strict=True))
        )
        row = np.arange(start, stop)
        number = np.searchsorted(self._ends, row, "right")
        self._row = row - self._starts[number]
        numbers = self._line.unit.numbers(self._line.on_line(number, pos0), self._line.on_line(number, end0))
        self._keys = keys_of(numbers, context_code, strand_code)
        return int(self._keys[-1]) if stop < self._n_rows else BEYOND_ANY_KEY

    def _pieces(self, start: int, stop: int) -> Iterator[list[np.ndarray]]:
        """The columns of the panel at the rows `start` to `stop` > `start`, stretch by stretch."""
        number = bisect.bisect_right(self._stretch_ends, start)
        while start < stop:
            place, contig = self._stretches[number]
            file = self._files.loci(self._part.folder, place, contig, "panel", self._part.n_samples)
            before, end = self._stretch_ends[number] - place.n_loci, min(stop, self._stretch_ends[number])
            yield file.rows(start - before, end - before)
            number, start = number + 1, end

    def take(self, bound: int) -> _Rows:
        """The rows looked at whose keys lie before `bound`."""
        cut = int(np.searchsorted(self._keys, bound))
        total = self._total[:cut] if self._uses_all else self._total[:cut, self._used]
        n_covered = np.count_nonzero(total, axis=1)
        seen = np.flatnonzero(n_covered)
        has_scaled = total.size and total.max() == MAX_READS
        n_scaled = np.count_nonzero(total == MAX_READS, axis=1) if has_scaled else np.zeros(cut, np.int64)
        self._next_row += cut
        return _Rows(self._keys[seen], self._row[seen].astype(np.int32), n_covered[seen], n_scaled[seen])


class _StrandCheck:
    """Whether every position has the strand that it would have if all samples were joined at once.

    Strands are agreed over all samples that are joined together, + before - before unknown. Of panels whose rows had
    their strands of themselves it is enough that no two rows of a position differ, and that no merged CpG may
    contradict one: its row does not say which of its two bases was seen, so that both are taken as seen. A CpG of
    unknown strand, which could be either base, stays where it is while no base next to it was seen: no two CpGs lie one
    base apart.
    """

    def __init__(self, merge_strands: bool, has_open: bool) -> None:
        self._merge_strands = merge_strands
        self._has_open = has_open
        self._last_pair = np.empty(0, np.int64)
        self.agree = True

    def see(self, keys: np.ndarray) -> None:
        """Take note of the loci [K] that follow those seen before."""
        number, strand = keys // KEY_STEP, keys % 4
        is_pair = (context_of(keys) == CG) & self._merge_strands
        pairs = np.concatenate([self._last_pair, number[is_pair]])
        self._last_pair = pairs[-1:]
        if self._has_open:
            self.agree &= not np.any(np.diff(pairs) == 1)
        number, strand = number[~is_pair], strand[~is_pair]
        if number.size:
            differ = (np.diff(number) == 0) & (np.diff(strand) != 0)
            not_plus, unknown = number[strand != PLUS], number[strand == UNKNOWN]
            self.agree &= not (differ.any() or np.isin(not_plus, pairs).any() or np.isin(unknown - 1, pairs).any())
