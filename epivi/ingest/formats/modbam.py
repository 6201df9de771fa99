"""modBAM: aligned reads of Nanopore or PacBio with calls of modified bases in the tags MM and ML (SAMtags, 1.7).

MM lists, for one base of the read as it was sequenced, how many of that base to skip before each call; ML has the
probability of each call in 256 steps. `C+m` is a call on the strand of SEQ, `G-m` one on the opposite strand. Bases
that are skipped are unmodified (`C+m.`, or nothing between code and numbers) or were not looked at (`C+m?`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

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
    reference_positions,
    summed,
    tag_value,
    tagged_reads,
)
from epivi.ingest.contexts import COMPLEMENT, contexts_by_bases, following_bases
from epivi.ingest.fasta import opened_reference
from epivi.ingest.layout import MINUS, OTHER_CONTEXT, PLUS, Block, IngestSettings
from epivi.ingest.modifications import COMBINED, COMBINED_CODES, MODIFICATIONS, MODIFIED_BASE, SAM_CODES

GROUP_HEAD = re.compile(r"([ACGTUN])([-+])([a-z]+|[0-9]+|[ACGTUN])([.?]?)")
GROUP_SKIPS = re.compile(r"[0-9]{1,9}(?:,[0-9]{1,9})*")
HARD_CLIP = 5  # number of the CIGAR operation
AMBIGUOUS, PARTLY_CALLED = -1, -2  # states of a call that does not count
WHOLE = 512  # probability 1; level n is the probability (2 n + 1) / 512, the middle of its step


class Group(NamedTuple):
    """One group of MM: calls of one or several modifications at n bases of the read as sequenced."""

    base: str  # as the tag has it; N is every base
    is_opposite: bool  # the modification is on the strand opposite to SEQ as sequenced
    codes: tuple[str, ...]  # one-letter codes, or one ChEBI number
    skipped_are_unmodified: bool
    positions: np.ndarray  # int64 [n], in the read as sequenced
    # uint8 [n, codes]; probability between level / 256 and (level + 1) / 256. None without the tag ML.
    levels: np.ndarray | None


def recognises(tags: Sequence[str]) -> bool:
    """Whether a read has a tag of modified bases."""
    return "MM:Z" in tags or "Mm:Z" in tags


def read(source: BamSource, settings: IngestSettings) -> Iterator[Block]:
    """Yield a row for each base with calls of the requested modification.

    Raises UserError naming read, tag and value of a malformed tag, and if no read has one.
    """
    layout = "context from the reference" if settings.reference else "context from the reads"
    return summed(source, settings, FORMAT, layout)


def _pieces(
    source: BamSource, bam: pysam.AlignmentFile, settings: IngestSettings, tally: Tally, stretch: Stretch | None
) -> Iterator[Piece]:
    states = _states(settings)
    reference = opened_reference(settings.reference, settings.rename) if settings.reference else None
    for record in tagged_reads(source, bam, settings, tally, FORMAT, stretch):
        if stretch and not stretch.has_start(record):
            continue
        if _is_cut(source, record):
            tally.reads_dropped["hard_clipped"] += 1
            continue
        groups = tag_groups(source, record)
        wanted = _wanted(source, record, groups, settings)
        if not wanted:
            has_combined = any(set(group.codes) <= set(COMBINED_CODES) for group in groups)
            is_cytosine = MODIFIED_BASE[settings.modification] == "C"
            tally.reads_dropped["combined_code" if has_combined and is_cytosine else "other_modification"] += 1
            continue
        contig = str(record.reference_name)
        bases = reference.sequence(contig, record.header.get_reference_length(contig)) if reference else None
        calls = _calls(source, record, wanted, settings, states, bases, tally)
        yield Piece(contig, record.reference_start, calls, phase_set_of(source, record, settings.haplotype))


def _check(source: BamSource, record: pysam.AlignedSegment, settings: IngestSettings) -> None:
    """Raise BadReadError if the tags or the CIGAR of a read cannot be counted."""
    if not _is_cut(source, record):
        _wanted(source, record, tag_groups(source, record), settings)
        reference_positions(source, [record])


FORMAT = BamFormat(("MM", "Mm"), _check, _pieces)


def _states(settings: IngestSettings) -> np.ndarray:
    """1 modified, 0 unmodified, AMBIGUOUS, for each level of ML; int8 [256]."""
    return _judged((2 * np.arange(256) + 1) / WHOLE, settings)


def _judged(probability: np.ndarray, settings: IngestSettings) -> np.ndarray:
    """State of a call by the probability of what is asked for, int8 as the array of probabilities."""
    states = np.full(len(probability), AMBIGUOUS, dtype=np.int8)
    states[probability <= settings.unmodified_to] = 0
    states[probability >= settings.modified_from] = 1
    return states


# ---- the tags


def _is_cut(source: BamSource, read: pysam.AlignedSegment) -> bool:
    """Whether the tags may speak of bases that were clipped off.

    Skipped bases are counted from the end of the whole read, so that only MN can say that MM was made for what is left.
    Raises UserError if MN contradicts SEQ without a clip to explain it, or the CIGAR is none.
    """
    length = _sequence_length(source, read)
    try:
        is_clipped = bool(read.get_cigar_stats()[0][HARD_CLIP])
    except IndexError:  # of an operation that there is none, which the walk along the reference names
        reference_positions(source, [read])
        raise
    if is_clipped:
        return length != read.query_length
    if length not in (None, read.query_length):
        fail_at_tag(source, read, "MN", length, f"the length of SEQ, {read.query_length}, for which MM was made")
    return False


def _sequence_length(source: BamSource, read: pysam.AlignedSegment) -> int | None:
    if not read.has_tag("MN"):
        return None
    length = tag_value(source, read, "MN")
    if not isinstance(length, int):
        fail_at_tag(source, read, "MN", length, "a whole number")
    return length


def tag_groups(source: BamSource, read: pysam.AlignedSegment) -> tuple[Group, ...]:
    """All groups of MM with their levels in ML; raises UserError naming read, tag and value of what is malformed."""
    text = tag_value(source, read, "MM" if read.has_tag("MM") else "Mm")
    if not isinstance(text, str) or (text and not text.endswith(";")):
        fail_at_tag(source, read, "MM", text, "text, each group closed by ';'")
    sequenced = as_sequenced(read)
    occurrences = {base: _base_positions(sequenced, base) for base in {part[:1] for part in text.split(";")[:-1]}}
    groups = [_group(source, read, part, occurrences) for part in text.split(";")[:-1]]
    levels = _levels(source, read)
    if levels is None:
        return tuple(groups)
    ends = np.cumsum([0, *(len(group.positions) * len(group.codes) for group in groups)])
    if ends[-1] != len(levels):
        fail_at_tag(source, read, "ML", f"{len(levels)} values", f"{ends[-1]} values, one for each call in MM")
    return tuple(
        group._replace(levels=levels[start:end].reshape(-1, len(group.codes)))
        for group, start, end in zip(groups, ends, ends[1:], strict=False)
    )


def _group(source: BamSource, read: pysam.AlignedSegment, part: str, occurrences: dict[str, np.ndarray]) -> Group:
    """One group of MM, without its levels."""
    head, comma, skips = part.partition(",")
    match = GROUP_HEAD.fullmatch(head)
    if not match or (comma and not GROUP_SKIPS.fullmatch(skips)):
        fail_at_tag(source, read, "MM", part, "base, strand, codes and numbers, as in C+m?,2,0")
    base, strand, code, mark = match.groups()
    codes = (code,) if code.isdigit() else tuple(code)
    if not code.isdigit() and not SAM_CODES.issuperset(codes):
        fail_at_tag(source, read, "MM", part, f"codes among {''.join(sorted(SAM_CODES))}, or a ChEBI number")
    skipped = np.fromstring(skips, dtype=np.int64, sep=",") if comma else np.zeros(0, dtype=np.int64)
    index = np.cumsum(skipped + 1) - 1
    places = occurrences[base]
    if len(index) and index[-1] >= len(places):
        fail_at_tag(source, read, "MM", part, f"no call beyond the {len(places)} bases {base} of the read")
    return Group(base, strand == "-", codes, mark != "?", places[index], None)


def _levels(source: BamSource, read: pysam.AlignedSegment) -> np.ndarray | None:
    name = "ML" if read.has_tag("ML") else "Ml"
    if not read.has_tag(name):
        return None
    values = tag_value(source, read, name)
    if getattr(values, "typecode", "") != "B":
        fail_at_tag(source, read, "ML", values, "an array of bytes (B:C)")
    return np.frombuffer(values, dtype=np.uint8)


def as_sequenced(read: pysam.AlignedSegment) -> np.ndarray:
    """Bases in the order of sequencing, ASCII, uint8 [bases]; 0 for a base that is none of A, C, G, T and N."""
    bases = aligned_bases(read)
    return COMPLEMENT[bases[::-1]] if read.is_reverse else bases


def aligned_bases(read: pysam.AlignedSegment) -> np.ndarray:
    """Bases of SEQ as the file has them, ASCII, uint8 [bases]."""
    return np.frombuffer((read.query_sequence or "").encode(), dtype=np.uint8)


def _base_positions(sequenced: np.ndarray, base: str) -> np.ndarray:
    """Where a base of MM stands; N is every base, and a letter that is none stands nowhere."""
    if base == "N":
        return np.arange(len(sequenced))
    return np.flatnonzero(sequenced == (base.encode().replace(b"U", b"T") or b"\0")[0])


# ---- the calls


class _Column(NamedTuple):
    """One code of a group."""

    group: Group
    column: int

    @property
    def code(self) -> str:
        return self.group.codes[self.column]


class _Wanted(NamedTuple):
    """The codes of one strand that are asked for, and where they are weighed against each other, the other ones."""

    asked: tuple[_Column, ...]
    others: tuple[_Column, ...]


Head = tuple[bool, tuple[str, ...]]  # of a group: is_opposite and codes
Places = tuple[tuple[int, int], ...]  # number of the group, and of the code in it


def _wanted(
    source: BamSource, read: pysam.AlignedSegment, groups: Sequence[Group], settings: IngestSettings
) -> list[_Wanted]:
    """What calls the modification on each strand that has such calls.

    Raises UserError if calls have no probability, or two groups call the same.
    """
    # The specification allows MM without ML, but then a call has no probability to be judged by.
    if any(group.levels is None and len(group.positions) for group in groups):
        fail_at_tag(source, read, "ML", "absent", "a value for each call in MM")
    heads = tuple((group.is_opposite, group.codes) for group in groups)
    result = []
    for places in _wanted_places(heads, settings.modification, settings.most_probable_from is not None):
        asked, others = (tuple(_Column(groups[group], column) for group, column in each) for each in places)
        if len(asked) > 1:
            _require_apart(source, read, asked, settings.modification)
        result.append(_Wanted(asked, others))
    return result


@lru_cache(maxsize=1024)  # reads of a file have few heads
def _wanted_places(heads: tuple[Head, ...], modification: str, is_weighed: bool) -> tuple[tuple[Places, Places], ...]:
    """Where the codes that are asked for stand, and the others if they are weighed, on each strand that has such."""
    names = _names(modification)
    result = []
    for strand in (False, True):
        columns = [
            (group, column, code)
            for group, (is_opposite, codes) in enumerate(heads)
            if is_opposite == strand
            for column, code in enumerate(codes)
        ]
        asked = tuple((group, column) for group, column, code in columns if code in names)
        # An ambiguity code is any modification of its base, those asked for included: it is no other outcome.
        others = tuple(
            (group, column)
            for group, column, code in columns
            if is_weighed and code not in names and not code.isupper()
        )
        if asked:
            result.append((asked, others))
    return tuple(result)


def _names(modification: str) -> dict[str, str]:
    """The codes that count, and the modification that each names."""
    parts = ("m", "h", COMBINED) if modification == COMBINED else (modification,)
    return {code: part for part in parts for code in MODIFICATIONS[part]}


def _require_apart(source: BamSource, read: pysam.AlignedSegment, asked: Sequence[_Column], modification: str) -> None:
    """Raise a UserError if two codes of a strand name one modification, or one of them the other among others."""
    names = _names(modification)
    named = [names[column.code] for column in asked]
    if len(set(named)) < len(named) or COMBINED in named:
        groups = dict.fromkeys((group.base, group.is_opposite, group.codes) for group, _ in asked)
        heads = [f"{base}{'-' if is_opposite else '+'}{','.join(codes)}" for base, is_opposite, codes in groups]
        fail_at_tag(source, read, "MM", "; ".join(heads), f"one group that calls {modification} on a strand")


class _Called(NamedTuple):
    """Calls of one read before they are placed on the reference; every array is [calls]."""

    place: np.ndarray  # int64, in SEQ
    state: np.ndarray  # int8, as in _states
    is_minus: np.ndarray  # bool, the modified base is on the - strand of the reference


def _called(read: pysam.AlignedSegment, wanted: _Wanted, settings: IngestSettings, states: np.ndarray) -> _Called:
    """What the groups of a strand say of the modification, skipped bases included where they are unmodified.

    # METHOD: the probability of the requested modification decides, whatever the others: a base that is 5hmC is not
    # 5mC, and counts as a read without it. bedMethyl rows are counted in the same way.
    """
    (group, column), *more = wanted.asked
    if more or settings.most_probable_from is not None:
        positions, state = _weighed(read, wanted, settings)
    else:
        positions = group.positions
        state = np.zeros(0, dtype=np.int8) if group.levels is None else states[group.levels[:, column]]
        if group.skipped_are_unmodified:
            skipped = _skipped(read, group, settings.modification)
            positions = np.concatenate([positions, skipped])
            state = np.concatenate([state, np.zeros(len(skipped), dtype=np.int8)])
    place = read.query_length - 1 - positions if read.is_reverse else positions
    return _Called(place, state, np.full(len(place), group.is_opposite != read.is_reverse))


def _skipped(read: pysam.AlignedSegment, group: Group, modification: str) -> np.ndarray:
    """The bases that can carry the modification and that the group skips, in the read as sequenced; int64."""
    base = np.uint8(ord(MODIFIED_BASE[modification]))
    every = np.flatnonzero(as_sequenced(read) == (COMPLEMENT[base] if group.is_opposite else base))
    return np.setdiff1d(every, group.positions, assume_unique=True)


def _weighed(read: pysam.AlignedSegment, wanted: _Wanted, settings: IngestSettings) -> tuple[np.ndarray, np.ndarray]:
    """Positions in the read as sequenced where a requested code is called, and the state there, of several codes.

    # METHOD: by thresholds, the probabilities of 5mC and 5hmC are added, since bisulfite reads both as methylated; a
    # base where one of the two was not looked at counts only if the other one alone is probable enough. By the most
    # probable outcome, as in modkit, a base is what is most probable of unmodified and each of its codes; unmodified
    # wins if it is as probable as a code. Probabilities are whole numbers of 1 / 512, so that sums are exact.
    """
    asked = np.stack([_parts(read, column, settings.modification) for column in wanted.asked])
    positions = np.flatnonzero((asked >= 0).any(axis=0))
    asked = asked[:, positions]
    known = np.maximum(asked, 0)
    if settings.most_probable_from is None:
        state = _judged(known.sum(axis=0) / WHOLE, settings)
        state[(state != 1) & (asked < 0).any(axis=0)] = PARTLY_CALLED
        return positions, state
    none = np.zeros((1, len(positions)), dtype=np.int64)
    other = [none, *(_parts(read, column, settings.modification)[None, positions] for column in wanted.others)]
    others = np.maximum(np.concatenate(other), 0)
    unmodified = WHOLE - known.sum(axis=0) - others.sum(axis=0)
    of_asked, of_others = known.max(axis=0), others.max(axis=0)
    most = np.maximum(unmodified, np.maximum(of_asked, of_others))
    state = ((of_asked > unmodified) & (of_asked >= of_others)).astype(np.int8)
    state[most / WHOLE < settings.most_probable_from] = AMBIGUOUS
    return positions, state


def _parts(read: pysam.AlignedSegment, column: _Column, modification: str) -> np.ndarray:
    """Probability of a code at each base of the read as sequenced, in 512ths, -1 if it was not looked at; int64."""
    group = column.group
    result = np.full(read.query_length, -1, dtype=np.int64)
    if group.skipped_are_unmodified:
        result[_skipped(read, group, modification)] = 0
    if group.levels is not None:
        result[group.positions] = 2 * group.levels[:, column.column].astype(np.int64) + 1
    return result


def _calls(
    source: BamSource,
    read: pysam.AlignedSegment,
    wanted: Sequence[_Wanted],
    settings: IngestSettings,
    states: np.ndarray,
    reference: np.ndarray | None,
    tally: Tally,
) -> Calls:
    """Calls of the modification at reference positions; those left out are counted."""
    bases, positions = aligned_bases(read), reference_positions(source, [read])
    strands = [_called(read, of_strand, settings, states) for of_strand in wanted]
    called = strands[0] if len(strands) == 1 else _Called(*map(np.concatenate, zip(*strands, strict=True)))
    tally.calls += len(called.place)

    def keep(is_kept: np.ndarray, reason: str) -> None:
        nonlocal called
        dropped = len(is_kept) - int(np.count_nonzero(is_kept))
        if dropped:
            tally.calls_dropped[reason] += dropped
            called = _Called(*(column[is_kept] for column in called))

    plus_base = np.uint8(ord(MODIFIED_BASE[settings.modification]))
    keep(bases[called.place] == np.where(called.is_minus, COMPLEMENT[plus_base], plus_base), "other_base")
    keep(positions[called.place] != ABSENT, "not_aligned")
    if reference is not None:
        # The read's base is the modified one, so the reference has another where the two differ.
        at = positions[called.place]
        keep((at < len(reference)) & (reference[np.minimum(at, len(reference) - 1)] == bases[called.place]),
             "reference_mismatch")  # fmt: skip
    if settings.modification == COMBINED:
        keep(called.state != PARTLY_CALLED, "partly_called")
    keep(called.state != AMBIGUOUS, "ambiguous")
    if settings.modification == "a":
        context = np.full(len(called.place), OTHER_CONTEXT, dtype=np.int8)
    elif reference is not None:
        context = _reference_contexts(reference, positions[called.place], called.is_minus)
    else:
        context = _read_contexts(bases, positions, called.place, called.is_minus)
    strand = np.where(called.is_minus, MINUS, PLUS).astype(np.int8)
    return Calls(positions[called.place], strand, context, called.state == 1)


def _reference_contexts(reference: np.ndarray, at: np.ndarray, is_minus: np.ndarray) -> np.ndarray:
    """Contexts of cytosines by the bases that follow in the reference; int8 [calls]."""
    first, second = (following_bases(reference, at, is_minus, distance)[0] for distance in (1, 2))
    return contexts_by_bases(first, second)


def _read_contexts(bases: np.ndarray, positions: np.ndarray, place: np.ndarray, is_minus: np.ndarray) -> np.ndarray:
    """Contexts of cytosines by the bases that follow in the read; int8 [calls].

    # METHOD: without a reference the context is that of the read. The bases that follow count only where they are
    # aligned without a gap: across an insertion, a deletion or a clip the read cannot say what stands beside the
    # cytosine in the reference, and the context is ".".
    """
    following = []
    for distance in (1, 2):
        base, there = following_bases(bases, place, is_minus, distance)
        is_beside = np.abs(positions[there] - positions[place]) == distance
        following.append(np.where(is_beside & (positions[there] != ABSENT), base, 0))
    return contexts_by_bases(*following)
