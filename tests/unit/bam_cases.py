"""Small BAM files, written read by read, and counting by a slow method that looks at one base after the other."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pysam

from epivi.ingest.layout import Counts, IngestSettings
from epivi.ingest.qc import QcRecord
from epivi.ingest.read import ingest
from epivi.tables.columns import CONTEXTS, STRANDS

Locus = tuple[str, int, str, str, int, int]  # contig, pos0, strand, context, meth, total
Call = tuple[str, int, str, str, bool]  # contig, pos0, strand, context, whether modified
COMPLEMENT = dict(zip("ACGTN", "TGCAN", strict=True))


def make_settings(**changes: Any) -> IngestSettings:
    defaults = {
        "contexts": ("CG",),
        "modification": "m",
        "merge_strands": True,
        "include": ("*",),
        "exclude": (),
        "min_coverage": 1,
        "max_coverage": 100_000,
    }
    return IngestSettings(**{**defaults, **changes})


def read_of(
    sequence: str,
    cigar: str,
    start: int = 0,
    *,
    flag: int = 0,
    contig: int = 0,
    name: str = "r1",
    tags: Iterable[tuple[Any, ...]] = (),
    mate: tuple[int, int] | None = None,
) -> pysam.AlignedSegment:
    """An aligned read; tags as for pysam's set_tags; mate: contig and start of the mate."""
    read = pysam.AlignedSegment()
    read.query_name, read.flag, read.mapping_quality = name, flag, 60
    read.reference_id, read.reference_start = contig, start
    read.query_sequence, read.cigarstring = sequence, cigar
    if mate:
        read.next_reference_id, read.next_reference_start = mate
    read.set_tags(list(tags))
    return read


def write_bam(
    path: Path,
    reads: Iterable[pysam.AlignedSegment],
    contigs: Mapping[str, int] = {"chr1": 1000},
    *,
    order: str = "coordinate",
    groups: Mapping[str, str] = {},
) -> Path:
    """Write reads as they come; `order` is what the header says of them; groups: sample of each read group."""
    header = {"HD": {"VN": "1.6", "SO": order}, "SQ": [{"SN": name, "LN": size} for name, size in contigs.items()]}
    header["RG"] = [{"ID": group, "SM": sample} for group, sample in groups.items()]
    with pysam.AlignmentFile(str(path), "wb", header=header) as bam:
        for read in reads:
            bam.write(read)
    return path


def run(path: Path, options: IngestSettings, format_name: str = "auto") -> tuple[list[Locus], QcRecord]:
    """Loci as written, and the record, whose sums are checked."""
    loci: list[Locus] = []

    def write(contig: str, counts: Counts) -> None:
        columns = (column.tolist() for column in counts)
        for pos0, strand, context, meth, total in zip(*columns, strict=True):
            loci.append((contig, pos0, STRANDS[strand], CONTEXTS[context], meth, total))

    record = ingest(path, "s", options, write, format_name=format_name, spill_directory=path.parent)
    assert record.rows_read == record.rows_kept + sum(record.dropped.values())
    assert record.loci_written == len(loci) == record.rows_kept - record.duplicates_merged - record.strands_merged
    assert record.is_sorted
    assert record.duplicates_merged == 0
    return loci, record


def slow_loci(calls: Iterable[Call], options: IngestSettings) -> tuple[list[Locus], int]:
    """Loci of calls, and how many calls another context of their base outvoted. Coverage limits are not looked at."""
    by_base: dict[tuple[str, int, str], dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for contig, pos0, strand, context, is_modified in calls:
        by_base[contig, pos0, strand][context].append(is_modified)
    loci: dict[tuple[str, int, str, str], list[int]] = defaultdict(lambda: [0, 0])
    n_outvoted = 0
    for (contig, pos0, strand), contexts in by_base.items():
        chosen = max(contexts, key=lambda context: (len(contexts[context]), -CONTEXTS.index(context)))
        n_outvoted += sum(len(states) for context, states in contexts.items() if context != chosen)
        if chosen not in options.contexts:
            continue
        if options.merge_strands and chosen == "CG" and strand == "-":
            key = (contig, pos0 - 1, "+", chosen)
        else:
            key = (contig, pos0, strand, chosen)
        loci[key][0] += sum(contexts[chosen])
        loci[key][1] += len(contexts[chosen])
    order = sorted(loci, key=lambda key: (key[0], key[1], STRANDS.index(key[2]), CONTEXTS.index(key[3])))
    return [(*key, *loci[key]) for key in order], n_outvoted  # type: ignore[misc]


def slow_modbam(
    path: Path, options: IngestSettings, references: Mapping[str, str] | None = None
) -> tuple[list[Locus], Counter[str]]:
    """Loci and number of calls by what became of them ("counted", or the reason) of a modBAM file."""
    fates: Counter[str] = Counter()
    calls: list[Call] = []
    with pysam.AlignmentFile(str(path)) as bam:
        for read in bam:
            if not read.flag & 0xF04 and read.has_tag("MM"):
                calls += _slow_calls(read, options, references, fates)
    loci, n_outvoted = slow_loci(calls, options)
    fates["counted"] = len(calls) - n_outvoted
    fates["context_disagrees"] = n_outvoted
    return loci, +fates


def _slow_calls(
    read: pysam.AlignedSegment, options: IngestSettings, references: Mapping[str, str] | None, fates: Counter[str]
) -> list[Call]:
    sequence = read.query_sequence
    target = "A" if options.modification == "a" else "C"
    place_of = {query: place for query, place in read.get_aligned_pairs() if query is not None}
    contig = read.reference_name
    calls = []
    for (query, is_minus), found in slow_probabilities(read, options.modification).items():
        state = slow_state(found, options)
        if state == "not_asked":
            continue
        here = target if not is_minus else COMPLEMENT[target]
        place = place_of[query]
        step = -1 if is_minus else 1
        if sequence[query] != here:
            fates["other_base"] += 1
        elif place is None:
            fates["not_aligned"] += 1
        elif references and references[contig][place].upper() != here:
            fates["reference_mismatch"] += 1
        elif state in ("partly_called", "ambiguous"):
            fates[state] += 1
        else:
            following = ""
            for distance in (1, 2):
                if references:
                    there = place + step * distance
                    base = references[contig][there].upper() if 0 <= there < len(references[contig]) else "?"
                else:
                    there = query + step * distance
                    is_beside = there in place_of and place_of[there] == place + step * distance
                    base = sequence[there] if is_beside else "?"
                following += COMPLEMENT.get(base, "?") if is_minus else base
            context = "." if options.modification == "a" else slow_context(following)
            calls.append((contig, place, "-" if is_minus else "+", context, state == "modified"))
    return calls


def slow_context(following: str) -> str:
    first, second = following
    if first == "G":
        return "CG"
    if first in "ACT" and second in "ACTG":
        return "CHG" if second == "G" else "CHH"
    return "."


ASKED = {"m": ("m", "27551"), "h": ("h", "76792"), "mh": ("m", "27551", "h", "76792", "C"), "a": ("a", "28871", "A")}


def slow_state(found: Mapping[str, float | None], options: IngestSettings) -> str:
    """What a base is by the probabilities of its codes; None is a code of the read that was not looked at here."""
    asked = {code: value for code, value in found.items() if code in ASKED[options.modification]}
    called = [value for value in asked.values() if value is not None]
    if not called:
        return "not_asked"
    if options.most_probable_from is None:
        if sum(called) >= options.modified_from:
            return "modified"
        if len(called) < len(asked):
            return "partly_called"
        return "unmodified" if sum(called) <= options.unmodified_to else "ambiguous"
    outcomes = {
        code: value for code, value in found.items() if value is not None and (code in asked or not code.isupper())
    }
    unmodified = 1 - sum(outcomes.values())
    ranked = sorted(outcomes, key=lambda code: (outcomes[code], code in asked))
    best = ranked[-1]
    if max(unmodified, outcomes[best]) < options.most_probable_from:
        return "ambiguous"
    return "modified" if outcomes[best] > unmodified and best in asked else "unmodified"


def slow_probabilities(
    read: pysam.AlignedSegment, modification: str
) -> dict[tuple[int, bool], dict[str, float | None]]:
    """By place in SEQ, and whether on the - strand, the probability of each code that the read has, by walking it."""
    levels = list(read.get_tag("ML")) if read.has_tag("ML") else []
    sequenced = read.query_sequence
    if read.is_reverse:
        sequenced = "".join(COMPLEMENT.get(base, base) for base in reversed(sequenced))
    result: dict[tuple[int, bool], dict[str, float | None]] = defaultdict(dict)
    for group in read.get_tag("MM").split(";")[:-1]:
        head, *skips = group.split(",")
        base, sign, code = head[0], head[1], head[2:].rstrip("?.")
        codes = [code] if code.isdigit() else list(code)
        queue = [int(skip) for skip in skips]
        for index, letter in enumerate(sequenced):
            place = len(sequenced) - 1 - index if read.is_reverse else index
            here = result[place, (sign == "-") != read.is_reverse]
            probabilities: list[float | None] = [None] * len(codes)
            is_counted = base in ("N", letter)
            if is_counted and queue and queue[0] == 0:
                queue.pop(0)
                probabilities = [(level + 0.5) / 256 for level in levels[: len(codes)]]
                levels = levels[len(codes) :]
            elif is_counted:
                if queue:
                    queue[0] -= 1
                target = "A" if modification == "a" else "C"
                if not head.endswith("?") and letter == (target if sign == "+" else COMPLEMENT[target]):
                    probabilities = [0.0] * len(codes)
            here.update(zip(codes, probabilities, strict=True))
    return result


def slow_bismark(path: Path, options: IngestSettings) -> tuple[list[Locus], Counter[str]]:
    """Loci and number of calls by what became of them, of a bisulfite BAM file."""
    fates: Counter[str] = Counter()
    calls: list[Call] = []
    with pysam.AlignmentFile(str(path)) as bam:
        reads = [read for read in bam if not read.flag & 0xF04 and read.has_tag("XM")]
    covered: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for read in reads:
        if read.is_paired and read.is_read1:
            covered[read.query_name] |= {(read.reference_name, place) for place in read.get_reference_positions()}
    context_of = {"z": "CG", "x": "CHG", "h": "CHH"}
    for read in reads:
        for query, place in read.get_aligned_pairs():
            letter = "." if query is None else read.get_tag("XM")[query]
            if letter == ".":
                continue
            if place is None:
                fates["not_aligned"] += 1
            elif read.is_paired and read.is_read2 and (read.reference_name, place) in covered[read.query_name]:
                fates["mate_overlap"] += 1
            elif letter in "uU" or (letter in "zZ" and place == 0 and read.get_tag("XG") == "GA"):
                fates["unknown_context"] += 1
            else:
                strand = "+" if read.get_tag("XG") == "CT" else "-"
                calls.append((read.reference_name, place, strand, context_of[letter.lower()], letter.isupper()))
    loci, n_outvoted = slow_loci(calls, options)
    fates["counted"] = len(calls) - n_outvoted
    fates["context_disagrees"] = n_outvoted
    return loci, +fates
