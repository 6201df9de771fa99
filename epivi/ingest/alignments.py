"""Reads of a sorted BAM, CRAM or SAM file with calls of single bases, and their sums by position.

A reader of such a format (modbam.py, bismark_bam.py) takes the reads one after the other and gives the calls as
`Piece`s; `summed` turns them into the rows that all readers yield: one row for each cytosine (or adenine) with calls.
Because the file is sorted, no later read reaches a position left of the present one's start, so the sums there are
final: memory is bounded by the calls of `BUFFERED_CALLS` and the span of the reads, not by the file.

With an index several processes read a BAM file; CRAM and SAM are read by one. Each takes stretches of contigs, and sums
the calls of the reads that start there; `summed` joins the sums where reads reach into the next stretch. Threads would
not do: most of the time is spent in Python on one read after the other.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import pysam
from isal import igzip

from epivi.base.errors import UserError
from epivi.base.ordered import in_order
from epivi.base.worker_processes import worker_processes
from epivi.ingest.fasta import opened_reference
from epivi.ingest.layout import (
    ALL_READS,
    CG,
    MINUS,
    PLUS,
    SKIP,
    UNPHASED,
    AlignmentTally,
    Block,
    Counts,
    IngestSettings,
    keeps_contig,
)
from epivi.ingest.phasing import NO_PHASE_SET, PhasedSpans
from epivi.ingest.text import DAMAGE, TextColumn, is_bgzip, require_bgzip_end

logger = logging.getLogger(__name__)

BAM, CRAM, SAM = "BAM", "CRAM", "SAM"
BAM_MAGIC = b"BAM\x01"
CRAM_MAGIC = b"CRAM"
SAM_STARTS = (b"@HD\t", b"@SQ\t", b"@RG\t", b"@PG\t", b"@CO\t")
GZIP_MAGIC = b"\x1f\x8b"
# Of CRAM, what the first look decodes: name, flag, place and tags. The bases would need the reference.
CRAM_WITHOUT_BASES = ("required_fields=0x80f", "decode_md=0")
HOW_TO_GET_TAGS = (
    "for MM and ML call bases with a model of modified bases, and keep the tags when the reads are aligned: samtools"
    " fastq -T MM,ML, then minimap2 -y; for XM and XG take Bismark's own BAM file"
)
INDEX_NAMES = ("{path}.csi", "{stem}.csi", "{path}.bai", "{stem}.bai")  # as htslib looks for them
PROBED_CONTIGS, PROBES = 8, 8  # places where an index is tried before it is believed
SAMPLED_READS = 1000
RECOGNISED_TAGS = ("MM", "Mm", "XM", "XG")
BUFFERED_CALLS = 1 << 20
# Fewer reads are read before further processes have started.
PARALLEL_READS = 20_000
# Several jobs a process, so that none waits long for the last; a job's calls are sent from one process to another.
JOBS_PER_PROCESS = 8
STRETCH_BASES = 1 << 23
CONTIG_END = (1 << 31) - 1
WHOLE_NUMBER = re.compile(r"[0-9]{1,18}")  # of a tag; it fits in 64 bits
ABSENT = -1  # reference position of a base that is not aligned

# Why a read is left out, by flag bit; the first that holds names the reason.
FLAGS = {"unmapped": 0x4, "secondary": 0x100, "supplementary": 0x800, "qc_fail": 0x200, "duplicate": 0x400}

# CIGAR operations by number (MIDNSHP=X): whether they consume bases of the read, of the reference, and align them.
CONSUMES_QUERY = np.array([1, 1, 0, 0, 1, 0, 0, 1, 1], dtype=bool)
CONSUMES_REFERENCE = np.array([1, 0, 1, 1, 0, 0, 0, 1, 1], dtype=bool)


class BadReadError(UserError):
    """A read that cannot be counted, whatever the others; `reason` names it in the quality record."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class BamSource(NamedTuple):
    """A sorted file of aligned reads; `tags`: those of RECOGNISED_TAGS that each of its first reads has, as in "MM:Z".

    threads: processes that read it, if it has an index; container: BAM, CRAM or SAM; reference: FASTA file that CRAM
    is decoded with; sample_of_group: of a file whose header speaks of several samples, SM of each @RG by its ID.
    """

    path: Path
    tags: tuple[tuple[str, ...], ...]
    threads: int = 1
    container: str = BAM
    reference: str | None = None
    sample_of_group: Mapping[str, str] | None = None


class Stretch(NamedTuple):
    """Where reads start that are counted together: a contig from start to before stop, 0-based."""

    contig: str
    start: int
    stop: int

    def has_start(self, read: pysam.AlignedSegment) -> bool:
        """Whether a read of the contig starts here."""
        return self.start <= read.reference_start < self.stop


UNPLACED = Stretch("*", -1, 0)  # the reads at the end of the file, which have no position


class Calls(NamedTuple):
    """Calls of bases on one contig; every array is [calls]."""

    pos0: np.ndarray  # int64
    strand: np.ndarray  # int8, PLUS or MINUS
    context: np.ndarray  # int8, index into schema.CONTEXTS
    is_modified: np.ndarray  # bool


class Piece(NamedTuple):
    """Calls of one read or several of a contig; neither they nor those of later pieces lie left of `reach`."""

    contig: str
    reach: int
    calls: Calls
    phase_set: int = NO_PHASE_SET


class Tally:
    """Reads and calls seen, and those left out, since they were last taken; whether any read that counts had a tag."""

    def __init__(self) -> None:
        self.reads = 0
        self.reads_taken = 0
        self.calls = 0
        self.reads_dropped: Counter[str] = Counter()
        self.calls_dropped: Counter[str] = Counter()
        self.phase_sets: set[tuple[str, str]] = set()
        self.phased = PhasedSpans()
        self.reads_by_sample: Counter[str] = Counter()  # SM of their read group
        self.is_tagged = False

    def add(self, other: Tally) -> None:
        """Add what another has seen."""
        self.reads += other.reads
        self.calls += other.calls
        self.reads_dropped.update(other.reads_dropped)
        self.calls_dropped.update(other.calls_dropped)
        self.phase_sets |= other.phase_sets
        self.phased.add(other.phased)
        self.reads_by_sample.update(other.reads_by_sample)
        self.is_tagged |= other.is_tagged

    def take(self) -> AlignmentTally:
        """The sums so far; they start anew."""
        result = AlignmentTally(
            self.reads,
            dict(self.reads_dropped),
            self.calls,
            dict(self.calls_dropped),
            frozenset(self.phase_sets),
            dict(self.reads_by_sample),
        )
        self.reads_taken += self.reads
        self.reads = self.calls = 0
        self.reads_dropped.clear()
        self.calls_dropped.clear()
        self.phase_sets.clear()
        self.reads_by_sample.clear()
        return result


class BamFormat(NamedTuple):
    """What differs between formats; both can be sent to another process.

    tags: a read with none of these has no calls; check: raises BadReadError for a read that cannot be counted; pieces:
    the calls of the reads that start in a stretch, or of all.
    """

    tags: tuple[str, ...]
    check: Callable[[BamSource, pysam.AlignedSegment, IngestSettings], None]
    pieces: Callable[[BamSource, pysam.AlignmentFile, IngestSettings, Tally, Stretch | None], Iterator[Piece]]


# ---- the file


def container_of(path: Path) -> str | None:
    """BAM, CRAM or SAM, by how the file begins; None if it is none of them, or cannot be read."""
    try:
        with open(path, "rb") as file:
            start = file.read(18)
        if start.startswith(CRAM_MAGIC):
            return CRAM
        is_block = is_bgzip(start)
        if start.startswith(GZIP_MAGIC):
            with igzip.open(path, "rb") as content:
                start = content.read(len(BAM_MAGIC))
        if is_block and start.startswith(BAM_MAGIC):
            return BAM
        return SAM if start.startswith(SAM_STARTS) else None
    except DAMAGE:
        return None


def open_bam(path: Path) -> BamSource:
    """Look at header and first reads; raises UserError if the file is truncated, not sorted, or none of its kind."""
    if not path.is_file():
        raise UserError(f"{path}: cannot be read (no such file)")
    container = container_of(path)
    if container is None:
        raise UserError(f"{path}: this is not a BAM, CRAM or SAM file (expected one, for a format of aligned reads)")
    with open(path, "rb") as file:
        if is_bgzip(file.read(18)):
            require_bgzip_end(path, file)
    source = BamSource(path, (), container=container)
    with opened_bam(source, options=CRAM_WITHOUT_BASES if container == CRAM else ()) as bam:
        header = _header(path, bam)
        order = _sort_order(header)
        if order != "coordinate":
            raise UserError(f"{path}: the header's sort order (SO) is {order!r} (expected 'coordinate': sort the file)")
        tags = tuple(_tag_types(read) for read, _ in zip(bam.fetch(until_eof=True), range(SAMPLED_READS), strict=False))
    if not tags:
        raise UserError(f"{path}: the file has no reads")
    return source._replace(tags=tags, sample_of_group=_samples_of_groups(header))


def with_reference(source: BamSource, reference: str | None) -> BamSource:
    """The source with what its bases are decoded with; raises UserError if it is CRAM and there is no reference."""
    if source.container != CRAM:
        return source
    if reference is None:
        raise UserError(
            f"{source.path}: this is a CRAM file, whose bases are stored as differences (expected loci.reference, the"
            " FASTA file that its reads were aligned to)"
        )
    opened_reference(reference)
    return source._replace(reference=reference)


def ends_open(source: BamSource) -> bool:
    """Whether the last line of a text has no end; a compressed file has its own end mark."""
    if source.container != SAM:
        return False
    with open(source.path, "rb") as file:
        if file.read(2) == GZIP_MAGIC:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def tagged_reads(
    source: BamSource,
    bam: pysam.AlignmentFile,
    settings: IngestSettings,
    tally: Tally,
    format_: BamFormat,
    stretch: Stretch | None,
) -> Iterator[pysam.AlignedSegment]:
    """Reads that count and have one of the format's tags, in order; the others are counted by reason.

    stretch: the reads that overlap it, or None for the whole file. Those that start before it are yielded too, but
    counted where they start.
    Raises UserError for a damaged file, for a read that stands left of the one before it, and, unless they are to be
    left out, for a bad read.
    """
    elsewhere = Tally()
    in_contig = [keeps_contig(name, settings) for name in bam.references]
    last = (-1, -1)
    for read in _fetched(bam, stretch):
        noted = tally if stretch is None or stretch.has_start(read) else elsewhere
        noted.reads += 1
        reason = _unfit(read)
        if not reason:
            _require_order(source, read, last)
            last = (read.reference_id, read.reference_start)
            try:
                reason = _left_out(source, read, settings, noted, format_, in_contig)
            except BadReadError as error:
                if settings.bad_reads != SKIP:
                    raise
                reason = error.reason
        if reason:
            noted.reads_dropped[reason] += 1
            continue
        if source.sample_of_group:
            sample = source.sample_of_group.get(_read_group(source, read))
            noted.reads_by_sample.update([] if sample is None else [sample])
        yield read


def _read_group(source: BamSource, read: pysam.AlignedSegment) -> str:
    """The tag RG; "" without it, or where it cannot be read: it decides nothing of how the read counts."""
    try:
        return str(tag_value(source, read, "RG")) if read.has_tag("RG") else ""
    except BadReadError:
        return ""


def _left_out(
    source: BamSource,
    read: pysam.AlignedSegment,
    settings: IngestSettings,
    tally: Tally,
    format_: BamFormat,
    in_contig: Sequence[bool],
) -> str:
    """Why a read with a place is left out, "" if it is not; raises BadReadError."""
    _require_whole_sequence(source, read)
    if not in_contig[read.reference_id]:
        return "contig"
    if not any(map(read.has_tag, format_.tags)):
        return "no_tag"
    tally.is_tagged = True
    if settings.bad_reads == SKIP and read.query_length:
        # Before its calls are summed with those of others.
        format_.check(source, read, settings)
    reason = _of_other_haplotype(source, read, settings.haplotype, tally)
    return reason or ("no_sequence" if read.query_length == 0 else "")


def _fetched(bam: pysam.AlignmentFile, stretch: Stretch | None) -> Iterator[pysam.AlignedSegment]:
    if stretch is None:
        return iter(bam.fetch(until_eof=True))
    if stretch == UNPLACED:
        return iter(bam.fetch("*"))
    return iter(bam.fetch(stretch.contig, stretch.start, stretch.stop))


def _require_order(source: BamSource, read: pysam.AlignedSegment, last: tuple[int, int]) -> None:
    if (read.reference_id, read.reference_start) < last:
        raise UserError(
            f"{source.path}: {_named(read)} at {read.reference_name}:{read.reference_start + 1} stands after a later"
            " position (expected a sorted file, as its header says)"
        )


def _require_whole_sequence(source: BamSource, read: pysam.AlignedSegment) -> None:
    if read.query_length not in (0, read.infer_query_length()):
        raise BadReadError(
            f"{source.path}: {_named(read)}: SEQ has {read.query_length} bases (expected"
            f" {read.infer_query_length()}, as CIGAR says)",
            "bad_sequence",
        )


def _of_other_haplotype(source: BamSource, read: pysam.AlignedSegment, haplotype: str, tally: Tally) -> str:
    """Why a read is left out for its tag HP, "" if it is not; reads with a haplotype are noted with their phase set.

    Without HP, or with 0, a read is unphased, as phasers write it.
    """
    if haplotype == ALL_READS:
        return ""
    label = _whole_number(source, read, "HP", 0)
    if label is None:
        return "unreadable_phase"
    if label == 0:
        return "" if haplotype == UNPHASED else "unphased"
    if haplotype == UNPHASED:
        return "other_haplotype"
    phase_set = _whole_number(source, read, "PS", NO_PHASE_SET)
    if phase_set is None:
        return "unreadable_phase"
    tally.phased.note(str(read.reference_name), read.reference_start, read.reference_end or 0, phase_set)
    if str(label) != haplotype:
        return "other_haplotype"
    tally.phase_sets.add((str(read.reference_name), "" if phase_set == NO_PHASE_SET else str(phase_set)))
    return ""


def phase_set_of(source: BamSource, read: pysam.AlignedSegment, haplotype: str) -> int:
    """The phase set of a read that counts for one haplotype; NO_PHASE_SET where it does not matter."""
    phase_set = None if haplotype in (ALL_READS, UNPHASED) else _whole_number(source, read, "PS", NO_PHASE_SET)
    return NO_PHASE_SET if phase_set is None else phase_set


def _whole_number(source: BamSource, read: pysam.AlignedSegment, tag: str, absent: int) -> int | None:
    """The number in a tag, also where it is written as text; None if it is none from 0 on."""
    if not read.has_tag(tag):
        return absent
    text = str(tag_value(source, read, tag))
    return int(text) if WHOLE_NUMBER.fullmatch(text) else None


def _unfit(read: pysam.AlignedSegment) -> str:
    """Why a read is left out for its flags, or for having no place; "" if it is not."""
    for reason, bit in FLAGS.items():
        if read.flag & bit:
            return reason
    has_place = read.reference_id >= 0 and read.reference_start >= 0 and read.infer_query_length() is not None
    return "" if has_place else "unmapped"


def tag_value(source: BamSource, read: pysam.AlignedSegment, tag: str) -> Any:
    """The value of a tag that the read has; raises UserError if it cannot be read."""
    try:
        return read.get_tag(tag)
    except (ValueError, KeyError) as error:
        fail_at_tag(source, read, tag, str(error), "ASCII text or numbers")


def fail_at_tag(source: BamSource, read: pysam.AlignedSegment, tag: str, value: Any, expected: str) -> NoReturn:
    """Raise a BadReadError naming file, read, tag and value."""
    shown = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:77]}..."
    message = f"{source.path}: {_named(read)}: tag {tag} is {shown} (expected {expected})"
    raise BadReadError(message, f"bad_{tag}")


def read_name(source: BamSource, read: pysam.AlignedSegment) -> str:
    """Name of a read; raises UserError if it is not text."""
    try:
        return str(read.query_name)
    except UnicodeDecodeError:
        raise BadReadError(f"{source.path}: {_named(read)} (expected a name in ASCII)", "bad_name") from None


def _named(read: pysam.AlignedSegment) -> str:
    try:
        return f"read {read.query_name!r}"
    except UnicodeDecodeError:
        return f"a read at {read.reference_name}:{read.reference_start + 1}, whose name is not text"


@contextmanager
def opened_bam(source: BamSource, options: Sequence[str] = ()) -> Iterator[pysam.AlignmentFile]:
    """The file, decompressed by its threads, with what htslib and pysam raise of it as a UserError."""
    path = source.path
    damaged = "is truncated or damaged"
    if source.reference is not None:
        damaged += f", or {source.reference} (loci.reference) is not what its reads were aligned to"
    # htslib would write to the terminal that there is no index, which is not needed; what is wrong is raised anyway.
    verbosity = pysam.set_verbosity(0)
    try:
        bam = pysam.AlignmentFile(
            str(path),
            "r",
            check_sq=False,
            threads=source.threads,
            reference_filename=source.reference,
            format_options=list(options),
        )
    except (OSError, ValueError) as error:
        pysam.set_verbosity(verbosity)
        raise UserError(f"{path}: {damaged} ({error})") from error
    try:
        yield bam
    except OSError as error:
        raise UserError(f"{path}: {damaged} ({error})") from error
    finally:
        pysam.set_verbosity(verbosity)
        # Closing a damaged file fails once more, and would hide what was wrong.
        with suppress(OSError):
            bam.close()


def _header(path: Path, bam: pysam.AlignmentFile) -> str:
    """The header, all of which must be text."""
    try:
        ",".join(bam.references)
        return str(bam.header)
    except ValueError as error:
        raise UserError(f"{path}: the header is damaged ({error})") from error


def _sort_order(header: str) -> str:
    found = re.search(r"^@HD\t.*\bSO:(\S*)", header, re.MULTILINE)
    return found.group(1) if found else "absent"


def _samples_of_groups(header: str) -> dict[str, str] | None:
    """SM of each read group by its ID where the header names several samples, else None."""
    groups = [
        dict(field.split(":", 1) for field in line.split("\t")[1:] if ":" in field)
        for line in re.findall(r"^@RG\t.*$", header, re.MULTILINE)
    ]
    samples = {group["ID"]: group["SM"] for group in groups if "ID" in group and group.get("SM")}
    return samples if len(set(samples.values())) > 1 else None


def _tag_types(read: pysam.AlignedSegment) -> tuple[str, ...]:
    # One by one: pysam walks over all tags of a damaged read without looking where they end.
    present = [name for name in RECOGNISED_TAGS if read.has_tag(name)]
    return tuple(f"{name}:{_tag_type(read, name)}" for name in present)


def _tag_type(read: pysam.AlignedSegment, name: str) -> str:
    try:
        return read.get_tag(name, with_value_type=True)[1]
    except (ValueError, KeyError):
        return "?"


# ---- what several processes read


class ReadingPlan(NamedTuple):
    """The stretches that one process reads at a time, in order of the file, and the reads that the index speaks of."""

    jobs: list[list[Stretch]]
    n_reads: int


def plan_of(source: BamSource, bam: pysam.AlignmentFile) -> ReadingPlan | None:
    """How processes share the file; None if one is to read it, which is said in the log where an index is missing."""
    if source.threads == 1:
        return None
    if source.container != BAM:
        logger.info("%s: is a %s file, so that one process reads it", source.path, source.container)
        return None
    n_reads = _indexed_reads(source, bam)
    if not n_reads:
        logger.info("%s: has no index (.bai or .csi), so that one process reads it", source.path)
    if n_reads < PARALLEL_READS:
        return None
    with_reads = [entry.contig for entry in bam.get_index_statistics() if entry.total]
    lengths = {contig: bam.get_reference_length(contig) for contig in with_reads}
    width = min(max(sum(lengths.values()) // (JOBS_PER_PROCESS * source.threads), 1), STRETCH_BASES)
    result: list[list[Stretch]] = [[]]
    n_bases = 0
    for contig, length in lengths.items():
        for start in range(0, length, width):
            if n_bases >= width:
                result.append([])
                n_bases = 0
            is_last = start + width >= length
            result[-1].append(Stretch(contig, start, CONTIG_END if is_last else start + width))
            n_bases += min(width, length - start)
    return ReadingPlan([*result, [UNPLACED]], n_reads)


def _indexed_reads(source: BamSource, bam: pysam.AlignmentFile) -> int:
    """Reads that the index speaks of; 0 without an index, or one without numbers."""
    if source.container != BAM or not bam.has_index():
        return 0
    return sum(entry.total for entry in bam.get_index_statistics()) + bam.nocoordinate


def _require_fitting_index(source: BamSource) -> int:
    """Reads that the index speaks of, 0 without one; raises UserError if it does not lead to them.

    Asked whatever the number of processes, so that one process and several give the same answer.
    """
    with opened_bam(source) as bam:
        n_reads = _indexed_reads(source, bam)
        with_reads = [entry.contig for entry in bam.get_index_statistics() if entry.total] if n_reads else []
        # Where sizes differ all that follows is moved, so that the last one is asked too.
        spread = with_reads[:: max(1, len(with_reads) // PROBED_CONTIGS)]
        try:
            for contig in dict.fromkeys([*spread, *with_reads[-1:]]):
                length = bam.get_reference_length(contig)
                first = [next(bam.fetch(contig, place), None) for place in range(0, length, max(1, length // PROBES))]
                if first[0] is None:
                    _fail_at_index(source, f"it says that {contig} has reads, and leads to none")
        except (OSError, ValueError) as error:
            _fail_at_index(source, f"it leads to no read: {error}")
    return n_reads


def _fail_at_index(source: BamSource, what: str) -> NoReturn:
    """Raise a UserError that names the index, and says whether it is older than the file."""
    names = [name.format(path=source.path, stem=source.path.with_suffix("")) for name in INDEX_NAMES]
    index = next((Path(name) for name in names if Path(name).is_file()), Path(names[2]))
    is_older = index.is_file() and index.stat().st_mtime_ns < source.path.stat().st_mtime_ns
    older = " and is older" if is_older else ""
    raise UserError(
        f"{source.path}: the index {index.name} does not belong to this file{older} ({what}; expected the index of this"
        " file: index it again, or remove the index)"
    )


# ---- from the read to the reference


def reference_positions(source: BamSource, reads: Sequence[pysam.AlignedSegment]) -> np.ndarray:
    """0-based reference position of every base of SEQ of these reads, one after the other; ABSENT if not aligned.

    int64 [bases of all reads]. Hard clips are no part of SEQ. Raises UserError naming a read whose CIGAR is no CIGAR.
    """
    cigars = [read.cigartuples or [] for read in reads]
    numbers = chain.from_iterable(chain.from_iterable(cigars))
    steps = np.fromiter(numbers, dtype=np.int64).reshape(-1, 2)
    operation, length = steps[:, 0], steps[:, 1]
    if np.any(operation >= len(CONSUMES_QUERY)):
        number = int(np.argmax(operation >= len(CONSUMES_QUERY)))
        read = reads[int(np.searchsorted(np.cumsum([*map(len, cigars)]), number, side="right"))]
        message = f"{source.path}: {_named(read)}: CIGAR has operation {operation[number]} (expected 0 to 8)"
        raise BadReadError(message, "bad_CIGAR")
    on_query = CONSUMES_QUERY[operation]
    on_reference = CONSUMES_REFERENCE[operation]
    reference_steps = np.where(on_reference, length, 0)
    walked = np.cumsum(reference_steps) - reference_steps  # from the first read's first base, over all reads
    first_step = np.cumsum([0, *map(len, cigars)])[:-1]
    starts = np.array([read.reference_start for read in reads], dtype=np.int64)
    has_steps = np.array([len(cigar) > 0 for cigar in cigars], dtype=bool)
    shift = np.zeros(len(reads), dtype=np.int64)
    shift[has_steps] = starts[has_steps] - walked[first_step[has_steps]]
    step_start = walked + np.repeat(shift, [len(cigar) for cigar in cigars])
    query_length = length[on_query]
    base_start = np.cumsum(query_length) - query_length
    positions = np.repeat(step_start[on_query] - base_start, query_length)
    positions += np.arange(len(positions))
    is_aligned = on_reference[on_query]
    if not is_aligned.all():
        positions[np.repeat(~is_aligned, query_length)] = ABSENT
    return positions


# ---- sums


def summed(source: BamSource, settings: IngestSettings, format_: BamFormat, layout: str) -> Iterator[Block]:
    """The calls of a file as rows, each base once, in order of position within each contig; and what was left out.

    Raises UserError if reads count but none has a tag of the format.
    """
    tally, n_untagged = Tally(), 0
    contig, n_held = "", 0
    held: Held = defaultdict(list)

    def block(before: int | None) -> Block:
        nonlocal held, n_held, n_untagged
        final, held = _split_held(held, before)
        n_held = 0
        sums, of_other_sets = _of_larger_sets(final, contig, tally.phased)
        tally.phased.forget(contig, before)
        counts, outvoted = _rows(sums)
        tally.calls_dropped["other_phase_set"] += of_other_sets
        tally.calls_dropped["context_disagrees"] += outvoted
        codes = np.zeros(len(counts.pos0), dtype=np.int32)
        n_untagged += tally.reads_dropped["no_tag"]
        return Block(TextColumn(codes, (contig,)), counts, {}, 0, 0, layout, alignments=tally.take())

    for piece in _summed_pieces(source, settings, format_, tally):
        if piece.contig != contig:
            if contig:
                yield block(None)
            contig = piece.contig
        elif n_held >= BUFFERED_CALLS:
            # A CpG on the - strand belongs to the base before it, so that reads which start at `reach` span that too.
            yield block(piece.reach - 1)
        held[piece.phase_set].append(piece.sums)
        n_held += len(piece.sums.key)
    last = block(None)
    if n_untagged and not tally.is_tagged:
        raise UserError(
            f"{source.path}: none of {n_untagged} reads has the tag {format_.tags[0]} (expected calls of bases in it;"
            f" {HOW_TO_GET_TAGS})"
        )
    yield last


def _summed_pieces(
    source: BamSource, settings: IngestSettings, format_: BamFormat, tally: Tally
) -> Generator[SummedPiece, None, None]:
    """The calls of a file in order, read by several processes where that is possible and worth it."""
    n_indexed = _require_fitting_index(source)
    with opened_bam(source) as bam:
        plan = plan_of(source, bam)
        if not plan:
            for piece in format_.pieces(source, bam, settings, tally, None):
                yield SummedPiece(piece.contig, piece.reach, _unsummed(piece.calls), piece.phase_set)
            _require_indexed_reads(source, tally, n_indexed)
            return
    read = partial(_read_job, format_, source, settings)
    with worker_processes(source.threads) as pool:
        for of_job, pieces in in_order(pool, read, plan.jobs, ahead=source.threads + 1):
            tally.add(of_job)
            yield from pieces
    _require_indexed_reads(source, tally, n_indexed)


def _require_indexed_reads(source: BamSource, tally: Tally, n_indexed: int) -> None:
    """Raise a UserError if an index speaks of more or fewer reads than were read."""
    n_reads = tally.reads_taken + tally.reads
    if n_indexed and n_reads != n_indexed:
        _fail_at_index(source, f"{n_reads} reads were found, and it says that there are {n_indexed}")


def _read_job(
    format_: BamFormat, source: BamSource, settings: IngestSettings, job: Sequence[Stretch]
) -> tuple[Tally, list[SummedPiece]]:
    """What one process reads at a time; each stretch is a piece."""
    tally = Tally()
    with opened_bam(source._replace(threads=1)) as bam:
        held = [_all_sums(format_.pieces(source, bam, settings, tally, stretch)) for stretch in job]
    return tally, [
        SummedPiece(part.contig, part.start, sums, phase_set)
        for part, of_part in zip(job, held, strict=True)
        for phase_set, (sums,) in of_part.items()
    ]


def _all_sums(pieces: Iterable[Piece]) -> Held:
    """The sums of all pieces, one of each phase set; memory is bounded by these and BUFFERED_CALLS calls."""
    held: Held = defaultdict(list)
    n_held = 0
    for piece in pieces:
        held[piece.phase_set].append(_unsummed(piece.calls))
        n_held += len(piece.calls.pos0)
        if n_held >= BUFFERED_CALLS:
            held, n_held = _split_held(held, None)[0], 0
    return _split_held(held, None)[0]


class _Sums(NamedTuple):
    """How often each kind of call occurs: position, strand, context and state in one number, and the calls."""

    key: np.ndarray  # int64: pos0 << 4 | is minus << 3 | context << 1 | is modified
    calls: np.ndarray  # int64


class SummedPiece(NamedTuple):
    """Calls of a contig that may be summed in part; neither they nor those of later pieces lie left of `reach`."""

    contig: str
    reach: int
    sums: _Sums
    phase_set: int


Held = defaultdict[int, list[_Sums]]  # sums of the pieces of each phase set


def _keys(calls: Calls) -> np.ndarray:
    is_minus = (calls.strand == MINUS).astype(np.int64)
    context, is_modified = calls.context.astype(np.int64), calls.is_modified.astype(np.int64)
    return (calls.pos0.astype(np.int64) << 4) | (is_minus << 3) | (context << 1) | is_modified


def _unsummed(calls: Calls) -> _Sums:
    return _Sums(_keys(calls), np.ones(len(calls.pos0), dtype=np.int64))


def _no_calls() -> _Sums:
    return _Sums(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))


def _sums(parts: Sequence[_Sums]) -> _Sums:
    """All parts together, sorted, each key once."""
    key = np.concatenate([part.key for part in parts])
    order = np.argsort(key, kind="stable")
    return _by_key(key[order], np.concatenate([part.calls for part in parts])[order])


def _by_key(key: np.ndarray, calls: np.ndarray) -> _Sums:
    """Sums over equal neighbours of a sorted key."""
    if not len(key):
        return _no_calls()
    starts = np.flatnonzero(np.diff(key, prepend=key[0] - 1))
    return _Sums(key[starts], np.add.reduceat(calls, starts))


def _split(sums: _Sums, before: int | None) -> tuple[_Sums, _Sums]:
    """Those left of a position, and the others; None is the end of the contig."""
    cut = len(sums.key) if before is None else int(np.searchsorted(sums.key, before << 4))
    return _Sums(sums.key[:cut], sums.calls[:cut]), _Sums(sums.key[cut:], sums.calls[cut:])


def _split_held(held: Held, before: int | None) -> tuple[Held, Held]:
    """The sums of each phase set left of a position, as one, and the others."""
    final: Held = defaultdict(list)
    rest: Held = defaultdict(list)
    for phase_set, parts in held.items():
        for result, sums in zip((final, rest), _split(_sums(parts), before), strict=True):
            if len(sums.key):
                result[phase_set] = [sums]
    return final, rest


def _of_larger_sets(held: Held, contig: str, phased: PhasedSpans) -> tuple[_Sums, int]:
    """The sums of the phase set that counts at each locus, and the calls of others."""
    if len(held) < 2 and not phased.has_several(contig):
        return next((sums for (sums,) in held.values()), _no_calls()), 0
    loci = {phase_set: _loci(sums.key) for phase_set, (sums,) in held.items()}
    every = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *loci.values()]))
    chosen = phased.larger_sets(contig, every)
    kept, n_other = [_no_calls()], 0
    for phase_set, (sums,) in held.items():
        is_kept = chosen[np.searchsorted(every, loci[phase_set])] == phase_set
        kept.append(_Sums(sums.key[is_kept], sums.calls[is_kept]))
        n_other += int(sums.calls[~is_kept].sum())
    return _sums(kept), n_other


def _loci(key: np.ndarray) -> np.ndarray:
    """Position of the locus of each key: a CpG is at its C on the + strand; int64."""
    is_minus_cpg = ((key >> 3) & 1 == 1) & ((key >> 1) & 3 == CG)
    return (key >> 4) - is_minus_cpg


def _rows(sums: _Sums) -> tuple[Counts, int]:
    """One row for each base, and the calls that another context outvoted.

    # METHOD: reads of one base may disagree about its context (variants, errors, indels beside it). The context of
    # most calls is taken, the earlier one in schema.CONTEXTS of two equal ones, and calls of the others are left out:
    # those reads do not have this site.
    """
    in_context = _by_key(sums.key >> 1, sums.calls)
    modified = np.where(sums.key & 1, sums.calls, 0)
    modified_in_context = _by_key(sums.key >> 1, modified).calls
    site = in_context.key >> 2
    order = np.lexsort((in_context.key, -in_context.calls, site))
    chosen = order[np.diff(site[order], prepend=-1) != 0]
    key, total = in_context.key[chosen], in_context.calls[chosen]
    counts = Counts(
        pos0=(key >> 3).astype(np.int32),
        strand=np.where((key >> 2) & 1, MINUS, PLUS).astype(np.int8),
        context=(key & 3).astype(np.int8),
        meth=modified_in_context[chosen].astype(np.int32),
        total=total.astype(np.int32),
    )
    return counts, int(in_context.calls.sum() - total.sum())
