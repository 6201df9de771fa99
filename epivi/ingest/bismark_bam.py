"""Bisulfite BAM of Bismark and tools that write its tags: calls in XM, the genome strand they are on in XG.

XM has one letter for each base of SEQ: z, x, h for an unmethylated cytosine in CpG, CHG, CHH context, the capital for a
methylated one, u or U where the context could not be told, a dot for any other base. XG is CT for calls on the + strand
of the reference and GA for calls on the - strand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
import pysam

from epivi.ingest.alignments import (
    ABSENT,
    BamSource,
    Calls,
    Piece,
    Tally,
    fail_at_tag,
    read_name,
    reference_positions,
    summed,
    tag_value,
    tagged_reads,
)
from epivi.ingest.layout import CG, MINUS, OTHER_CONTEXT, PLUS, Block, IngestSettings
from epivi.schema import CONTEXTS

BATCH_FRAGMENTS = 1 << 13
Fragment = tuple[pysam.AlignedSegment, ...]  # a read alone, or read 1 and read 2 that overlap
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
    tally = Tally()
    return summed(source, "context and strand in the tags", _pieces(source, settings, tally), tally)


def _pieces(source: BamSource, settings: IngestSettings, tally: Tally) -> Iterator[Piece]:
    """Calls of many fragments at a time, in pieces that end with their contig."""
    ready: list[Fragment] = []
    waiting: dict[str, pysam.AlignedSegment] = {}  # reads whose mate overlaps and comes later, by name
    contig = ""
    for record in tagged_reads(source, settings, tally, ("XM",)):
        if record.reference_name != contig:
            yield from _last_piece(source, ready, waiting, tally)
            ready, contig = [], str(record.reference_name)
        elif len(ready) >= BATCH_FRAGMENTS:
            _release_overdue(waiting, record.reference_start, ready)
            yield _piece(source, ready, waiting, tally)
            ready = []
        _take(record, read_name(source, record), waiting, ready)
    yield from _last_piece(source, ready, waiting, tally)


def _last_piece(
    source: BamSource, ready: list[Fragment], waiting: dict[str, pysam.AlignedSegment], tally: Tally
) -> Iterator[Piece]:
    ready += [(read,) for read in waiting.values()]
    waiting.clear()
    if ready:
        yield _piece(source, ready, waiting, tally)


def _take(
    record: pysam.AlignedSegment, name: str, waiting: dict[str, pysam.AlignedSegment], ready: list[Fragment]
) -> None:
    """Put a read with its waiting mate, or let it wait if its mate starts within it; else it is ready alone."""
    mate = waiting.pop(name, None) if record.is_paired else None
    if mate is not None and mate.is_read1 != record.is_read1:
        ready.append((record, mate) if record.is_read1 else (mate, record))
        return
    if mate is not None:
        ready.append((mate,))
    if _mate_overlaps(record):
        waiting[name] = record
    else:
        ready.append((record,))


def _mate_overlaps(record: pysam.AlignedSegment) -> bool:
    """Whether the mate is said to start within this read or with it; asked of the one that comes first."""
    return (
        record.is_paired
        and not record.mate_is_unmapped
        and record.next_reference_id == record.reference_id
        and record.reference_start <= record.next_reference_start < (record.reference_end or 0)
    )


def _release_overdue(waiting: dict[str, pysam.AlignedSegment], start: int, ready: list[Fragment]) -> None:
    """Reads whose mate should have come before this position: it is missing, or was left out."""
    for name in [name for name, read in waiting.items() if read.next_reference_start < start]:
        ready.append((waiting.pop(name),))


def _piece(source: BamSource, ready: list[Fragment], waiting: dict[str, pysam.AlignedSegment], tally: Tally) -> Piece:
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
    # No base stands before the contig, so a CpG there is not told by its second base.
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
    reach = min(read.reference_start for read in chain(reads, waiting.values()))
    calls = Calls(pos0[kept], strand[kept], context[kept], is_methylated)
    return Piece(str(reads[0].reference_name), reach, calls)


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
    if value not in STRANDS_OF_XG:
        fail_at_tag(source, read, "XG", value, "CT or GA")
    return STRANDS_OF_XG[str(value)]
