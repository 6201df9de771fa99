"""bedMethyl: BED6 and more columns with coverage (10th) and percent (11th), 0-based.

Three forms are told apart by the number of columns and by what stands in the 12th and 13th:

- modkit, 18 columns: valid coverage in the 10th, modified reads in the 12th; one row for each modification;
- two counts, 13 to 17 columns: unmodified and modified reads in the 12th and 13th, in whichever order agrees with
  the percent;
- coverage and percent alone, 11 columns or more: modified reads are the rounded product, which the record calls
  extrapolated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from epivi.ingest.layout import (
    CG,
    MINUS,
    OTHER_CONTEXT,
    PLUS,
    UNKNOWN,
    Block,
    Counts,
    IngestSettings,
    combined_strand,
    only_context,
    percent_contradicts,
    require_counts,
    require_partner_base,
    require_percent,
    strand_codes,
)
from epivi.ingest.modifications import MODIFICATIONS, OTHER_MODIFICATIONS
from epivi.ingest.text import (
    Column,
    Rows,
    TextColumn,
    TextSource,
    is_number,
    read_rows,
    require,
    require_column_count,
    split,
)
from epivi.schema import CONTEXTS

CONTIG = Column(0, "contig", "text")
START = Column(1, "start", "integer")
END = Column(2, "end", "integer")
NAME = Column(3, "modification", "text")
STRAND = Column(5, "strand", "text")
COVERAGE = Column(9, "coverage", "integer")
PERCENT = Column(10, "percent", "number")
MODIFIED = Column(11, "modified", "integer")
FIRST_COUNT = Column(11, "first count", "integer")
SECOND_COUNT = Column(12, "second count", "integer")
BED_COLUMNS = (CONTIG, START, END, NAME, STRAND, COVERAGE, PERCENT)

MODKIT_COLUMNS = 18
STRAND_CODES = {"+": PLUS, "-": MINUS, ".": UNKNOWN}


class _Form(NamedTuple):
    """One of the three forms: the columns beyond BED_COLUMNS, and how counts come out of them."""

    columns: tuple[Column, ...]
    layout: str
    counts: Callable[[TextSource, Rows], tuple[np.ndarray, np.ndarray]]  # methylated and total, int32 [rows]
    has_counts: bool  # the percent can contradict them
    names_are_codes: bool  # an unknown name is another modification, not a label
    dot_is_combined: bool  # strand "." means both strands together
    is_extrapolated: bool = False


def recognises(row: Sequence[str]) -> bool:
    """Whether one row has one of the three forms."""
    return (
        len(row) >= 11
        and all(row[index].isdigit() for index in (1, 2, 9))
        and row[5] in STRAND_CODES
        and is_number(row[10])
    )


def read(source: TextSource, settings: IngestSettings) -> Iterator[Block]:
    """Yield the rows of the requested modification; raises UserError naming line and value of a bad row."""
    require_column_count(source, 11, 1000)
    form = _form(source)
    for rows in read_rows(source, BED_COLUMNS + form.columns):
        if form.layout == _UNORIENTED:
            form = _oriented(form, rows)
        yield _block(source, rows, settings, form)


def _form(source: TextSource) -> _Form:
    if source.column_count >= MODKIT_COLUMNS:
        return _Form((MODIFIED,), "modkit", _modkit_counts, True, True, True)
    rows = [split(line, source.any_whitespace) for line in source.sample]
    with_counts = sum(len(row) >= 13 and row[11].isdigit() and row[12].isdigit() for row in rows)
    if 2 * with_counts > len(rows):
        return _Form((FIRST_COUNT, SECOND_COUNT), _UNORIENTED, _counts_second_modified, True, False, False)
    return _Form((), "coverage and percent", _counts_of_percent, False, False, False, True)


def _modkit_counts(source: TextSource, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    require_counts(source, rows, COVERAGE, MODIFIED)
    meth, total = rows.columns["modified"], rows.columns["coverage"]
    require(source, rows, meth <= total, MODIFIED, "at most the coverage")
    return meth, total


def _counts_second_modified(source: TextSource, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    require_counts(source, rows, FIRST_COUNT, SECOND_COUNT)
    first, second = rows.columns["first count"], rows.columns["second count"]
    return second, first + second


def _counts_first_modified(source: TextSource, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    require_counts(source, rows, FIRST_COUNT, SECOND_COUNT)
    first, second = rows.columns["first count"], rows.columns["second count"]
    return first, first + second


def _counts_of_percent(source: TextSource, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    require_counts(source, rows, COVERAGE)
    percent, total = rows.columns["percent"], rows.columns["coverage"]
    require(source, rows, (total == 0) | ~np.isnan(percent), PERCENT, "a percentage where there are reads")
    product = np.where(total > 0, total * percent / 100.0, 0.0)
    return np.floor(product + 0.5).astype(np.int32), total


_UNORIENTED = "two counts"


def _oriented(form: _Form, rows: Rows) -> _Form:
    """The form with its order of counts, once a block has rows that tell it."""
    first, second = rows.columns["first count"].astype(np.int64), rows.columns["second count"].astype(np.int64)
    total = first + second
    percent = rows.columns["percent"]
    fits_first = ~percent_contradicts(percent, first, total)
    fits_second = ~percent_contradicts(percent, second, total)
    votes_first = np.count_nonzero(fits_first & ~fits_second)
    votes_second = np.count_nonzero(fits_second & ~fits_first)
    # METHOD: the first block with a telling row decides for the whole file; rows that disagree later are counted as
    # contradicting their percent. A file without a telling row has equal counts, or none, in every row.
    if votes_first > votes_second:
        return form._replace(counts=_counts_first_modified, layout="two counts, modified in column 12")
    if votes_second > 0:
        return form._replace(layout="two counts, modified in column 13")
    return form


def _block(source: TextSource, rows: Rows, settings: IngestSettings, form: _Form) -> Block:
    columns = rows.columns
    require(source, rows, columns["start"] >= 0, START, "a 0-based position")
    require_percent(source, rows, PERCENT)
    meth, total = form.counts(source, rows)
    context, is_wanted = _names(source, columns["modification"], settings, form)
    counts = Counts(columns["start"], _strand(source, rows, context, settings, form), context, meth, total)
    if settings.merge_strands:
        require_partner_base(source, rows, counts, STRAND)
    contradicts = percent_contradicts(columns["percent"], meth, total) & form.has_counts
    contig: TextColumn = columns["contig"]
    return Block(
        contig._replace(codes=contig.codes[is_wanted]),
        counts.select(is_wanted),
        dropped={"other_modification": int(np.count_nonzero(~is_wanted))},
        percent_checked=int(np.count_nonzero(total)) if form.has_counts else 0,
        percent_contradicting=int(np.count_nonzero(contradicts)),
        layout=form.layout,
        is_extrapolated=form.is_extrapolated,
    )


def _strand(source: TextSource, rows: Rows, context: np.ndarray, settings: IngestSettings, form: _Form) -> np.ndarray:
    """Strand codes, int8 [rows]; a CpG whose two strands are counted together sits at its + strand's C."""
    strand = strand_codes(source, rows, STRAND, STRAND_CODES, expected="+, - or .")
    width = rows.columns["end"] - rows.columns["start"]
    is_cpg = context == CG
    require(
        source, rows, (width == 1) | ((width == 2) & is_cpg), END, "one base after the start, or two for a whole CpG"
    )
    is_combined = (width == 2) | ((strand == UNKNOWN) & is_cpg & form.dot_is_combined)
    return np.where(is_combined, combined_strand(settings), strand).astype(np.int8)


def _names(
    source: TextSource, names: TextColumn, settings: IngestSettings, form: _Form
) -> tuple[np.ndarray, np.ndarray]:
    """Context code (int8) and whether the row counts the requested modification (bool), both [rows].

    modkit writes "code,motif,offset" where several motifs were asked for; any other name says no context.
    """
    parts = [name.split(",") for name in names.values]
    is_wanted = [_is_requested(part[0], settings.modification, form) for part in parts]
    contexts = [_motif_context(part[1]) if len(part) == 3 else None for part in parts]
    if any(wanted and context is None for wanted, context in zip(is_wanted, contexts, strict=True)):
        assumed = only_context(source, settings, "bedMethyl")
    else:
        assumed = CG  # of rows that are not counted
    codes = [assumed if context is None else context for context in contexts]
    return names.lookup(codes), names.lookup(is_wanted, dtype=bool)


def _motif_context(motif: str) -> int:
    return CONTEXTS.index(motif) if motif in CONTEXTS else OTHER_CONTEXT


def _is_requested(code: str, modification: str, form: _Form) -> bool:
    if code in MODIFICATIONS[modification]:
        return True
    is_code = (
        form.names_are_codes or code in OTHER_MODIFICATIONS or any(code in all_ for all_ in MODIFICATIONS.values())
    )
    # METHOD: a label that is no modification code (a library's name, a dot) stands for 5-methylcytosine.
    return not is_code and modification == "m"
