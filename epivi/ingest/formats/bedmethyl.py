"""bedMethyl: BED6 and more columns with coverage (10th) and percent (11th), 0-based.

Four forms are distinguished by the number of columns and by their content:

- modkit, 18 columns: valid coverage in the 10th, modified, canonical and otherwise modified reads in the 12th to 14th,
  which add up to it; one row for each modification. Early versions wrote 21 columns, the three of a BED12's blocks
  before the counts;
- two counts, 13 to 17 columns: unmodified and modified reads in the 12th and 13th, in whichever order agrees with
  the percent;
- modbam2bed, 11 columns: its README ("Output format") has all spanning reads in the 10th, also those deleted or without
  a call, and in the 5th the share of them that were called, in thousandths; the percent is of called reads;
- coverage and percent alone, 11 columns or more: modified reads are the rounded product.

Counts of the last two come of a percentage, which the record says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import NamedTuple, NoReturn

import numpy as np

from epivi.base.errors import UserError
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
    first_row,
    only_context,
    percent_contradicts,
    require_counts,
    require_partner_base,
    require_percent,
    strand_codes,
)
from epivi.ingest.modifications import COMBINED, COMBINED_CODES, MODIFICATION_CODES, MODIFICATIONS
from epivi.ingest.text import (
    Column,
    Rows,
    TextColumn,
    TextSource,
    is_number,
    read_rows,
    require,
    require_column_count,
    row_line,
    split,
)
from epivi.tables.columns import CONTEXTS

CONTIG = Column(0, "contig", "text")
START = Column(1, "start", "integer")
END = Column(2, "end", "integer")
NAME = Column(3, "modification", "text")
SCORE = Column(4, "score", "number")
STRAND = Column(5, "strand", "text")
COVERAGE = Column(9, "coverage", "integer")
PERCENT = Column(10, "percent", "number")
FIRST_COUNT = Column(11, "first count", "integer")
SECOND_COUNT = Column(12, "second count", "integer")
BED_COLUMNS = (CONTIG, START, END, NAME, STRAND)

MODKIT, MODKIT_COLUMNS = "modkit", 18
MODKIT_PLACES = (9, 12)  # of the valid coverage: today's, and behind the blocks of a BED12
MODBAM2BED_COLUMNS = 11
MODBAM2BED_NAMES = frozenset(("5mC", "5hmC", "5fC", "5caC", "5hmU", "5fU", "5caU", "6mA", "5oxoG", "Xao"))
STRAND_CODES = {"+": PLUS, "-": MINUS, ".": UNKNOWN}


class _Form(NamedTuple):
    """One of the forms: the columns beyond BED_COLUMNS, and how counts come out of them."""

    columns: tuple[Column, ...]
    layout: str
    counts: Callable[[TextSource, Rows], tuple[np.ndarray, np.ndarray]]  # methylated and total, int32 [rows]
    has_counts: bool  # the percent can contradict them
    names_are_codes: bool  # an unknown name is another modification, not a label
    dot_is_combined: bool  # strand "." means both strands together
    is_extrapolated: bool = False

    @property
    def has_other(self) -> bool:
        """Whether rows of one modification also count the reads with another."""
        return self.layout.startswith(MODKIT)


class ModkitColumns(NamedTuple):
    """The counts of modkit's rows."""

    valid: Column
    percent: Column
    modified: Column
    canonical: Column
    other: Column


def recognises(row: Sequence[str]) -> bool:
    """Whether one row has one of the forms."""
    return (
        len(row) >= 11
        and all(row[index].isdigit() for index in (1, 2, 9))
        and row[5] in STRAND_CODES
        and is_number(row[10])
    )


def read(source: TextSource, settings: IngestSettings) -> Iterator[Block]:
    """Yield the rows of the requested modification; raises UserError naming line and value of a bad row."""
    require_column_count(source, 11, 1000)
    form = _form(source, settings)
    seen: set[str] = set()
    n_wanted, combined_row = 0, None
    for rows in read_rows(source, BED_COLUMNS + form.columns):
        if form.layout == _UNORIENTED:
            form = _oriented(form, rows)
        names: TextColumn = rows.columns["modification"]
        is_combined = names.lookup([_code(name) in COMBINED_CODES for name in names.values], dtype=bool)
        seen.update(map(_code, names.values))
        if settings.modification == COMBINED and not seen.isdisjoint(MODIFICATIONS["m"]):
            require(source, rows, ~is_combined, NAME, "rows of m or rows of C, which count the same reads")
        if combined_row is None:
            combined_row = first_row(rows, is_combined)
        block = _block(source, rows, settings, form)
        n_wanted += len(block.counts.pos0)
        yield block
    if not n_wanted and combined_row is not None:
        _refuse_combined(source, combined_row, settings)
    if not n_wanted:
        _refuse_others(source, seen, settings, form)


def _refuse_combined(source: TextSource, row: int, settings: IngestSettings) -> NoReturn:
    number, line = row_line(source, row)
    raise UserError(
        f"{source.path}: line {number}: column 4 (modification) is {split(line, source.any_whitespace)[NAME.place]!r},"
        f" which counts 5mC and 5hmC together, and no row counts loci.modification {settings.modification!r} alone"
        f" (expected such rows, or loci.modification {COMBINED!r})"
    )


def _refuse_others(source: TextSource, seen: Collection[str], settings: IngestSettings, form: _Form) -> NoReturn:
    """No row counts what is asked for: with it the sample would have no loci."""
    why, expected = "", f"rows of {' or '.join(MODIFICATIONS[settings.modification])}"
    if settings.modification == COMBINED:
        why = "" if form.has_other else ", and rows of 5mC count 5hmC too only in the 18 columns of modkit"
        expected = f"rows of C, or rows of m in modkit's 18 columns, or another loci.modification than {COMBINED!r}"
    raise UserError(
        f"{source.path}: no row counts loci.modification {settings.modification!r}: all are of"
        f" {', '.join(sorted(seen))}{why} (expected {expected})"
    )


def _form(source: TextSource, settings: IngestSettings) -> _Form:
    rows = [split(line, source.any_whitespace) for line in source.sample]
    if source.column_count >= MODKIT_COLUMNS:
        return _modkit_form(rows, settings)
    with_counts = sum(len(row) >= 13 and row[11].isdigit() and row[12].isdigit() for row in rows)
    if 2 * with_counts > len(rows):
        two_counts = (COVERAGE, PERCENT, FIRST_COUNT, SECOND_COUNT)
        return _Form(two_counts, _UNORIENTED, _counts_second_modified, True, False, False)
    if source.column_count == MODBAM2BED_COLUMNS and 2 * sum(_is_modbam2bed(row) for row in rows) > len(rows):
        return _Form(
            (SCORE, COVERAGE, PERCENT),
            "modbam2bed, called share of the coverage",
            _modbam2bed_counts,
            True,
            False,
            False,
            True,
        )
    return _Form((COVERAGE, PERCENT), "coverage and percent", _counts_of_percent, False, False, False, True)


def _modkit_form(rows: Sequence[Sequence[str]], settings: IngestSettings) -> _Form:
    """The form whose counts stand where they add up in most of the first rows."""
    place = max(MODKIT_PLACES, key=lambda first: sum(_adds_up(row, first) for row in rows))
    columns = ModkitColumns(
        Column(place, "coverage", "integer"),
        Column(place + 1, "percent", "number"),
        Column(place + 2, "modified", "integer"),
        Column(place + 3, "canonical", "integer"),
        Column(place + 4, "otherwise modified", "integer"),
    )
    counts = partial(_modkit_counts, columns, settings.modification == COMBINED)
    layout = MODKIT if place == MODKIT_PLACES[0] else f"{MODKIT}, 21 columns"
    return _Form(tuple(columns), layout, counts, settings.modification != COMBINED, True, True)


def _adds_up(row: Sequence[str], place: int) -> bool:
    """Whether the valid coverage at a place is the sum of the counts behind it."""
    counts = [row[index] for index in (place, place + 2, place + 3, place + 4) if index < len(row)]
    if len(counts) < 4 or not all(re.fullmatch("[0-9]{1,10}", text) for text in counts):
        return False
    valid, *parts = map(int, counts)
    return valid == sum(parts)


def _is_modbam2bed(row: Sequence[str]) -> bool:
    return (
        len(row) == MODBAM2BED_COLUMNS
        and row[NAME.place] in MODBAM2BED_NAMES
        and re.fullmatch(r"[0-9]+\.[0-9]{2}|-?nan", row[PERCENT.place]) is not None
    )


def _modkit_counts(
    columns: ModkitColumns, is_combined: bool, source: TextSource, rows: Rows
) -> tuple[np.ndarray, np.ndarray]:
    """Counts of the row's modification, or of all modifications that the reads of the row have."""
    valid, _, modified, canonical, other = (rows.columns[column.name] for column in columns)
    require_counts(source, rows, columns.valid, columns.modified, columns.canonical, columns.other)
    adds_up = modified + canonical + other == valid
    require(source, rows, adds_up, columns.valid, "the sum of the modified, canonical and otherwise modified reads")
    return valid - canonical if is_combined else modified, valid


def _counts_second_modified(source: TextSource, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    first, second = _two_counts(source, rows)
    return second, first + second


def _counts_first_modified(source: TextSource, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    first, second = _two_counts(source, rows)
    return first, first + second


def _two_counts(source: TextSource, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    require_counts(source, rows, COVERAGE, FIRST_COUNT, SECOND_COUNT)
    first, second = rows.columns["first count"], rows.columns["second count"]
    require(source, rows, first + second <= rows.columns["coverage"], COVERAGE, "at least the sum of the two counts")
    return first, second


def _modbam2bed_counts(source: TextSource, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """METHOD: the score is the called share of the coverage in thousandths, rounded or cut off; below 1,000 reads one
    whole number of calls is nearest to it, up to one call."""
    require_counts(source, rows, COVERAGE)
    score = rows.columns["score"]
    require(source, rows, (score >= 0) & (score <= 1000), SCORE, "called reads in thousandths, from 0 to 1000")
    called = np.floor(rows.columns["coverage"] * score / 1000 + 0.5).astype(np.int32)
    return _share_of_percent(source, rows, called), called


def _counts_of_percent(source: TextSource, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    require_counts(source, rows, COVERAGE)
    total = rows.columns["coverage"]
    return _share_of_percent(source, rows, total), total


def _share_of_percent(source: TextSource, rows: Rows, total: np.ndarray) -> np.ndarray:
    """The percent of so many reads, rounded, int32 [rows]."""
    percent = rows.columns["percent"]
    require(source, rows, (total == 0) | ~np.isnan(percent), PERCENT, "a percentage where there are reads")
    product = np.where(total > 0, total * percent / 100.0, 0.0)
    return np.floor(product + 0.5).astype(np.int32)


_UNORIENTED = "two counts"


def _oriented(form: _Form, rows: Rows) -> _Form:
    """The form with its order of counts, once a block has rows that show it."""
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
    percent = next(column for column in form.columns if column.name == "percent")
    require_percent(source, rows, percent)
    meth, total = form.counts(source, rows)
    context, is_wanted, is_assumed = _names(source, columns["modification"], settings, form)
    strand, is_combined = _strand(source, rows, context, settings, form)
    counts = Counts(columns["start"], strand, context, meth, total)
    if settings.merge_strands and settings.reference is None:
        require_partner_base(source, rows, counts, STRAND)
    contradicts = np.zeros(rows.size, dtype=bool)
    if form.has_counts:
        contradicts = percent_contradicts(columns["percent"], meth, total) & is_wanted
    contig: TextColumn = columns["contig"]
    kept = slice(None) if is_wanted.all() else is_wanted
    return Block(
        contig._replace(codes=contig.codes[kept]),
        counts.select(kept),
        dropped={"other_modification": int(np.count_nonzero(~is_wanted))},
        percent_checked=int(np.count_nonzero(total)) if form.has_counts else 0,
        percent_contradicting=int(np.count_nonzero(contradicts)),
        layout=form.layout,
        is_extrapolated=form.is_extrapolated,
        first_contradicting=first_row(rows, contradicts),
        context_is_assumed=bool((is_assumed & ~is_combined).any()),
    )


def _strand(
    source: TextSource, rows: Rows, context: np.ndarray, settings: IngestSettings, form: _Form
) -> tuple[np.ndarray, np.ndarray]:
    """Strand codes (int8) and whether the row is a whole CpG (bool), [rows]; such a one sits at its + strand's C."""
    strand = strand_codes(source, rows, STRAND, STRAND_CODES, expected="+, - or .")
    width = rows.columns["end"] - rows.columns["start"]
    is_cpg = context == CG
    require(
        source, rows, (width == 1) | ((width == 2) & is_cpg), END, "one base after the start, or two for a whole CpG"
    )
    is_combined = (width == 2) | ((strand == UNKNOWN) & is_cpg & form.dot_is_combined)
    return np.where(is_combined, combined_strand(settings), strand).astype(np.int8), is_combined


def _names(
    source: TextSource, names: TextColumn, settings: IngestSettings, form: _Form
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Context code (int8), whether the row counts the requested modification, and if so, whether the context was
    assumed (bool); all [rows].

    modkit writes "code,motif,offset" where several motifs were asked for; any other name says no context.
    """
    parts = [name.split(",") for name in names.values]
    is_wanted = [_is_requested(part[0], settings.modification, form) for part in parts]
    contexts = [_motif_context(part[1], part[2]) if len(part) == 3 else None for part in parts]
    is_assumed = [wanted and context is None for wanted, context in zip(is_wanted, contexts, strict=True)]
    # Rows that are not counted may have any.
    assumed = only_context(source, settings, "bedMethyl") if any(is_assumed) else CG
    codes = [assumed if context is None else context for context in contexts]
    return names.lookup(codes), names.lookup(is_wanted, dtype=bool), names.lookup(is_assumed, dtype=bool)


def _code(name: str) -> str:
    return name.split(",")[0]


def _motif_context(motif: str, offset: str) -> int:
    """A longer motif, or another place in it, repeats the rows of a context's own."""
    return CONTEXTS.index(motif) if motif in CONTEXTS and offset == "0" else OTHER_CONTEXT


def _is_requested(code: str, modification: str, form: _Form) -> bool:
    """Whether rows of a code count; of several codes for one position each read counts once.

    # METHOD: 5mC and 5hmC together are the rows of their common code, or the modified and otherwise modified reads of
    # the rows of 5mC. A label that is no modification code (a library's name, a dot) stands for bisulfite reads, which
    # count as 5mC without distinguishing 5hmC.
    """
    if code in MODIFICATIONS[modification]:
        return True
    is_code = form.names_are_codes or code in MODIFICATION_CODES
    if modification == COMBINED:
        return (form.has_other and code in MODIFICATIONS["m"]) or not is_code
    return not is_code and modification == "m"
