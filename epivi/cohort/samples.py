"""The sample sheet: which file holds the counts of which sample of which individual, and the samples' covariates.

Also the reader of small text tables that sheet and pedigree share, with line numbers for messages.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from epivi.base.errors import Mistakes, UserError
from epivi.base.files import expand_home
from epivi.config.load import load_schema, suggestion
from epivi.field.covariate import Covariate

if TYPE_CHECKING:
    from epivi.loci.store import LociStore

MISSING = ("", ".", "NA", "NaN", "nan")
# Values of the column `haplotype` beside numbers.
ALL_READS, UNPHASED = "all", "unphased"
# Value of `phasing` that leaves it to the file.
OF_FILE = "file"
ALMOST = 0.8  # likeness of two names of columns from which one is taken for the other misspelt
NODE_COLUMNS = ("filename", "node", "gen", "meth")


Origin = Literal["both", "maternal", "paternal", "unknown"]


@dataclass(frozen=True)
class SampleSheet:
    """The samples of a cohort; S samples in the order of the sheet, which is the sample axis everywhere.

    individuals: individual of each sample. paths: files of counts. formats: reader names, "auto" where not given.
    haplotypes: reads of a BAM file to count: "all", "unphased", or a number of the tag HP as text.
    false_methylated, false_unmethylated: error probabilities in [0, 0.5), float64 [S].
    columns: text of every other column, by name. lines: line of each sample in the file, for messages.
    open_false_methylated, open_false_unmethylated: samples whose error probability the sheet leaves open.
    origins: parent of origin of the samples of which the sheet says it: both, maternal, paternal or unknown.
    phasings: of the samples of which the sheet says it, the name of the phasing that numbered their haplotypes.
    """

    path: str
    samples: tuple[str, ...]
    individuals: tuple[str, ...]
    paths: tuple[str, ...]
    formats: tuple[str, ...]
    haplotypes: tuple[str, ...]
    false_methylated: np.ndarray
    false_unmethylated: np.ndarray
    columns: Mapping[str, tuple[str, ...]]
    lines: tuple[int, ...]
    open_false_methylated: frozenset[str] = frozenset()
    open_false_unmethylated: frozenset[str] = frozenset()
    origins: Mapping[str, Origin] = field(default_factory=dict)
    phasings: Mapping[str, str] = field(default_factory=dict)

    def content(self, columns: Iterable[str]) -> tuple[Any, ...]:
        """What the sheet says of its samples, by name, but for their files: the same whatever the order of its rows."""
        rows = sorted(range(len(self.samples)), key=lambda row: self.samples[row])
        own = [self.columns[name] for name in sorted(columns) if name in self.columns]
        errors = (self.false_methylated.tolist(), self.false_unmethylated.tolist())
        origins = [self.origin_of(row) for row in range(len(self.samples))]
        fields = (self.samples, self.individuals, self.haplotypes, origins, *errors, *own)
        is_open = (sorted(self.open_false_methylated), sorted(self.open_false_unmethylated))
        return (sorted(columns), is_open, [[values[row] for values in fields] for row in rows])

    def origin_of(self, row: int) -> Origin:
        """Parent of origin of a sample: as said, else unknown for a haplotype by number, and both for all others."""
        is_whole = self.haplotypes[row] in (ALL_READS, UNPHASED)
        return self.origins.get(self.samples[row], "both" if is_whole else "unknown")

    def phasing_of(self, row: int) -> str:
        """What a haplotype's number is of: the phasing that the sheet names, else the file, by its first sample."""
        phasing = self.phasings.get(self.samples[row])
        return self.samples[self.first_of_file[row]] if phasing is None else f"phasing {phasing}"

    @cached_property
    def first_of_file(self) -> tuple[int, ...]:
        """Of each sample the first one that is read from the same file, whatever path leads there."""
        first: dict[tuple[Any, ...], int] = {}
        return tuple(first.setdefault(file_identity(path), row) for row, path in enumerate(self.paths))


def file_identity(path: str) -> tuple[Any, ...]:
    """The same for all paths to one file: symbolic and hard links, and other spellings; by its path where it is not."""
    try:
        status = os.stat(path)
    except OSError:
        return (os.path.realpath(path),)
    return status.st_dev, status.st_ino


@dataclass(frozen=True)
class Table:
    """A text table as read: cells by column name, line numbers beside the rows."""

    path: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]

    def column(self, name: str, default: str = "") -> tuple[str, ...]:
        """Cells of a column; `default` in every row where the table has no such column."""
        if name not in self.header:
            return (default,) * len(self.rows)
        index = self.header.index(name)
        return tuple(row[index] for row in self.rows)


def as_texts(values: Iterable[Any]) -> tuple[str, ...]:
    """Values of a column in memory as a file would have them: empty for None and NaN, 3 for 3.0."""
    texts = []
    for value in values:
        is_missing = value is None or value != value
        is_whole = isinstance(value, float) and not is_missing and value.is_integer()
        texts.append("" if is_missing else str(int(value) if is_whole else value).strip())
    return tuple(texts)


def columns_of(table: Any, what: str) -> dict[str, Sequence[Any]]:
    """Columns of a table in memory by name: a mapping, a DataFrame of pandas or polars, or an Arrow table.

    Raises UserError, naming `what`, for anything else.
    """
    if isinstance(table, Mapping):
        return dict(table)
    if hasattr(table, "column_names") and hasattr(table, "to_pydict"):
        return dict(table.to_pydict())
    if hasattr(table, "columns") and hasattr(table, "__getitem__"):
        return {str(name): list(table[name]) for name in table.columns}
    raise UserError(f"{what}: a {type(table).__name__}: expected a mapping from names to columns, or a table")


@dataclass(frozen=True)
class NodeList:
    """The node list of AlphaBeta: [N] plants or their leaves; generations are None where the cell is missing."""

    path: str
    filenames: tuple[str, ...]
    nodes: tuple[str, ...]
    generations: tuple[int | None, ...]
    measured: tuple[bool, ...]
    lines: tuple[int, ...]


def read_sample_sheet(path: str | os.PathLike[str]) -> SampleSheet:
    """Read a tab-separated sample sheet, or the measured nodes of an AlphaBeta node list (`.fn`).

    Raises UserError naming file, line and column for a missing file, a wrong number of columns, a missing or misspelt
    column, a sample given twice, and a value out of range, with a line for each mistake. Whether the files of counts
    exist is `check_files`'s question: only `ingest` needs them.
    """
    path = expand_home(path)
    if path.lower().endswith(".fn"):
        return alphabeta_samples(path)
    schema = load_schema("samples")
    table = read_table(path, "sample sheet", required=schema["required"], optional=list(schema["properties"]))
    mistakes = Mistakes()
    for check in (_check_misspelt, _check_names, _haplotypes, _origins, *_PROBABILITIES):
        with mistakes.gather():
            check(table)
    mistakes.require_none()
    return SampleSheet(
        path=path,
        samples=table.column("sample"),
        individuals=table.column("individual"),
        paths=tuple(_resolved(value, path) for value in table.column("path")),
        formats=tuple("auto" if value in MISSING else value for value in table.column("format")),
        haplotypes=_haplotypes(table),
        false_methylated=_probabilities(table, "false_methylated"),
        false_unmethylated=_probabilities(table, "false_unmethylated"),
        columns={name: table.column(name) for name in table.header if name not in schema["properties"]},
        lines=table.lines,
        open_false_methylated=_open(table, "false_methylated"),
        open_false_unmethylated=_open(table, "false_unmethylated"),
        origins=_origins(table),
        phasings=_phasings(table),
    )


def _check_misspelt(table: Table) -> None:
    """A column that is nearly named as one that has a meaning is taken for a covariate by nobody but the program."""
    known = load_schema("samples")["properties"]
    mistakes = Mistakes()
    for name in table.header:
        close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=ALMOST)
        if name not in known and close and close[0] not in table.header:
            mistakes.add(
                f"{table.path}: column {name!r}: did you mean {close[0]!r}? If not, give it a name that is less like it"
            )
    mistakes.require_none()


def _check_names(table: Table) -> None:
    """Samples are named, once each; individual and path are there."""
    properties = load_schema("samples")["properties"]
    mistakes = Mistakes()
    with mistakes.gather():
        check_unique(table.path, "sample", table.column("sample"), table.lines)
    for name in ("sample", "individual", "path"):
        pattern, expected = properties[name].get("pattern"), properties[name]["expected"]
        for value, line in zip(table.column(name), table.lines, strict=True):
            if not re.fullmatch(pattern, value) if pattern else value in MISSING:
                mistakes.add(f"{table.path} line {line}: {name} is {value!r}: expected {expected}")
    mistakes.require_none()


def alphabeta_samples(nodes_path: str | os.PathLike[str]) -> SampleSheet:
    """The measured nodes (meth = Y) of an AlphaBeta node list as a sample sheet: sample and individual are the node.

    File names are relative to the list. Raises UserError as `read_node_list`, and where no node is measured.
    """
    nodes = read_node_list(nodes_path)
    measured = [index for index, is_measured in enumerate(nodes.measured) if is_measured]
    if not measured:
        raise UserError(f"{nodes.path}: no node has meth = Y: expected at least one measured node")
    names = tuple(nodes.nodes[index] for index in measured)
    folder = Path(nodes.path).parent
    return SampleSheet(
        path=nodes.path,
        samples=names,
        individuals=names,
        paths=tuple(os.fspath(folder / expand_home(nodes.filenames[index])) for index in measured),
        formats=("auto",) * len(names),
        haplotypes=("all",) * len(names),
        false_methylated=np.zeros(len(names)),
        false_unmethylated=np.zeros(len(names)),
        columns={},
        lines=tuple(nodes.lines[index] for index in measured),
        open_false_methylated=frozenset(names),
        open_false_unmethylated=frozenset(names),
    )


# ---- covariates


def design_matrix(sheet: SampleSheet, covariates: Sequence[str]) -> tuple[np.ndarray, tuple[Covariate, ...]]:
    """Covariates of the samples without intercept: float64 [S, P], and what the P columns are.

    A column whose every value is a number is standardized to mean 0 and SD 1 (population SD); another column is a
    category: one centred 0/1 column for each sorted level but the first, which is the reference. Raises UserError
    naming sheet, line and column for an unknown column, a missing value and a constant column.
    """
    columns: list[np.ndarray] = []
    meaning: list[Covariate] = []
    for covariate in covariates:
        values = _covariate(sheet, covariate)
        numbers = [as_number(value) for value in values]
        is_numeric = None not in numbers
        if len(set(numbers if is_numeric else values)) < 2:
            raise UserError(
                f"{sheet.path}: column {covariate!r} is {values[0]!r} in every sample: expected a column that varies"
            )
        if is_numeric:
            column = np.array(numbers, dtype=np.float64)
            columns.append((column - column.mean()) / column.std())
            meaning.append(Covariate(covariate, scale=float(column.std())))
            continue
        reference, *levels = sorted(set(values))
        for level in levels:
            indicator = np.array([value == level for value in values], dtype=np.float64)
            columns.append(indicator - indicator.mean())
            meaning.append(Covariate(covariate, level, reference))
    matrix = np.stack(columns, axis=1) if columns else np.zeros((len(sheet.samples), 0))
    return matrix, tuple(meaning)


def group_index(sheet: SampleSheet, column: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Group of each sample in a column: int32 [S] into the sorted level names; missing values are errors."""
    values = _covariate(sheet, column)
    levels = tuple(sorted(set(values)))
    position = {level: index for index, level in enumerate(levels)}
    return np.array([position[value] for value in values], dtype=np.int32), levels


def _covariate(sheet: SampleSheet, name: str) -> tuple[str, ...]:
    if name not in sheet.columns:
        raise UserError(f"{sheet.path}: the sample sheet has no column {name!r}; {suggestion(name, sheet.columns)}")
    values = sheet.columns[name]
    for value, sample, line in zip(values, sheet.samples, sheet.lines, strict=True):
        if value in MISSING:
            raise UserError(
                f"{sheet.path} line {line}: column {name!r} of sample {sample!r} is missing: expected a value"
            )
    return values


def as_number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


# ---- small text tables, shared with the pedigree


def read_lines(path: str | os.PathLike[str], what: str) -> Iterator[tuple[int, str]]:
    """Line numbers (from 1) and lines of a text file, without blank lines and `#` comments.

    Raises UserError naming `what` and file where it does not exist or is not text.
    """
    try:
        with open(path, encoding="utf-8-sig") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip() and not line.lstrip().startswith("#"):
                    yield number, line.rstrip("\r\n")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{os.fspath(path)}: the {what} does not exist") from None
    except UnicodeDecodeError:
        raise UserError(f"{os.fspath(path)}: the {what} is not UTF-8 text") from None
    except OSError as error:
        raise UserError(f"{os.fspath(path)}: cannot read the {what}: {error.strerror}") from None


def read_table(
    path: str | os.PathLike[str],
    what: str,
    *,
    required: Sequence[str],
    optional: Sequence[str] = (),
    known: Sequence[str] | None = None,
    separator: str = "\t",
) -> Table:
    """Read a text table with a header line.

    required: columns that must be there; optional: others that have a meaning; known: if given, no other column may be.
    All of these are found whatever the case of their letters. separator: a regular expression.
    Raises UserError naming file and line for an empty table, a repeated, missing or unknown column, and a row whose
    number of columns is not the header's.
    """
    path = os.fspath(path)
    lines = list(read_lines(path, what))
    if not lines:
        raise UserError(f"{path}: the {what} is empty: expected a header line with {', '.join(required)}")
    number, text = lines[0]
    header = _named(_cells(text, separator), (*required, *optional, *(known or ())))
    check_unique(f"{path}", "column", header, (number,) * len(header))
    for name in required:
        if name not in header:
            close = difflib.get_close_matches(name, [other for other in header if other not in required], n=1)
            hint = f"; is it {close[0]!r}?" if close else ""
            hint = hint if len(header) > 1 or separator != "\t" else "; columns are separated by tabs"
            raise UserError(f"{path} line {number}: no column {name!r} among {', '.join(map(repr, header))}{hint}")
    for name in header:
        if known is not None and name not in known:
            raise UserError(f"{path} line {number}: unknown column {name!r}; {suggestion(name, known)}")
    rows = [(line, _cells(text, separator)) for line, text in lines[1:]]
    for line, cells in rows:
        if len(cells) != len(header):
            raise UserError(f"{path} line {line}: {len(cells)} columns, expected {len(header)} as in the header")
    if not rows:
        raise UserError(f"{path}: the {what} has a header and no rows: expected at least one")
    return Table(path, header, tuple(cells for _, cells in rows), tuple(line for line, _ in rows))


def read_node_list(path: str | os.PathLike[str]) -> NodeList:
    """Read an AlphaBeta node list: columns filename, node, gen, meth; commas or tabs; further columns are ignored."""
    table = read_table(expand_home(path), "node list", required=NODE_COLUMNS, separator=r"[,\t]")
    nodes = table.column("node")
    check_unique(table.path, "node", nodes, table.lines)
    generations = []
    measured = []
    for gen, meth, line in zip(table.column("gen"), table.column("meth"), table.lines, strict=True):
        if gen not in MISSING and not re.fullmatch(r"[0-9]{1,9}", gen):
            raise UserError(f"{table.path} line {line}: gen is {gen!r}: expected a whole number >= 0")
        if meth.upper() not in ("Y", "N"):
            raise UserError(f"{table.path} line {line}: meth is {meth!r}: expected Y or N")
        generations.append(None if gen in MISSING else int(gen))
        measured.append(meth.upper() == "Y")
    return NodeList(table.path, table.column("filename"), nodes, tuple(generations), tuple(measured), table.lines)


def check_unique(path: str, what: str, names: Sequence[str], lines: Sequence[int]) -> None:
    """No name stands twice; raises UserError naming both lines, for each that does."""
    first: dict[str, int] = {}
    mistakes = Mistakes()
    for name, line in zip(names, lines, strict=True):
        if name in first:
            mistakes.add(f"{path} line {line}: {what} {name!r} is given twice, first on line {first[name]}")
        first.setdefault(name, line)
    mistakes.require_none()


def _cells(line: str, separator: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in re.split(separator, line))


def _named(header: tuple[str, ...], names: Sequence[str]) -> tuple[str, ...]:
    """The header with those names in place of names that differ from them by the case of letters alone."""
    missing = {name.lower(): name for name in names if name not in header}
    return tuple(missing.get(cell.lower(), cell) for cell in header)


def _resolved(value: str, sheet: str) -> str:
    """A relative path from the current directory if it is there, else from the sheet's folder, else as given."""
    value = expand_home(value)
    beside = Path(sheet).parent / value
    return os.fspath(beside) if not Path(value).exists() and beside.exists() else value


def _haplotypes(table: Table) -> tuple[str, ...]:
    """Which reads to count, [S]; an empty cell is all."""
    expected = load_schema("samples")["properties"]["haplotype"]
    values = tuple("all" if value in MISSING else value for value in table.column("haplotype"))
    mistakes = Mistakes()
    for value, line in zip(values, table.lines, strict=True):
        if not re.fullmatch(expected["pattern"], value):
            mistakes.add(f"{table.path} line {line}: haplotype is {value!r}: expected {expected['expected']}")
    mistakes.require_none()
    return values


def _origins(table: Table) -> dict[str, Origin]:
    """Parent of origin of the samples that say it; a haplotype by number is one, unphased reads are of both."""
    expected = load_schema("samples")["properties"]["parent_of_origin"]
    columns = (table.column(name) for name in ("sample", "parent_of_origin", "haplotype"))
    origins: dict[str, Origin] = {}
    mistakes = Mistakes()
    for sample, value, haplotype, line in zip(*columns, table.lines, strict=True):
        if value in MISSING or value == "auto":
            continue
        place = f"{table.path} line {line}: parent_of_origin is {value!r}"
        if value not in expected["enum"]:
            mistakes.add(f"{place}: expected {expected['expected']}")
        elif haplotype == UNPHASED and value != "both":
            mistakes.add(f"{place} of unphased reads: expected both, or an empty cell")
        elif haplotype not in (*MISSING, ALL_READS, UNPHASED) and value == "both":
            mistakes.add(f"{place} of haplotype {haplotype}: expected maternal, paternal or unknown")
        origins[sample] = cast(Origin, value)
    mistakes.require_none()
    return origins


def _phasings(table: Table) -> dict[str, str]:
    cells = zip(table.column("sample"), table.column("phasing"), strict=True)
    return {sample: value for sample, value in cells if value not in (*MISSING, OF_FILE)}


def _probabilities(table: Table, name: str) -> np.ndarray:
    """Error probabilities, float64 [S]; an empty cell is 0."""
    result = np.zeros(len(table.rows))
    mistakes = Mistakes()
    expected = load_schema("samples")["properties"][name]["expected"]
    for index, value in enumerate(table.column(name)):
        number = 0.0 if value in MISSING else as_number(value)
        if number is None or not 0 <= number < 0.5:
            mistakes.add(f"{table.path} line {table.lines[index]}: {name} is {value!r}: expected {expected}")
            continue
        result[index] = number
    mistakes.require_none()
    return result


_PROBABILITIES = (partial(_probabilities, name="false_methylated"), partial(_probabilities, name="false_unmethylated"))


def _open(table: Table, name: str) -> frozenset[str]:
    """Samples without a value in a column."""
    cells = zip(table.column("sample"), table.column(name), strict=True)
    return frozenset(sample for sample, value in cells if value in MISSING)


def in_order_of(store: LociStore, sheet: SampleSheet) -> SampleSheet:
    """The sheet's rows in the order of the store's samples."""
    position = {name: row for row, name in enumerate(sheet.samples)}
    missing = [name for name in store.samples if name not in position]
    extra = set(sheet.samples) - set(store.samples)
    if missing or extra:
        name, where = (missing[0], "only in the loci") if missing else (min(extra), "only in the sheet")
        raise UserError(
            f"{sheet.path}: its samples are not those of {store.directory}: {name!r} is {where}; expected the sheet "
            "that the loci were made from"
        )
    rows = [position[name] for name in store.samples]

    def pick(values: tuple) -> tuple:
        return tuple(values[row] for row in rows)

    return replace(
        sheet,
        samples=pick(sheet.samples),
        individuals=pick(sheet.individuals),
        paths=pick(sheet.paths),
        formats=pick(sheet.formats),
        haplotypes=pick(sheet.haplotypes),
        false_methylated=sheet.false_methylated[rows],
        false_unmethylated=sheet.false_unmethylated[rows],
        columns={name: pick(values) for name, values in sheet.columns.items()},
        lines=pick(sheet.lines),
    )
