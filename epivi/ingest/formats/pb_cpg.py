"""pb-CpG-tools BED (`aligned_bam_to_cpg_scores`): one row a CpG, both strands together, 0-based at the + strand's C.

Columns, after the section "Bed file format" of the tool's README (versions 1 to 3): contig, start, end, modification
score in percent, haplotype (Total, hap1 or hap2), coverage, modified and unmodified count. The columns after these give
the pileup mode:

- count, 10 columns: reads with a modification probability above 0.5 were counted, the score is their percentage; the
  average probabilities in the last two columns (which may be ".") are not read;
- model, 9 columns: the score is a model's, and the two counts are extrapolated from it and the coverage, rounded
  towards none, half or all of the reads; the last column is the percentage of these counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from epivi.ingest.layout import (
    ALL_READS,
    CG,
    Block,
    Counts,
    IngestSettings,
    combined_strand,
    first_row,
    percent_contradicts,
    require_counts,
    require_percent,
)
from epivi.ingest.text import Column, Rows, TextColumn, TextSource, is_number, read_rows, require, require_column_count

CONTIG = Column(0, "contig", "text")
START = Column(1, "start", "integer")
END = Column(2, "end", "integer")
SCORE = Column(3, "score", "number")
HAPLOTYPE = Column(4, "haplotype", "text")
COVERAGE = Column(5, "coverage", "integer")
MODIFIED = Column(6, "modified", "integer")
UNMODIFIED = Column(7, "unmodified", "integer")
DISCRETIZED = Column(8, "discretized score", "number")
COLUMNS = (CONTIG, START, END, SCORE, HAPLOTYPE, COVERAGE, MODIFIED, UNMODIFIED)

# Label -> value of the sample sheet's `haplotype`.
HAPLOTYPES = {"Total": ALL_READS, "hap1": "1", "hap2": "2"}


class _Mode(NamedTuple):
    """A pileup mode: its columns, which of them is the percentage of the counts, and whether no reads were counted."""

    columns: tuple[Column, ...]
    percent: Column
    layout: str
    is_extrapolated: bool


# number of columns -> mode
MODES = {
    9: _Mode((*COLUMNS, DISCRETIZED), DISCRETIZED, "pileup mode model", is_extrapolated=True),
    10: _Mode(COLUMNS, SCORE, "pileup mode count", is_extrapolated=False),
}


def recognises(row: Sequence[str]) -> bool:
    """Whether one row has this form."""
    return (
        len(row) in MODES
        and all(row[index].isdigit() for index in (1, 2, 5, 6, 7))
        and is_number(row[3])
        and row[4] in HAPLOTYPES
    )


def haplotype_of(row: Sequence[str]) -> str:
    """Which reads a row that has this form is of: all, or a haplotype's number."""
    return HAPLOTYPES[row[HAPLOTYPE.place]]


def read(source: TextSource, settings: IngestSettings) -> Iterator[Block]:
    """Yield the file's rows, none if 5hmC is asked for; raises UserError naming line and value of a bad row."""
    require_column_count(source, min(MODES), max(MODES))
    mode = MODES[source.column_count]
    haplotype = ""
    for rows in read_rows(source, mode.columns):
        haplotype = haplotype or next(iter(rows.columns["haplotype"].values), "")
        _check(source, rows, mode, haplotype)
        _require_haplotype_asked_for(source, rows, settings)
        yield _block(rows, mode, settings)


def _require_haplotype_asked_for(source: TextSource, rows: Rows, settings: IngestSettings) -> None:
    """A file of one haplotype may also stand for all of a sample, whose parent of origin the sheet then says."""
    if settings.haplotype == ALL_READS:
        return
    labels: TextColumn = rows.columns["haplotype"]
    is_asked = labels.lookup([HAPLOTYPES[label] == settings.haplotype for label in labels.values], dtype=bool)
    expected = {haplotype: label for label, haplotype in HAPLOTYPES.items()}.get(settings.haplotype, "other reads")
    require(source, rows, is_asked, HAPLOTYPE, f"{expected}, since the sample's haplotype is {settings.haplotype}")


def _check(source: TextSource, rows: Rows, mode: _Mode, haplotype: str) -> None:
    columns = rows.columns
    require(source, rows, columns["start"] >= 0, START, "a 0-based position")
    require(source, rows, columns["end"] == columns["start"] + 1, END, "one base after the start")
    require_percent(source, rows, SCORE)
    require_percent(source, rows, mode.percent)
    _require_one_haplotype(source, rows, haplotype)
    require_counts(source, rows, COVERAGE, MODIFIED, UNMODIFIED)
    is_sum = columns["modified"] + columns["unmodified"] == columns["coverage"]
    require(source, rows, is_sum, COVERAGE, "the sum of the modified and the unmodified count")


def _require_one_haplotype(source: TextSource, rows: Rows, haplotype: str) -> None:
    """The tool writes a file for all reads and one for each haplotype; rows of two would count the same reads twice."""
    labels: TextColumn = rows.columns["haplotype"]
    is_known = labels.lookup([label in HAPLOTYPES for label in labels.values], dtype=bool)
    require(source, rows, is_known, HAPLOTYPE, "Total, hap1 or hap2")
    is_first = labels.lookup([label == haplotype for label in labels.values], dtype=bool)
    require(source, rows, is_first, HAPLOTYPE, f"{haplotype}, as in the first row")


def _block(rows: Rows, mode: _Mode, settings: IngestSettings) -> Block:
    columns = rows.columns
    # METHOD: in model mode the tool's extrapolated counts are taken as if reads had been counted; the record states it.
    counts = Counts(
        pos0=columns["start"],
        strand=np.full(rows.size, combined_strand(settings), dtype=np.int8),
        context=np.full(rows.size, CG, dtype=np.int8),
        meth=columns["modified"],
        total=columns["coverage"],
    )
    contradicts = percent_contradicts(columns[mode.percent.name], counts.meth, counts.total)
    # The tool calls 5mC alone.
    is_wanted = np.full(rows.size, settings.modification == "m")
    contig: TextColumn = columns["contig"]
    return Block(
        contig._replace(codes=contig.codes[is_wanted]),
        counts.select(is_wanted),
        dropped={"other_modification": int(np.count_nonzero(~is_wanted))},
        percent_checked=int(np.count_nonzero(counts.total)),
        percent_contradicting=int(np.count_nonzero(contradicts)),
        layout=mode.layout,
        is_extrapolated=mode.is_extrapolated,
        first_contradicting=first_row(rows, contradicts),
    )
