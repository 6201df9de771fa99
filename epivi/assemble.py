"""Join the samples' counts into loci: CpGs, fixed tiles, or intervals of a BED file.

Each contig is read in windows of positions, all samples side by side, so that memory is bounded by a window (about one
million counts, besides one page of each sample), whatever the genome and cohort; only intervals that are still open
are carried on. Contigs are independent and run in processes of their own.

Counts are summed first by position, as `Sums` whose keys sort like the positions and hold context and strand too:
key = (position * 4 + context code) * 4 + strand code. Tiles and intervals then sum over positions; in their keys the
number of the tile or interval stands in place of the position. Different contexts are never summed together.
"""

from __future__ import annotations

import functools
import gzip
import itertools
import logging
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from epivi.errors import UserError
from epivi.files import atomic_path
from epivi.schema import CONTEXTS, STRANDS
from epivi.store import (
    MANIFEST,
    ContigSummary,
    CountRows,
    CountsFile,
    LociWriter,
    LocusBlock,
    PathLike,
    Provenance,
    loci_file,
    natural_key,
    write_loci_manifest,
)

# Counts (loci x samples) that a window should hold, and its least and greatest length (a few bytes a base pair).
WINDOW_VALUES = 1 << 20
MIN_WINDOW_BP = 1 << 10
MAX_WINDOW_BP = 1 << 24
BEYOND_ANY_CONTIG = 1 << 40
MAX_READS = np.iinfo(np.uint16).max
PLUS, MINUS, UNKNOWN = range(len(STRANDS))
CG = CONTEXTS.index("CG")
KEY_STEP = 16  # keys of one position: 4 contexts x 4 strand codes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AssembleSettings:
    """`unit` as in the configuration: "cpg", {"tile": width in bp} or {"bed": path}.

    `min_covered_samples` is a fraction below 1 of all samples, or a whole number of samples.
    """

    unit: Any
    merge_strands: bool
    min_covered_samples: float


class ContigTally(NamedTuple):
    """What became of one contig."""

    contig: str
    n_rows: int  # counts read, over all samples
    n_seen: int  # loci with at least one read
    n_loci: int  # loci kept
    n_scaled: int  # counts (locus and sample) scaled down to fit 16 bits


class Sums(NamedTuple):
    """Reads of K positions, tiles or intervals in S samples; keys ascend."""

    keys: np.ndarray  # int64 [K]
    meth: np.ndarray  # int64 [K, S]
    total: np.ndarray  # int64 [K, S]


class Rows(NamedTuple):
    """Counts of all samples in a window, sample after sample."""

    pos0: np.ndarray  # int64 [R]
    strand_code: np.ndarray  # int8 [R]
    context_code: np.ndarray  # int8 [R]
    meth: np.ndarray  # int32 [R]
    total: np.ndarray  # int32 [R]
    sample: np.ndarray  # int64 [R]


class Unit(Protocol):
    """How positions become loci."""

    def collect(self, positions: Sums) -> Sums:
        """Sums of the loci that the positions [K] belong to."""

    def first_open(self, frontier: int) -> int:
        """Smallest key that positions at or after `frontier` may still add to."""

    def extents(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Start and end (0-based, exclusive) of the loci of `keys` [K]."""


# --------------------------------------------------------------------------------------------------------------- units


@dataclass(frozen=True)
class Positions:
    """Every position is a locus; a strand-merged CpG is two bases long."""

    merge_strands: bool

    def collect(self, positions: Sums) -> Sums:
        return positions

    def first_open(self, frontier: int) -> int:
        return frontier * KEY_STEP

    def extents(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pos0 = keys // KEY_STEP
        is_merged = self.merge_strands & (_context_of(keys) == CG)
        return pos0, pos0 + np.where(is_merged, 2, 1)


@dataclass(frozen=True)
class Tiles:
    """Tile k holds the positions from k * width to (k + 1) * width."""

    width: int

    def collect(self, positions: Sums) -> Sums:
        keys = _unstranded(positions.keys // KEY_STEP // self.width, _context_of(positions.keys))
        return _sum_equal_keys(Sums(keys, positions.meth, positions.total))

    def first_open(self, frontier: int) -> int:
        return frontier // self.width * KEY_STEP

    def extents(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pos0 = keys // KEY_STEP * self.width
        return pos0, pos0 + self.width


@dataclass(frozen=True)
class Intervals:
    """Intervals of one contig, sorted by start and end; a position counts in each of those that hold it."""

    starts: np.ndarray  # int64 [N]
    ends: np.ndarray  # int64 [N]
    furthest_end: np.ndarray = field(init=False)  # int64 [N], largest end so far

    def __post_init__(self) -> None:
        object.__setattr__(self, "furthest_end", np.maximum.accumulate(self.ends))

    def collect(self, positions: Sums) -> Sums:
        pieces = []
        for context in np.unique(_context_of(positions.keys)):
            chosen = _context_of(positions.keys) == context
            pieces.append(self._collect_context(int(context), Sums(*(array[chosen] for array in positions))))
        return _sum_equal_keys(_concatenate(pieces)) if pieces else positions

    def _collect_context(self, context: int, positions: Sums) -> Sums:
        """Differences of running sums at the ends of each interval: no pairs of position and interval are formed."""
        pos0 = positions.keys // KEY_STEP
        candidates = np.arange(
            np.searchsorted(self.furthest_end, pos0[0], "right"), np.searchsorted(self.starts, pos0[-1], "right")
        )
        first = np.searchsorted(pos0, self.starts[candidates])
        stop = np.searchsorted(pos0, self.ends[candidates])
        hit = stop > first
        running = (np.vstack([np.zeros_like(counts[:1]), counts.cumsum(axis=0)]) for counts in positions[1:])
        sums = (counts[stop[hit]] - counts[first[hit]] for counts in running)
        return Sums(_unstranded(candidates[hit], context), *sums)

    def first_open(self, frontier: int) -> int:
        return int(np.searchsorted(self.furthest_end, frontier, "right")) * KEY_STEP

    def extents(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.starts[keys // KEY_STEP], self.ends[keys // KEY_STEP]


def _context_of(keys: np.ndarray) -> np.ndarray:
    return keys // 4 % 4


def _keys(number: np.ndarray, context: np.ndarray | int, strand: np.ndarray | int) -> np.ndarray:
    return (number.astype(np.int64) * 4 + context) * 4 + strand


def _unstranded(number: np.ndarray, context: np.ndarray | int) -> np.ndarray:
    return _keys(number, context, UNKNOWN)


class BedRow(NamedTuple):
    """One interval of a BED file; cells: the line's columns as text."""

    line: int
    contig: str
    start: int
    end: int
    cells: list[str]


def bed_rows(path: PathLike) -> Iterator[BedRow]:
    """The intervals of a BED file (plain or gzip) in its order.

    Raises UserError naming file, line and value on anything but integers 0 <= start < end.
    """
    try:
        with open(path, "rb") as raw:
            opener = gzip.open if raw.read(2) == b"\x1f\x8b" else open
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip() and not line.startswith(("#", "track", "browser")):
                    yield _bed_row(path, number, line)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as BED ({error})") from None


def read_bed(path: PathLike) -> dict[str, Intervals]:
    """Distinct intervals of each contig of a BED file; names and further columns are ignored.

    Raises UserError as `bed_rows`, and for a file without intervals.
    """
    starts: dict[str, list[tuple[int, int]]] = {}
    for row in bed_rows(path):
        starts.setdefault(row.contig, []).append((row.start, row.end))
    if not starts:
        raise UserError(f"{path}: holds no interval; expected lines of contig, start, end")
    distinct = {contig: np.unique(np.array(pairs, np.int64), axis=0) for contig, pairs in starts.items()}
    return {contig: Intervals(pairs[:, 0].copy(), pairs[:, 1].copy()) for contig, pairs in distinct.items()}


def _bed_row(path: PathLike, number: int, line: str) -> BedRow:
    cells = line.rstrip("\r\n").split("\t") if "\t" in line else line.split()
    if len(cells) < 3:
        raise UserError(f"{path}: line {number}: {len(cells)} columns; expected contig, start, end")
    for name, cell in (("start", cells[1]), ("end", cells[2])):
        if not cell.isdecimal():
            raise UserError(f"{path}: line {number}: {name} is {cell!r}; expected a whole number >= 0")
    start, end = int(cells[1]), int(cells[2])
    if not start < end < 2**31:
        raise UserError(f"{path}: line {number}: end is {end}; expected a position after the start, {start}")
    return BedRow(number, cells[0], start, end, cells)


def _unit_of(settings: AssembleSettings, intervals: Intervals | None) -> Unit:
    if settings.unit == "cpg":
        return Positions(settings.merge_strands)
    return Tiles(settings.unit["tile"]) if intervals is None else intervals


# ---------------------------------------------------------------------------------------------------------------- sums


def _concatenate(pieces: Sequence[Any]) -> Any:
    """Pieces of Rows, CountRows or Sums, one after the other."""
    return type(pieces[0])(*(np.concatenate(arrays) for arrays in zip(*pieces, strict=True)))


def _sum_equal_keys(sums: Sums) -> Sums:
    """Sorted by key, entries of the same key added up."""
    order = np.argsort(sums.keys, kind="stable")
    keys = sums.keys[order]
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    return Sums(keys[first], *(np.add.reduceat(counts[order], first, axis=0) for counts in sums[1:]))


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


def _resolve(rows: Rows, merge_strands: bool) -> np.ndarray:
    """Keys [R] of the positions that the rows [R > 0] count for, with strands agreed over all samples."""
    strand = _known_strand(rows)
    pos0 = rows.pos0.copy()
    is_cg = rows.context_code == CG
    if merge_strands and is_cg.any():
        pos0[is_cg] -= _is_second_base(rows.pos0[is_cg], rows.strand_code[is_cg])
        strand[is_cg] = UNKNOWN
    return _keys(pos0, rows.context_code, strand)


def _known_strand(rows: Rows) -> np.ndarray:
    """Strand code of each row: what any sample knows of its position."""
    offset = rows.pos0 - rows.pos0.min()
    known = np.full(offset.max() + 1, UNKNOWN, np.int8)
    for strand in (MINUS, PLUS):
        known[offset[rows.strand_code == strand]] = strand
    return known[offset]


def _is_second_base(pos0: np.ndarray, strand_code: np.ndarray) -> np.ndarray:
    """Whether each CpG row [R > 0] sits at the G of its CpG, that is, counts for the position before it.

    METHOD: readers that know the strand decide. Otherwise a position next to a known C of a + strand is its partner;
    runs of the remaining adjacent positions, seen in any sample, pair up from the left, and one left over counts as C.
    """
    offset = pos0 - pos0.min() + 1
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
    """Hands out one sample's rows of a contig, up to a position at a time."""

    def __init__(self, batches: Iterator[CountRows], sample: int) -> None:
        self._batches = batches
        self._sample = sample
        self._held: list[CountRows] = []

    def take(self, stop: int) -> Rows:
        """The rows not yet taken that lie before `stop`."""
        while not self._held or self._held[-1].pos0[-1] < stop:
            batch = next(self._batches, None)
            if batch is None:
                break
            self._held.append(batch)
        rows = _concatenate([*self._held, _NO_COUNTS])
        cut = int(np.searchsorted(rows.pos0, stop))
        self._held = [CountRows(*(array[cut:] for array in rows))] if cut < rows.pos0.size else []
        pos0, *others = (array[:cut] for array in rows)
        return Rows(*[pos0.astype(np.int64), *others, np.full(cut, self._sample, np.int64)])


_NO_COUNTS = CountRows(*(np.empty(0, dtype) for dtype in (np.int32, np.int8, np.int8, np.int32, np.int32)))


def _window_stops(files: Sequence[CountsFile], contig: str) -> Iterator[int]:
    """Ends of the windows of a contig; the last lies after its last position."""
    parts = [file.contigs[contig] for file in files if contig in file.contigs]
    first, last = min(part.first_pos0 for part in parts), max(part.last_pos0 for part in parts)
    # Twice the densest sample, since samples cover different positions.
    density = 2 * max(part.n_rows for part in parts) / (last - first + 1)
    width = int(np.clip(WINDOW_VALUES / len(files) / density, MIN_WINDOW_BP, MAX_WINDOW_BP))
    stops = range(first + width, last + 1, width)
    return itertools.chain(stops, [last + 1])


def _windows(files: Sequence[CountsFile], contig: str, merge_strands: bool) -> Iterator[tuple[Rows, int]]:
    """Rows of all samples window by window, each with the position up to which rows are now complete."""
    cursors = [_Cursor(file.rows(contig), sample) for sample, file in enumerate(files)]
    carried: list[Rows] = []
    for stop in _window_stops(files, contig):
        rows: Rows = _concatenate([*carried, *(cursor.take(stop) for cursor in cursors)])
        frontier = _frontier(rows, stop, merge_strands)
        is_complete = rows.pos0 < frontier
        carried = [Rows(*(array[~is_complete] for array in rows))]
        # A later row on the - strand may still count for the position before the frontier.
        yield Rows(*(array[is_complete] for array in rows)), frontier - 1
    yield carried[0], BEYOND_ANY_CONTIG


def _joined(files: Sequence[CountsFile], contig: str, unit: Unit, merge_strands: bool) -> Iterator[tuple[int, Sums]]:
    """Complete loci of a contig in order, with the number of rows read for them."""
    pending: list[Sums] = []
    for rows, frontier in _windows(files, contig, merge_strands):
        if rows.pos0.size:
            positions = _sum_positions(_resolve(rows, merge_strands), rows, len(files))
            pending.append(unit.collect(positions))
        if not pending:
            continue
        sums = _sum_equal_keys(_concatenate(pending)) if len(pending) > 1 else pending[0]
        cut = int(np.searchsorted(sums.keys, unit.first_open(frontier)))
        pending = [Sums(*(array[cut:] for array in sums))] if cut < sums.keys.size else []
        yield rows.pos0.size, Sums(*(array[:cut] for array in sums))


def _locus_block(contig: str, start: int, unit: Unit, sums: Sums) -> tuple[LocusBlock, int]:
    """The loci as stored, and how many counts were scaled down (keeping their proportion) to fit 16 bits."""
    pos0, end0 = unit.extents(sums.keys)
    excess = sums.total > MAX_READS
    meth, total = sums.meth, np.minimum(sums.total, MAX_READS)
    if excess.any():
        meth = np.where(excess, np.rint(sums.meth * (MAX_READS / np.maximum(sums.total, 1))).astype(np.int64), meth)
    block = LocusBlock(
        contig,
        start,
        pos0.astype(np.int32),
        end0.astype(np.int32),
        (sums.keys % 4).astype(np.int8),
        _context_of(sums.keys).astype(np.int8),
        meth.astype(np.uint16),
        total.astype(np.uint16),
    )
    return block, int(excess.sum())


@dataclass(frozen=True)
class _Job:
    """One contig to assemble."""

    contig: str
    directory: Path
    samples: tuple[str, ...]
    settings: AssembleSettings
    intervals: Intervals | None
    provenance: Provenance


def _assemble_contig(files: Sequence[CountsFile], job: _Job) -> ContigTally:
    """Write one contig's loci; no file is left where none is kept."""
    unit = _unit_of(job.settings, job.intervals)
    needed = samples_needed(job.settings.min_covered_samples, len(files))
    n_rows = n_seen = n_scaled = 0
    path = job.directory / loci_file(job.contig)
    with LociWriter(path, job.contig, job.samples, job.provenance) as writer:
        for rows, sums in _joined(files, job.contig, unit, job.settings.merge_strands):
            kept = np.count_nonzero(sums.total, axis=1) >= needed
            block, scaled = _locus_block(job.contig, writer.n_loci, unit, Sums(*(array[kept] for array in sums)))
            writer.write(block)
            n_rows, n_seen, n_scaled = n_rows + rows, n_seen + kept.size, n_scaled + scaled
    if not writer.n_loci:
        path.unlink()
    return ContigTally(job.contig, n_rows, n_seen, writer.n_loci, n_scaled)


@functools.cache
def _worker_files(paths: tuple[Path, ...]) -> list[CountsFile]:
    return [CountsFile.open(path) for path in paths]


def _assemble_in_worker(paths: tuple[Path, ...], job: _Job) -> ContigTally:
    return _assemble_contig(_worker_files(paths), job)


# ------------------------------------------------------------------------------------------------------------ assembly


def samples_needed(min_covered_samples: float, n_samples: int) -> int:
    """Number of samples that must have reads at a locus: at least the fraction, or the number itself."""
    if min_covered_samples < 1:
        # A fraction such as 0.1 of 30 must not need a fourth sample because of rounding.
        return max(1, math.ceil(min_covered_samples * n_samples - 1e-9))
    if min_covered_samples > n_samples:
        raise UserError(
            f"loci.min_covered_samples is {min_covered_samples:g}; expected at most {n_samples}, all samples"
        )
    return int(min_covered_samples)


def assemble(
    counts: Sequence[PathLike],
    output: PathLike,
    settings: AssembleSettings,
    provenance: Provenance,
    *,
    threads: int,
    on_contig: Callable[[ContigTally], None],
) -> tuple[ContigTally, ...]:
    """Join counts files (one a sample, in this order) into the folder `output`, which a `LociStore` opens.

    Contigs come in natural order; those without a locus are left out. `on_contig` hears of each as it is done.
    Raises UserError if files are damaged or repeat a sample, or if no locus is left.
    """
    files = [CountsFile.open(path) for path in counts]
    _check_samples(files)
    samples_needed(settings.min_covered_samples, len(files))
    output = Path(output)
    _check_replaceable(output)
    intervals = (
        read_bed(settings.unit["bed"]) if isinstance(settings.unit, Mapping) and "bed" in settings.unit else None
    )
    with atomic_path(output) as temporary:
        temporary.mkdir()
        jobs = _jobs(files, temporary, settings, intervals, provenance)
        tallies = sorted(_run(files, jobs, threads, on_contig), key=lambda tally: natural_key(tally.contig))
        _check_any_left(files, settings, tallies)
        _write_manifest(temporary, files, settings, provenance, tallies)
    return tuple(tallies)


def _jobs(
    files: Sequence[CountsFile],
    directory: Path,
    settings: AssembleSettings,
    intervals: Mapping[str, Intervals] | None,
    provenance: Provenance,
) -> list[_Job]:
    """Contigs that can have loci, largest first so that processes end together."""
    rows: dict[str, int] = {}
    for contig, part in itertools.chain.from_iterable(file.contigs.items() for file in files):
        rows[contig] = rows.get(contig, 0) + part.n_rows
    contigs = [contig for contig in rows if intervals is None or contig in intervals]
    samples = tuple(file.sample for file in files)
    return [
        _Job(contig, directory, samples, settings, intervals[contig] if intervals else None, provenance)
        for contig in sorted(contigs, key=lambda contig: -rows[contig])
    ]


def _run(
    files: Sequence[CountsFile], jobs: Sequence[_Job], threads: int, on_contig: Callable[[ContigTally], None]
) -> Iterator[ContigTally]:
    if threads == 1 or len(jobs) < 2:
        for job in jobs:
            on_contig(tally := _assemble_contig(files, job))
            yield tally
        return
    paths = tuple(file.path for file in files)
    # Fork is not safe once Arrow has started its threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(threads, len(jobs)), mp_context=context) as pool:
        for tally in pool.map(functools.partial(_assemble_in_worker, paths), jobs):
            on_contig(tally)
            yield tally


def _check_samples(files: Sequence[CountsFile]) -> None:
    seen: dict[str, Path] = {}
    for file in files:
        if file.sample in seen:
            raise UserError(f"{file.path}: holds the sample {file.sample!r}, as {seen[file.sample]} does already")
        seen[file.sample] = file.path


def _check_replaceable(output: Path) -> None:
    """A folder is replaced as a whole, so it must hold nothing but loci."""
    if output.is_dir():
        other = [
            entry.name for entry in os.scandir(output) if entry.name != MANIFEST and not entry.name.endswith(".arrow")
        ]
        if other:
            raise UserError(
                f"{output}: would be replaced but holds {sorted(other)[0]!r}; expected a new or loci folder"
            )
    elif output.exists():
        raise UserError(f"{output}: is a file; expected a new folder")


def _check_any_left(files: Sequence[CountsFile], settings: AssembleSettings, tallies: Sequence[ContigTally]) -> None:
    if any(tally.n_loci for tally in tallies):
        return
    n_seen = sum(tally.n_seen for tally in tallies)
    if n_seen:
        needed = samples_needed(settings.min_covered_samples, len(files))
        raise UserError(
            f"no locus left: {n_seen} seen in {len(files)} samples, none covered in the {needed} samples that "
            f"loci.min_covered_samples = {settings.min_covered_samples:g} asks for"
        )
    n_rows = sum(part.n_rows for file in files for part in file.contigs.values())
    if n_rows:
        raise UserError(
            f"no locus seen: the {len(files)} counts files hold {n_rows} rows and none lies in an interval of "
            f"{settings.unit['bed']}"
        )
    raise UserError(
        f"no locus seen: the {len(files)} counts files hold no row, since the filters of ingest took them all: look at "
        "loci.coverage.min, loci.context and loci.contigs, and at what the samples' qc records count as dropped"
    )


def _write_manifest(
    directory: Path,
    files: Sequence[CountsFile],
    settings: AssembleSettings,
    provenance: Provenance,
    tallies: Sequence[ContigTally],
) -> None:
    n_seen, n_loci = sum(tally.n_seen for tally in tallies), sum(tally.n_loci for tally in tallies)
    details = {
        "merge_strands": settings.merge_strands,
        "min_covered_samples": settings.min_covered_samples,
        "samples_needed": samples_needed(settings.min_covered_samples, len(files)),
        "n_seen": n_seen,
        "dropped": {"min_covered_samples": n_seen - n_loci},
        "n_scaled": sum(tally.n_scaled for tally in tallies),
        "sums": {file.sample: file.sums for file in files if file.sums},
    }
    contigs = [ContigSummary(tally.contig, loci_file(tally.contig), tally.n_loci) for tally in tallies if tally.n_loci]
    write_loci_manifest(directory, [file.sample for file in files], contigs, settings.unit, provenance, details)
