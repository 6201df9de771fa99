"""Bisulfite BAM of Bismark and tools that write its tags: calls in XM, the genome strand they are on in XG.

XM has one letter for each base of SEQ: z, x, h for an unmethylated cytosine in CpG, CHG, CHH context, the capital for a
methylated one, u or U where the context is unknown, a dot for any other base. XG is CT for calls on the + strand
of the reference and GA for calls on the - strand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pysam

from epivi.ingest.alignments import (
    ABSENT,
    BamFormat,
    BamSource,
    Calls,
    Piece,
    Stretch,
    Tally,
    fail_at_tag,
    phase_set_of,
    read_name,
    reference_positions,
    summed,
    tag_value,
    tagged_reads,
)
from epivi.ingest.layout import CG, MINUS, OTHER_CONTEXT, PLUS, Block, IngestSettings
from epivi.tables.columns import CONTEXTS

BATCH_FRAGMENTS = 1 << 13
Fragment = tuple[pysam.AlignedSegment, ...]  # a read alone, or read 1 and read 2 that overlap
# Reads whose mate overlaps and comes later: by their name, their start and that of the mate, so that only reads that
# name each other as mates are paired, whatever else has the name.
Waiting = dict[tuple[str, int, int], pysam.AlignedSegment]
STRANDS_OF_XG = {"CT": PLUS, "GA": MINUS}
CONTEXT_OF = {"z": CG, "x": CONTEXTS.index("CHG"), "h": CONTEXTS.index("CHH"), "u": OTHER_CONTEXT}
LETTERS = ".zxhuZXHU"
WITHOUT_LETTERS = str.maketrans("", "", LETTERS)
NO_CALL = -1

CONTEXT_CODES = np.full(256, NO_CALL, dtype=np.int8)
for _letter, _code in CONTEXT_OF.items():
    CONTEXT_CODES[[ord(_letter), ord(_letter.upper())]] = _code


def recognises(tags: Sequence[str]) -> bool:
    """Whether a read has calls; other aligners have numbers in tags of the same names."""
    return "XM:Z" in tags and "XG:Z" in tags


def read(source: BamSource, settings: IngestSettings) -> Iterator[Block]:
    """Yield a row for each cytosine with calls; raises UserError naming read, tag and value of a malformed tag."""
    return summed(source, settings, FORMAT, "context and strand in the tags")


def _pieces(
    source: BamSource, bam: pysam.AlignmentFile, settings: IngestSettings, tally: Tally, stretch: Stretch | None
) -> Iterator[Piece]:
    """Calls of many fragments at a time, in pieces that end with their contig.

    A fragment belongs to the stretch in which its first read starts. All that waits for a mate in the stretch or after
    it overlaps the mate's start, so that the reads which overlap the stretch are enough to pair them as in the whole.
    """
    ready: list[Fragment] = []
    waiting: Waiting = {}
    contig = ""
    for record in _records(source, bam, settings, tally, stretch, waiting):
        if record.reference_name != contig:
            yield from _last_piece(source, ready, waiting, settings, tally, stretch)
            ready, contig = [], str(record.reference_name)
        elif len(ready) >= BATCH_FRAGMENTS:
            _release_overdue(waiting, record.reference_start, ready)
            yield from _owned_pieces(source, ready, waiting, settings, tally, stretch)
            ready = []
        _take(record, read_name(source, record), waiting, ready)
    yield from _last_piece(source, ready, waiting, settings, tally, stretch)


def _check(source: BamSource, record: pysam.AlignedSegment, settings: IngestSettings) -> None:
    """Raise BadReadError if the name, the tags or the CIGAR of a read cannot be counted."""
    read_name(source, record)
    _letters(source, record)
    _strand(source, record)
    reference_positions(source, [record])


FORMAT = BamFormat(("XM",), _check, _pieces)


def _records(
    source: BamSource,
    bam: pysam.AlignmentFile,
    settings: IngestSettings,
    tally: Tally,
    stretch: Stretch | None,
    waiting: Waiting,
) -> Iterator[pysam.AlignedSegment]:
    """The reads that overlap a stretch, and those after it up to the last mate for which one of them waits."""
    yield from tagged_reads(source, bam, settings, tally, FORMAT, stretch)
    last_mate = max((mate_start for *_, mate_start in waiting), default=-1)
    if stretch and last_mate >= stretch.stop:
        beyond = Stretch(stretch.contig, stretch.stop, last_mate + 1)
        yield from filter(beyond.has_start, tagged_reads(source, bam, settings, Tally(), FORMAT, beyond))


def _last_piece(
    source: BamSource,
    ready: list[Fragment],
    waiting: Waiting,
    settings: IngestSettings,
    tally: Tally,
    stretch: Stretch | None,
) -> Iterator[Piece]:
    ready += [(read,) for read in waiting.values()]
    waiting.clear()
    yield from _owned_pieces(source, ready, waiting, settings, tally, stretch)


def _owned_pieces(
    source: BamSource,
    ready: list[Fragment],
    waiting: Waiting,
    settings: IngestSettings,
    tally: Tally,
    stretch: Stretch | None,
) -> Iterator[Piece]:
    """The calls of the fragments that belong to the stretch, a piece for each phase set."""
    reach = min((_first(fragment).reference_start for fragment in [*ready, *((read,) for read in waiting.values())]),
                default=0)  # fmt: skip
    by_set: dict[int, list[Fragment]] = {}
    for fragment in ready:
        if stretch is None or stretch.has_start(_first(fragment)):
            phase_set = phase_set_of(source, fragment[0], settings.haplotype)
            by_set.setdefault(phase_set, []).append(fragment)
    for phase_set, owned in by_set.items():
        yield _piece(source, owned, reach, phase_set, tally)


def _first(fragment: Fragment) -> pysam.AlignedSegment:
    return min(fragment, key=lambda read: read.reference_start)


def _take(record: pysam.AlignedSegment, name: str, waiting: Waiting, ready: list[Fragment]) -> None:
    """Put a read with its waiting mate, or let it wait if its mate starts within it; else it is ready alone."""
    start, mate_start = record.reference_start, record.next_reference_start
    mate = waiting.pop((name, mate_start, start), None) if record.is_paired else None
    if mate is not None and mate.is_read1 != record.is_read1:
        ready.append((record, mate) if record.is_read1 else (mate, record))
        return
    if mate is not None:
        ready.append((mate,))
    if not _mate_overlaps(record):
        ready.append((record,))
        return
    like_it = waiting.pop((name, start, mate_start), None)
    if like_it is not None:
        ready.append((like_it,))
    waiting[name, start, mate_start] = record


def _mate_overlaps(record: pysam.AlignedSegment) -> bool:
    """Whether the mate is said to start within this read or with it; asked of the one that comes first."""
    return (
        record.is_paired
        and not record.mate_is_unmapped
        and record.next_reference_id == record.reference_id
        and record.reference_start <= record.next_reference_start < (record.reference_end or 0)
    )


def _release_overdue(waiting: Waiting, start: int, ready: list[Fragment]) -> None:
    """Reads whose mate should have come before this position: it is missing, or was left out."""
    for key in [key for key in waiting if key[2] < start]:
        ready.append((waiting.pop(key),))


def _piece(source: BamSource, ready: list[Fragment], reach: int, phase_set: int, tally: Tally) -> Piece:
    """The calls of these fragments; those left out are counted.

    # METHOD: a fragment is counted once. What read 1 covers with an aligned base counts from read 1 alone, even where
    # it has no call.
    """
    reads = [read for fragment in ready for read in fragment]
    letters = np.concatenate([_letters(source, read) for read in reads])
    lengths = [read.query_length for read in reads]
    strand = np.repeat(np.array([_strand(source, read) for read in reads], dtype=np.int8), lengths)
    pos0 = reference_positions(source, reads)
    context = CONTEXT_CODES[letters]
    is_call = context != NO_CALL
    is_aligned = pos0 != ABSENT
    is_repeated = is_call & is_aligned & _covered_by_mate(ready, lengths, pos0)
    # No base stands before the contig, so a CpG there is not recognised by its second base.
    is_beyond = (pos0 == 0) & (strand == MINUS) & (context == CG)
    is_unknown = is_call & is_aligned & ~is_repeated & ((context == OTHER_CONTEXT) | is_beyond)
    kept = is_call & is_aligned & ~is_repeated & ~is_unknown
    tally.calls += int(np.count_nonzero(is_call))
    for reason, mask in (
        ("not_aligned", is_call & ~is_aligned),
        ("mate_overlap", is_repeated),
        ("unknown_context", is_unknown),
    ):
        tally.calls_dropped[reason] += int(np.count_nonzero(mask))
    is_methylated = letters[kept] < ord("a")
    calls = Calls(pos0[kept], strand[kept], context[kept], is_methylated)
    return Piece(str(reads[0].reference_name), reach, calls, phase_set)


def _covered_by_mate(ready: list[Fragment], lengths: list[int], pos0: np.ndarray) -> np.ndarray:
    """Where a base of read 2 stands on a position that read 1 of its fragment covers; bool [bases]."""
    number = np.repeat([index for index, fragment in enumerate(ready) for _ in fragment], lengths)
    is_pair = np.repeat([len(fragment) > 1 for fragment in ready for _ in fragment], lengths)
    is_second = np.repeat([place > 0 for fragment in ready for place in range(len(fragment))], lengths)
    key = (number.astype(np.int64) << 32) | pos0
    result = np.zeros(len(pos0), dtype=bool)
    first, second = (np.flatnonzero(is_pair & (is_second == which) & (pos0 != ABSENT)) for which in (False, True))
    if len(first):
        # Fragments follow each other and positions rise within a read, so the keys are sorted.
        nearest = np.searchsorted(key[first], key[second])
        result[second] = key[first[np.minimum(nearest, len(first) - 1)]] == key[second]
    return result


def _letters(source: BamSource, read: pysam.AlignedSegment) -> np.ndarray:
    """XM as ASCII, uint8 [bases]."""
    text = tag_value(source, read, "XM")
    if not isinstance(text, str) or len(text) != read.query_length:
        fail_at_tag(source, read, "XM", text, f"a letter for each of the {read.query_length} bases")
    if text.translate(WITHOUT_LETTERS):
        fail_at_tag(source, read, "XM", text, f"letters among {LETTERS}")
    return np.frombuffer(text.encode(), dtype=np.uint8)


def _strand(source: BamSource, read: pysam.AlignedSegment) -> int:
    value = tag_value(source, read, "XG") if read.has_tag("XG") else "absent"
    if not isinstance(value, str) or value not in STRANDS_OF_XG:
        fail_at_tag(source, read, "XG", value, "CT or GA")
    return STRANDS_OF_XG[value]
