"""What every reader yields, and the settings that readers and filters share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from epivi.base.errors import UserError
from epivi.ingest.controls import NOTHING_SUMMED, QcContigs, qc_contigs
from epivi.ingest.text import Column, Rows, TextColumn, TextSource, require
from epivi.loci.contig_names import contig_renamer
from epivi.loci.contig_patterns import ContigPatterns
from epivi.tables.columns import CONTEXTS, STRANDS

# Positions in schema.STRANDS and schema.CONTEXTS.
PLUS, MINUS, UNKNOWN = (STRANDS.index(strand) for strand in "+-.")
CG = CONTEXTS.index("CG")
OTHER_CONTEXT = CONTEXTS.index(".")

# Letters of bases that exclude G; all letters of bases; and what files write where there is no context.
NOT_G = frozenset("ACTMWYH")
IUPAC = frozenset("ACGTRYSWKMBDHVN")
NO_CONTEXT = frozenset(("", ".", "-", "--", "*", "N", "NA", "U", "UNKNOWN"))

# A larger count in one row is a damaged file, and two of them still add up within 32 bits.
COUNT_MAX = 1_000_000_000
COUNT_EXPECTED = f"a count from 0 to {COUNT_MAX}"
# METHOD: a percent may differ from its counts by one point, which covers rounding and truncation to whole numbers.
PERCENT_TOLERANCE = 1.0 + 1e-6

# Values of the sample sheet's `haplotype` beside numbers.
ALL_READS, UNPHASED = "all", "unphased"
SKIP = "skip"  # loci.calls.bad_reads: leave out the reads of a BAM file that cannot be counted


@dataclass(frozen=True)
class IngestSettings:
    """Which rows count.

    contexts: CG, CHG, CHH, or "." alone for adenines; modification: m, h, mh or a, the bedMethyl rows or modBAM calls
    to count; include, exclude: shell-style patterns of contig names; min_coverage, max_coverage: reads at a locus,
    after strands are merged. A locus above max_coverage is missing for the sample. modified_from, unmodified_to: a
    modBAM call of at least, at most this probability is counted as modified, as unmodified; most_probable_from: if not
    None, the most probable of unmodified and all codes counts instead, where it has at least this probability.
    reference: FASTA file that says the contexts of text rows and modBAM calls, or None if the file or the reads do.
    haplotype: the reads of a BAM file to count: ALL_READS, UNPHASED, or the number in their tag HP as text. qc: contigs
    and contexts that are summed for quality control. pseudo_reads: reads that a beta value of an array stands for, or
    None, so that arrays are refused; array_manifest: table of the positions of probes; sample: the column of a matrix.
    rename: as `loci.contigs.rename`; the names in include, exclude and qc are the new ones.
    """

    contexts: tuple[str, ...]
    modification: str
    merge_strands: bool
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    min_coverage: int
    max_coverage: int
    modified_from: float = 0.75
    unmodified_to: float = 0.25
    most_probable_from: float | None = None
    reference: str | None = None
    haplotype: str = ALL_READS
    qc: QcContigs = NOTHING_SUMMED
    pseudo_reads: int | None = None
    array_manifest: str | None = None
    sample: str = ""
    rename: Any = None
    bad_reads: str = "error"


def ingest_settings(
    loci: Mapping[str, Any], haplotype: str = ALL_READS, qc: Mapping[str, Any] | None = None
) -> IngestSettings:
    """Settings from the sections `loci` and `qc` of the resolved configuration; without `qc` nothing is summed for it.

    Raises UserError if `haplotype` is none.
    """
    if haplotype not in (ALL_READS, UNPHASED) and not re.fullmatch(r"[1-9][0-9]*", haplotype):
        raise UserError(f"haplotype is {haplotype!r} (expected all, unphased, or a whole number >= 1)")
    contexts = loci["context"]
    contexts = (contexts,) if isinstance(contexts, str) else tuple(contexts)
    return IngestSettings(
        contexts=(CONTEXTS[OTHER_CONTEXT],) if loci["modification"] == "a" else contexts,
        modification=loci["modification"],
        merge_strands=loci["merge_strands"],
        include=tuple(loci["contigs"]["include"]),
        exclude=tuple(loci["contigs"]["exclude"]),
        min_coverage=loci["coverage"]["min"],
        max_coverage=loci["coverage"]["max"],
        modified_from=loci["calls"]["modified_from"],
        unmodified_to=loci["calls"]["unmodified_to"],
        most_probable_from=loci["calls"]["most_probable_from"],
        reference=loci["reference"],
        haplotype=haplotype,
        qc=NOTHING_SUMMED if qc is None else qc_contigs(qc),
        pseudo_reads=loci["array"]["pseudo_reads"],
        array_manifest=loci["array"]["manifest"],
        rename=loci["contigs"]["rename"],
        bad_reads=loci["calls"]["bad_reads"],
    )


def keeps_contig(contig: str, settings: IngestSettings) -> bool:
    """Whether a contig, by its name in the file, is read: for its loci, or for quality control."""
    contig = contig_renamer(settings.rename)(contig)
    return has_loci(contig, settings) or settings.qc.is_summed(contig)


def has_loci(contig: str, settings: IngestSettings) -> bool:
    """Whether a contig, by its new name, is included, not excluded, and no control."""

    patterns = ContigPatterns(settings.include, settings.exclude)
    return patterns.keeps(contig) and not settings.qc.is_control(contig)


class Counts(NamedTuple):
    """Counts at positions of one contig, or of a block with its contigs beside it; every array is [rows]."""

    pos0: np.ndarray  # int32
    strand: np.ndarray  # int8, index into schema.STRANDS
    context: np.ndarray  # int8, index into schema.CONTEXTS; "." is any other context
    meth: np.ndarray  # int32, reads
    total: np.ndarray  # int32, reads

    def select(self, rows: np.ndarray | slice) -> Counts:
        """The rows of a mask, an index array or a slice."""
        return Counts(*(column[rows] for column in self))


class AlignmentTally(NamedTuple):
    """Reads of a BAM file and the calls on those that count, with what was left out by reason."""

    reads: int
    reads_dropped: dict[str, int]
    calls: int
    calls_dropped: dict[str, int]
    phase_sets: frozenset[tuple[str, str]]  # contig and tag PS of the reads, where one haplotype counts
    reads_by_sample: dict[str, int]  # by SM of their read group, where the header has several


class Block(NamedTuple):
    """A block of one file in the layout that all readers share."""

    contig: TextColumn
    counts: Counts
    dropped: dict[str, int]  # reason -> rows that the reader itself left out
    percent_checked: int  # rows with a percent and reads
    percent_contradicting: int  # of those, the percent is not that of the counts
    layout: str  # how the columns were understood
    is_extrapolated: bool = False  # the counts are derived from a percentage or a probability; no reads were counted
    first_contradicting: int | None = None  # the first of those rows, as Rows.first counts
    context_is_assumed: bool = False  # the file does not say it; it is the one that is asked for
    reference_checked: int = 0  # rows, those left out included, whose base was looked up in the reference
    alignments: AlignmentTally | None = None  # of BAM files: what the rows were summed from, since the last block


def percent_contradicts(percent: np.ndarray, meth: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Where the percent of a covered row is not that of its counts; bool [rows]."""
    covered = total > 0
    return covered & (np.abs(percent - 100.0 * meth / np.where(covered, total, 1)) > PERCENT_TOLERANCE)


def first_row(rows: Rows, mask: np.ndarray) -> int | None:
    """The first row of the file, as Rows.first counts, where a mask (bool [rows]) is True."""
    return rows.first + int(np.argmax(mask)) if mask.any() else None


def require_counts(source: TextSource, rows: Rows, *columns: Column) -> None:
    """Raise a UserError naming the first row where one of these columns is not a count."""
    for column in columns:
        values = rows.columns[column.name]
        if rows.size and (values.min() < 0 or values.max() > COUNT_MAX):
            require(source, rows, (values >= 0) & (values <= COUNT_MAX), column, COUNT_EXPECTED)


def require_percent(source: TextSource, rows: Rows, column: Column) -> None:
    """Raise a UserError naming the first row whose percent is below 0 or above 100; nan passes."""
    percent = rows.columns[column.name]
    require(source, rows, ~((percent < 0) | (percent > 100)), column, "a percentage from 0 to 100")


def strand_codes(
    source: TextSource, rows: Rows, column: Column, known: Mapping[str, int], *, expected: str
) -> np.ndarray:
    """Index into STRANDS at every row, int8 [rows]; raises UserError naming the first row whose strand is not known."""
    text: TextColumn = rows.columns[column.name]
    codes = text.lookup([known.get(value, -1) for value in text.values])
    require(source, rows, codes >= 0, column, expected)
    return codes


def require_partner_base(source: TextSource, rows: Rows, counts: Counts, column: Column) -> None:
    """Raise a UserError where a minus-strand CpG has no base before it to be merged with."""
    has_none = (counts.strand == MINUS) & (counts.context == CG) & (counts.pos0 == 0)
    require(source, rows, ~has_none, column, "a plus-strand base, or a later one: a CpG cannot start before the contig")


def context_codes(source: TextSource, rows: Rows, column: Column) -> np.ndarray:
    """Index into schema.CONTEXTS at every row, int8 [rows], "." where the file leaves it open.

    Raises UserError naming the first row whose context is none.
    """
    text: TextColumn = rows.columns[column.name]
    codes = text.lookup([context_of(value) for value in text.values])
    require(source, rows, codes >= 0, column, "CG, CHG, CHH, or bases from the cytosine on")
    return codes


def context_of(spelling: str) -> int:
    """Index into schema.CONTEXTS of a context in any spelling (CpG, cg, CHH, CAG); -1 of what is none.

    "." is the context of bases that leave it open, as CN and CHN, and of a sign that stands for none.
    """
    bases = spelling.upper().replace("P", "")  # CpG, CpHpG
    if bases in NO_CONTEXT:
        return OTHER_CONTEXT
    if not bases.startswith("C") or not IUPAC.issuperset(bases):
        return -1
    second, third = bases[1:2], bases[2:3]
    if second == "G":
        return CG
    if second not in NOT_G or not (third == "G" or third in NOT_G):
        return OTHER_CONTEXT
    return CONTEXTS.index("CHG" if third == "G" else "CHH")


def only_context(source: TextSource, settings: IngestSettings, format_name: str) -> int:
    """The one requested context, for formats that do not say it; a first guess where a reference is given.

    Raises UserError if several are requested and there is no reference.
    """
    if len(settings.contexts) != 1 and settings.reference is None:
        raise UserError(
            f"{source.path}: {format_name} rows do not say their context, but loci.context asks for"
            f" {', '.join(settings.contexts)} (expected a single context, or loci.reference, which gives it)"
        )
    return CG if CONTEXTS[CG] in settings.contexts else CONTEXTS.index(settings.contexts[0])


def combined_strand(settings: IngestSettings) -> int:
    """Strand code of a CpG whose two strands are counted together: it sits at the + strand's C."""
    return PLUS if settings.merge_strands else UNKNOWN
