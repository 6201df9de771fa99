"""The only opener of our Parquet and Arrow files: tables with provenance, counts by contig, memory-mapped loci.

Loci lie in a folder: panels of samples, each with its samples' counts at every locus that one of them has reads at; an
index with the loci of the cohort and the row of each in every panel; and a manifest, without which nothing opens. A
large contig has a file in each of them, small ones share files.

Every file carries the format version, the epivi version, the kind of table, the seed and the hashes of configuration
and pedigree. A newer format, another kind of table, or a damaged file is one clear `UserError`.
"""

from __future__ import annotations

import bisect
import json
import os
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from epivi import __version__
from epivi.errors import UserError
from epivi.files import atomic_path, write_json
from epivi.schema import CONTEXTS, FORMAT_VERSION, STRANDS, Column, arrow_schema, index_columns, panel_columns

PathLike = str | os.PathLike[str]

ROW_GROUP_ROWS = 100_000
# Small pages let a reader of many samples hold one page of each, not one row group of each.
DATA_PAGE_BYTES = 1 << 16
# Values in one record batch of a contig: of each locus one a sample (or panel) and one a narrow column. 16 MiB or less,
# methylated and total reads together.
BATCH_VALUES = 1 << 22
MANIFEST = "loci.json"
N_NARROW = 4  # columns before the wide ones: position, end, strand, context
PANELS = "panels"
INDEX = "index"
# Beside the loci: which sample has which contigs, and samples whose positions are not those of the others.
CONTIGS, POSITIONS = "contigs.parquet", "positions.parquet"
# Beside its files a panel has a record, a JSON object with the key FILES.
RECORD = "panel.json"
# Key of the list of LociFile in the record of a panel and in the manifest.
FILES = "files"
# Contigs of fewer loci share files of at most twice as many.
LARGE_CONTIG_LOCI = 1 << 15
# Files that a process keeps open; a map more costs a microsecond, a file handle more may be one too many.
MOST_OPEN_FILES = 256
MOST_NAMES = 10  # of contigs in a message
# Key of the JSON of QcRecord.sums in the metadata of a counts file, and of those of all samples in the manifest.
SUMS_METADATA = "epivi.sums"
CONTIG_SUMS_METADATA = "epivi.contig_sums"
# The same of QcRecord.warnings.
WARNINGS_METADATA = "epivi.warnings"
COUNT_COLUMNS = ["pos", "strand", "context", "meth", "total"]


# ---------------------------------------------------------------------------------------------------------- provenance


@dataclass(frozen=True)
class Provenance:
    """What made a file. `table` is the kind of table, as in schema: "counts", "posterior", "loci", ..."""

    table: str
    seed: int
    config_hash: str
    pedigree_hash: str
    format_version: int = FORMAT_VERSION
    version: str = __version__

    def metadata(self) -> dict[str, str]:
        """Schema metadata of a file: epivi.format_version, epivi.version, epivi.table, epivi.seed and the hashes."""
        return {f"epivi.{key}": str(value) for key, value in asdict(self).items()}


def _parse_provenance(path: Path, metadata: Mapping[bytes, bytes] | None) -> Provenance:
    values = {key.decode(): value.decode() for key, value in (metadata or {}).items() if key.startswith(b"epivi.")}
    if "epivi.format_version" not in values or "epivi.table" not in values:
        raise UserError(f"{path}: not a file written by epivi (its metadata name no epivi.table)")
    version = values["epivi.format_version"]
    _check_version(path, version, values.get("epivi.version", "unknown"))
    return Provenance(
        table=values["epivi.table"],
        seed=int(values.get("epivi.seed", 0)),
        config_hash=values.get("epivi.config_hash", ""),
        pedigree_hash=values.get("epivi.pedigree_hash", ""),
        format_version=_major(version),
        version=values.get("epivi.version", "unknown"),
    )


def _major(version: str) -> int:
    number = version.split(".")[0]
    return int(number) if number.isdecimal() else FORMAT_VERSION + 1


def _check_version(path: Path, version: str, written_by: str) -> None:
    if _major(version) > FORMAT_VERSION:
        raise UserError(
            f"{path}: format version {version} (written by epivi {written_by}) is newer than this epivi "
            f"{__version__} reads ({FORMAT_VERSION}); update epivi"
        )


def _check_table(path: Path, provenance: Provenance, table_name: str) -> None:
    if provenance.table != table_name:
        raise UserError(f"{path}: holds the table {provenance.table!r}; expected {table_name!r}")


@contextmanager
def _damage_is_user_error(path: Path, kind: str) -> Iterator[None]:
    """Turn a missing or damaged file into one line; everything else passes."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not a readable {kind} file, truncated or damaged? ({reason})") from None


# -------------------------------------------------------------------------------------------------------------- tables


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` with the columns of `schema` in its order and types.

    Raises ValueError on a missing, extra or null column and on values that do not fit the type.
    """
    missing = [name for name in schema.names if name not in table.column_names]
    extra = [name for name in table.column_names if name not in schema.names]
    if missing or extra or len(set(table.column_names)) < table.num_columns:
        raise ValueError(f"columns do not match the table's specification: missing {missing}, extra {extra}")
    table = table.select(schema.names)
    for name, column in zip(schema.names, table.columns, strict=True):
        if column.null_count:
            raise ValueError(f"column {name} holds {column.null_count} nulls")
    return table.cast(schema)


class TableWriter:
    """Writes one Parquet file piece by piece; the file appears under its name only when the `with` block succeeds.

    Rows gather until `row_group_rows` of them fill a row group; `flush` ends the current row group early. `metadata` is
    added to the schema's, for example {"epivi.sample": name}.
    """

    def __init__(
        self,
        path: PathLike,
        columns: Sequence[Column],
        provenance: Provenance,
        *,
        row_group_rows: int = ROW_GROUP_ROWS,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._path = Path(path)
        self._schema = arrow_schema(columns, {**provenance.metadata(), **(metadata or {})})
        self._row_group_rows = row_group_rows
        self._pending: list[pa.Table] = []
        self._pending_rows = 0
        self._stack = ExitStack()
        self._writer: Any = None

    def __enter__(self) -> TableWriter:
        with ExitStack() as stack:  # which removes the temporary file where the writer cannot begin
            temporary = stack.enter_context(atomic_path(self._path))
            labels = [field.name for field in self._schema if pa.types.is_dictionary(field.type)]
            writer = pq.ParquetWriter(
                temporary, self._schema, compression="zstd", use_dictionary=labels, data_page_size=DATA_PAGE_BYTES
            )
            self._writer = stack.enter_context(writer)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        with self._stack as stack:
            if exception[0] is None:
                self.flush()
            else:
                # Hand the failure to atomic_path, which then removes the temporary file.
                stack.__exit__(*exception)

    def write(self, table: pa.Table | pa.RecordBatch) -> None:
        """Append rows. Raises ValueError if the columns are not those of the specification."""
        if isinstance(table, pa.RecordBatch):
            table = pa.Table.from_batches([table])
        table = conform(table, self._schema)
        while table.num_rows:
            piece = table.slice(0, self._row_group_rows - self._pending_rows)
            self._pending.append(piece)
            self._pending_rows += piece.num_rows
            table = table.slice(piece.num_rows)
            if self._pending_rows == self._row_group_rows:
                self.flush()

    def add_metadata(self, metadata: Mapping[str, str]) -> None:
        """Add to the file's key-value metadata what is known only when its rows are."""
        self._writer.add_key_value_metadata(metadata)

    def flush(self) -> None:
        """End the current row group, if it holds any row."""
        if self._pending_rows:
            group = pa.concat_tables(self._pending).unify_dictionaries().combine_chunks()
            self._writer.write_table(group, row_group_size=self._row_group_rows)
        self._pending, self._pending_rows = [], 0


def write_table(
    table: pa.Table,
    path: PathLike,
    columns: Sequence[Column],
    provenance: Provenance,
    *,
    row_group_rows: int = ROW_GROUP_ROWS,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write `table` as one Parquet file (zstd, statistics), atomically, cast to the types of `columns`.

    Raises ValueError on missing, extra or null columns.
    """
    with TableWriter(path, columns, provenance, row_group_rows=row_group_rows, metadata=metadata) as writer:
        writer.write(table)


def open_parquet(path: PathLike, table_name: str | None = None) -> tuple[Any, Provenance]:
    """An open pyarrow ParquetFile (memory-mapped) and its provenance. Raises UserError as described above."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder; expected one Parquet file")
    with _damage_is_user_error(path, "Parquet"):
        file = pq.ParquetFile(path, memory_map=True)
    provenance = _parse_provenance(path, file.schema_arrow.metadata)
    if table_name is not None:
        _check_table(path, provenance, table_name)
    return file, provenance


def read_table(path: PathLike, table_name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A whole Parquet file, or `columns` of it; tables in parts are read by epivi.parts.

    Raises UserError on a newer format, another kind of table, a damaged or missing file, unknown columns.
    """
    path = Path(path)
    file, _ = open_parquet(path, table_name)
    for name in columns or ():
        if name not in file.schema_arrow.names:
            raise UserError(f"{path}: no column {name!r}; expected one of {', '.join(file.schema_arrow.names)}")
    with _damage_is_user_error(path, "Parquet"):
        return file.read(columns=columns)


def read_provenance(path: PathLike) -> Provenance:
    """Provenance of a Parquet file or of a folder of loci."""
    path = Path(path)
    return LociStore.open(path).provenance if (path / MANIFEST).is_file() else open_parquet(path)[1]


def natural_key(name: str) -> tuple[tuple[str | tuple[int, str], ...], str]:
    """Sort key under which chr2 comes before chr10, and chr10 before chrX, however many digits a number has."""
    parts = re.split(r"([0-9]+)", name)
    return tuple(_number_key(part) if index % 2 else part for index, part in enumerate(parts)), name


def _number_key(digits: str) -> tuple[int, str]:
    """Sorts as the number does; Python refuses to read thousands of digits as one."""
    digits = digits.lstrip("0")
    return len(digits), digits


# -------------------------------------------------------------------------------------------------------------- counts


class CountRows(NamedTuple):
    """Counts of one sample at R positions of one contig, sorted by position; codes index schema.STRANDS, CONTEXTS."""

    pos0: np.ndarray  # int32 [R]
    strand_code: np.ndarray  # int8 [R]
    context_code: np.ndarray  # int8 [R]
    meth: np.ndarray  # int32 [R]
    total: np.ndarray  # int32 [R]


class ContigRows(NamedTuple):
    """Where a contig's rows lie in a counts file: its row groups, number of rows, first and last position.

    offset: rows of other contigs before them in the first of the row groups; -1 where no other contig shares them.
    """

    row_groups: tuple[int, ...]
    n_rows: int
    first_pos0: int
    last_pos0: int
    offset: int = -1


@dataclass(frozen=True)
class CountsFile:
    """One sample's counts, opened for reading contig by contig; least costly in the order of the file.

    sums: of the reads that quality control asks for, name -> fields of epivi.ingest.controls.ReadSums; of the loci
    those of the file's contigs, which contig_sums holds one by one; own_sums has the others.
    warnings: what was doubtful about the file it was read from. metadata: all that epivi wrote beside the rows.
    """

    path: Path
    sample: str
    provenance: Provenance
    contigs: Mapping[str, ContigRows]
    file: Any
    own_sums: Mapping[str, tuple[float, ...]]
    contig_sums: Mapping[str, Mapping[str, Sequence[float]]]
    warnings: tuple[str, ...]
    metadata: Mapping[str, str]
    # The row group that was read whole last, by number: the next small contig lies mostly in it too.
    _shared: dict[int, CountRows] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(cls, path: PathLike) -> CountsFile:
        """Open a counts file; the sample's name is in its metadata, else the file's stem.

        Raises UserError if the file is damaged, of another kind, or its rows are not sorted by contig and position.
        """
        path = Path(path)
        file, provenance = open_parquet(path, "counts")
        metadata = {**(file.schema_arrow.metadata or {}), **(file.metadata.metadata or {})}
        sample = metadata.get(b"epivi.sample", path.stem.encode()).decode()
        sums = {name: tuple(values) for name, values in json.loads(metadata.get(SUMS_METADATA.encode(), b"{}")).items()}
        by_contig = json.loads(metadata.get(CONTIG_SUMS_METADATA.encode(), b"{}"))
        warnings = tuple(json.loads(metadata.get(WARNINGS_METADATA.encode(), b"[]")))
        own = {key.decode(): value.decode() for key, value in metadata.items() if key.startswith(b"epivi.")}
        return cls(path, sample, provenance, _index_contigs(path, file), file, sums, by_contig, warnings, own)

    @property
    def sums(self) -> dict[str, tuple[float, ...]]:
        """Of the reads that quality control asks for, as said above."""
        parts: dict[str, list[Sequence[float]]] = {name: [values] for name, values in self.own_sums.items()}
        for name, by_contig in self.contig_sums.items():
            parts[name] = [*parts.get(name, []), *by_contig.values()]
        return {name: tuple(map(sum, zip(*values, strict=True))) for name, values in parts.items() if values}

    def of_contigs(self, keeps: Callable[[str], bool]) -> CountsFile:
        """The same file, of some contigs alone."""
        contigs = {contig: rows for contig, rows in self.contigs.items() if keeps(contig)}
        sums = {
            name: {contig: values for contig, values in by_contig.items() if keeps(contig)}
            for name, by_contig in self.contig_sums.items()
        }
        return replace(self, contigs=contigs, contig_sums=sums)

    def rows(self, contig: str, batch_rows: int = 1 << 14) -> Iterator[CountRows]:
        """Rows of `contig` in order of position, up to `batch_rows` at a time; nothing if the sample lacks it."""
        where = self.contigs.get(contig)
        if where is None:
            return
        if where.offset >= 0:
            (group,) = where.row_groups
            yield from _batches(self._whole_group(group), where.offset, where.offset + where.n_rows, batch_rows)
            return
        last = -1
        with _damage_is_user_error(self.path, "Parquet"):
            for batch in self.file.iter_batches(
                batch_rows, row_groups=list(where.row_groups), columns=COUNT_COLUMNS, use_threads=False
            ):
                rows = self._count_rows(batch)
                if rows.pos0.size and (rows.pos0[0] < last or np.any(np.diff(rows.pos0) < 0)):
                    raise _unsorted(self.path, contig)
                last = int(rows.pos0[-1]) if rows.pos0.size else last
                yield rows

    def rows_of(self, contigs: Sequence[str]) -> tuple[CountRows, np.ndarray]:
        """Rows of several contigs, one contig after the other, and for each the number of its contig [R].

        Every row group is read once, wherever it has the contigs.
        """
        pieces = np.array(list(self._pieces(contigs)), np.int64).reshape(-1, 4)
        group, first, size, number = pieces.T
        start = np.cumsum(size) - size
        rows = CountRows(*(np.empty(size.sum(), dtype) for dtype in (np.int32, np.int8, np.int8, np.int32, np.int32)))
        for each in np.unique(group).tolist():
            own = group == each
            source, target = _ranges(first[own], size[own]), _ranges(start[own], size[own])
            for array, values in zip(rows, self._whole_group(each), strict=True):
                array[target] = values[source]
        of_contig = np.repeat(number, size)
        falls = np.flatnonzero((np.diff(rows.pos0) < 0) & (np.diff(of_contig) == 0))
        if falls.size:
            raise _unsorted(self.path, contigs[int(of_contig[falls[0]])])
        return rows, of_contig

    def _pieces(self, contigs: Sequence[str]) -> Iterator[tuple[int, int, int, int]]:
        """Row group, first row in it, number of rows, number of the contig."""
        for number, contig in enumerate(contigs):
            where = self.contigs.get(contig)
            if where is None:
                continue
            if where.offset >= 0:
                yield where.row_groups[0], where.offset, where.n_rows, number
                continue
            for group in where.row_groups:
                yield group, 0, self.file.metadata.row_group(group).num_rows, number

    def _whole_group(self, group: int) -> CountRows:
        if group not in self._shared:
            with _damage_is_user_error(self.path, "Parquet"):
                table = self.file.read_row_group(group, columns=COUNT_COLUMNS, use_threads=False)
            (batch,) = table.unify_dictionaries().combine_chunks().to_batches()
            self._shared.clear()
            self._shared[group] = self._count_rows(batch)
        return self._shared[group]

    def _count_rows(self, batch: pa.RecordBatch) -> CountRows:
        return CountRows(
            batch.column("pos").to_numpy(),
            self._codes(batch.column("strand"), STRANDS),
            self._codes(batch.column("context"), CONTEXTS),
            batch.column("meth").to_numpy(),
            batch.column("total").to_numpy(),
        )

    def _codes(self, labels: pa.DictionaryArray, known: tuple[str, ...]) -> np.ndarray:
        values = labels.dictionary.to_pylist()
        unknown = [value for value in values if value not in known]
        if unknown:
            raise UserError(f"{self.path}: value {unknown[0]!r} found; expected one of {' '.join(known)}")
        table = np.array([known.index(value) for value in values], np.int8)
        return table[labels.indices.to_numpy()]


def _batches(rows: CountRows, start: int, stop: int, size: int) -> Iterator[CountRows]:
    for first in range(start, stop, size):
        yield CountRows(*(array[first : min(first + size, stop)] for array in rows))


def _ranges(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The numbers of ranges that begin at `starts`, one range after the other."""
    return np.repeat(starts - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())


def _unsorted(path: Path, contig: str) -> UserError:
    return UserError(f"{path}: positions of {contig} are not sorted; write it again: epivi ingest")


def _index_contigs(path: Path, file: Any) -> dict[str, ContigRows]:
    """Where each contig lies: from the statistics of its own row groups, from the rows of those that several share."""
    metadata = file.metadata
    names = [metadata.schema.column(index).name for index in range(metadata.num_columns)]
    contig_column, pos_column = names.index("contig"), names.index("pos")
    contigs: dict[str, ContigRows] = {}
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        contig, pos = group.column(contig_column).statistics, group.column(pos_column).statistics
        if contig.min != contig.max:
            _index_shared(path, file, index, contigs)
            continue
        before = contigs.get(contig.min, ContigRows((), 0, pos.min, pos.min))
        if pos.min < before.last_pos0:
            raise _unsorted(path, contig.min)
        if before.offset >= 0:
            raise _torn(path, contig.min)
        contigs[contig.min] = ContigRows(
            (*before.row_groups, index), before.n_rows + group.num_rows, before.first_pos0, pos.max
        )
    return contigs


def _index_shared(path: Path, file: Any, group: int, contigs: dict[str, ContigRows]) -> None:
    """Add the contigs of a row group that several share, each whole."""
    with _damage_is_user_error(path, "Parquet"):
        table = file.read_row_group(group, columns=["contig", "pos"], use_threads=False)
    labels, pos0 = table.column("contig").unify_dictionaries().combine_chunks(), table.column("pos").to_numpy()
    codes = labels.indices.to_numpy()
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    ends = np.append(starts[1:], codes.size)
    names = labels.dictionary.take(pa.array(codes[starts])).to_pylist()
    falls = np.flatnonzero(np.diff(pos0) < 0) + 1
    falls_within = falls[~np.isin(falls, starts)]
    if falls_within.size:
        raise _unsorted(path, names[int(np.searchsorted(starts, falls_within[0], "right")) - 1])
    columns = (starts, ends - starts, pos0[starts], pos0[ends - 1])
    for name, start, n_rows, first, last in zip(names, *(column.tolist() for column in columns), strict=True):
        if name in contigs:
            raise _torn(path, name)
        # Samples name the same contigs: one string for all.
        contigs[sys.intern(name)] = ContigRows((group,), n_rows, first, last, start)


def _torn(path: Path, contig: str) -> UserError:
    return UserError(f"{path}: rows of {contig} do not stand together; write it again: epivi ingest")


# ---------------------------------------------------------------------------------------------------------------- loci


class LocusBlock(NamedTuple):
    """L consecutive loci of one contig for S samples; the arrays may be read-only views of the memory map.

    `start` is the number of the first locus within its contig. Missing is total == 0. Codes index schema.STRANDS and
    schema.CONTEXTS; `strand` and `context` give them as text.
    """

    contig: str
    start: int
    pos0: np.ndarray  # int32 [L], bp
    end0: np.ndarray  # int32 [L], bp, exclusive
    strand_code: np.ndarray  # int8 [L]
    context_code: np.ndarray  # int8 [L]
    meth: np.ndarray  # uint16 [L, S], reads
    total: np.ndarray  # uint16 [L, S], reads

    @property
    def strand(self) -> np.ndarray:
        """Strand of each locus as text [L]."""
        return np.array(STRANDS)[self.strand_code]

    @property
    def context(self) -> np.ndarray:
        """Context of each locus as text [L]."""
        return np.array(CONTEXTS)[self.context_code]


class LocusSpan(NamedTuple):
    """L consecutive loci in genome order for S samples, of any number of contigs.

    blocks: the same loci contig by contig; `start` is the number of the first among all loci.
    """

    blocks: tuple[LocusBlock, ...]
    start: int
    pos0: np.ndarray  # int32 [L], bp
    end0: np.ndarray  # int32 [L], bp, exclusive
    strand_code: np.ndarray  # int8 [L]
    context_code: np.ndarray  # int8 [L]
    meth: np.ndarray  # uint16 [L, S], reads
    total: np.ndarray  # uint16 [L, S], reads

    @property
    def contig(self) -> pa.DictionaryArray:
        """Name of the contig of each locus, [L]."""
        sizes = [block.pos0.size for block in self.blocks]
        codes = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        return pa.DictionaryArray.from_arrays(pa.array(codes), pa.array([block.contig for block in self.blocks]))

    @property
    def strand(self) -> np.ndarray:
        """Strand of each locus as text [L]."""
        return np.array(STRANDS)[self.strand_code]

    @property
    def context(self) -> np.ndarray:
        """Context of each locus as text [L]."""
        return np.array(CONTEXTS)[self.context_code]


def long_places(span: LocusSpan, rows: int) -> dict[str, Any]:
    """Columns `contig` and `pos` of a table with so many consecutive rows a locus, [L rows] each."""
    contig = span.contig
    indices = pa.array(np.repeat(contig.indices.to_numpy(), rows))
    return {
        "contig": pa.DictionaryArray.from_arrays(indices, contig.dictionary),
        "pos": np.repeat(span.pos0, rows),
    }


class LociFile(NamedTuple):
    """A file of a panel or of the index, and the contigs in it, one after the other."""

    file: str
    n_bytes: int
    contigs: tuple[str, ...]
    n_loci: tuple[int, ...]  # of each contig


class Place(NamedTuple):
    """Where a contig's loci lie: from row `first` of the file on."""

    file: str
    first: int
    n_loci: int


NOWHERE = Place("", 0, 0)


def as_record(files: Sequence[LociFile]) -> list[dict[str, Any]]:
    """Files as JSON has them: by column, since there may be 100,000 contigs, whose names stand here once."""
    return [file._asdict() for file in files]


def places_of(record: Sequence[Mapping[str, Any]]) -> dict[str, Place]:
    """The place of every contig with loci, by FILES of a record. Raises KeyError, TypeError or ValueError."""
    places: dict[str, Place] = {}
    for entry in record:
        first = 0
        for contig, n_loci in zip(entry["contigs"], entry["n_loci"], strict=True):
            places[contig] = Place(entry["file"], first, n_loci)
            first += n_loci
    return places


def whole_file(path: Path, n_loci: Mapping[str, int]) -> LociFile:
    """A file as it was written, with the loci of each contig in their order; removed where it holds none."""
    n_loci = {contig: n for contig, n in n_loci.items() if n}
    n_bytes = path.stat().st_size
    if not n_loci:
        path.unlink()
    return LociFile(path.name, n_bytes, tuple(n_loci), tuple(n_loci.values()))


def loci_groups(sizes: Mapping[str, int]) -> list[tuple[str, tuple[str, ...]]]:
    """File name and contigs of each file for contigs of so many loci, or at most so many: the largest file first.

    A large contig has a file of its own, small ones share files in natural order; which, follows from the sizes alone.
    """
    groups: list[tuple[str, tuple[str, ...]]] = []
    small: list[list[str]] = []
    room = 0
    for contig in sorted(sizes, key=natural_key):
        if sizes[contig] >= LARGE_CONTIG_LOCI:
            groups.append((contig_file(contig), (contig,)))
            continue
        if not small or sizes[contig] > room:
            small.append([])
            room = 2 * LARGE_CONTIG_LOCI
        small[-1].append(contig)
        room -= sizes[contig]
    groups += [(group_file(number), tuple(contigs)) for number, contigs in enumerate(small)]
    return sorted(groups, key=lambda group: -sum(map(sizes.__getitem__, group[1])))


class PanelRows(NamedTuple):
    """L loci of a panel of S samples, of one contig or of several; codes are those of a LocusBlock."""

    pos0: np.ndarray  # int32 [L], bp
    end0: np.ndarray  # int32 [L], bp, exclusive
    strand_code: np.ndarray  # int8 [L]
    context_code: np.ndarray  # int8 [L]
    meth: np.ndarray  # uint16 [L, S], reads
    total: np.ndarray  # uint16 [L, S], reads


class IndexRows(NamedTuple):
    """L loci of a cohort, of one contig or of several, and where each of P panels holds their counts."""

    pos0: np.ndarray  # int32 [L], bp
    end0: np.ndarray  # int32 [L], bp, exclusive
    strand_code: np.ndarray  # int8 [L]
    context_code: np.ndarray  # int8 [L]
    row: np.ndarray  # int32 [L, P], row among the panel's of its contig; -1: none, its samples have no reads here


class LociWriter:
    """Writes a file of a panel or of the index (uncompressed Arrow IPC, batches of bounded size), atomically.

    `columns` is panel_columns or index_columns of the schema. A record batch may hold loci of several contigs.
    """

    def __init__(self, path: PathLike, columns: Sequence[Column], provenance: Provenance) -> None:
        self._path = Path(path)
        self._schema = arrow_schema(columns, provenance.metadata())
        self._batch_rows = max(1, BATCH_VALUES // (columns[-1].type.list_size + N_NARROW))
        self._pending: list[Sequence[np.ndarray]] = []
        self._pending_loci = 0
        self._stack = ExitStack()
        self._writer: Any = None
        self.n_loci = 0

    def __enter__(self) -> LociWriter:
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(self._path))
            self._writer = stack.enter_context(pa.ipc.new_file(str(temporary), self._schema))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        with self._stack as stack:
            if exception[0] is None:
                self._flush()
            else:
                stack.__exit__(*exception)

    def write(self, rows: PanelRows | IndexRows) -> None:
        """Append loci; those of a contig must follow one another."""
        n_rows, start = rows.pos0.size, 0
        while start < n_rows:
            stop = min(start + self._batch_rows - self._pending_loci, n_rows)
            self._pending.append([array[start:stop] for array in rows])
            self._pending_loci += stop - start
            self.n_loci += stop - start
            start = stop
            if self._pending_loci == self._batch_rows:
                self._flush()

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_batch(_record_batch(_join(self._pending), self._schema))
        self._pending, self._pending_loci = [], 0


def _join(pieces: Sequence[Sequence[np.ndarray]]) -> Sequence[np.ndarray]:
    """Pieces of the same columns, one after the other."""
    return pieces[0] if len(pieces) == 1 else [np.concatenate(parts) for parts in zip(*pieces, strict=True)]


def _record_batch(columns: Sequence[np.ndarray], schema: pa.Schema) -> pa.RecordBatch:
    pos0, end0, strand_code, context_code, *wide = columns
    arrays = [
        pa.array(pos0, pa.int32()),
        pa.array(end0, pa.int32()),
        pa.DictionaryArray.from_arrays(pa.array(strand_code, pa.int8()), pa.array(STRANDS)),
        pa.DictionaryArray.from_arrays(pa.array(context_code, pa.int8()), pa.array(CONTEXTS)),
    ]
    for values, field_of in zip(wide, list(schema)[4:], strict=True):
        flat = pa.array(values.ravel(), field_of.type.value_type)
        arrays.append(pa.FixedSizeListArray.from_arrays(flat, type=field_of.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


class ArrowFile:
    """A file of a panel or of the index, memory-mapped.

    table: "panel", with `width` samples, or "loci", the index, with so many panels. starts: the first row of each
    record batch, then the number of rows. Opening raises UserError if the file is missing or damaged, or its columns
    are others.
    """

    def __init__(self, path: Path, table: str, width: int) -> None:
        with _damage_is_user_error(path, "Arrow"):
            reader = pa.ipc.open_file(pa.memory_map(str(path)), options=pa.ipc.IpcReadOptions(use_threads=False))
            batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        _check_table(path, _parse_provenance(path, reader.schema.metadata), table)
        columns = panel_columns(width) if table == "panel" else index_columns(width)
        if not reader.schema.equals(arrow_schema(columns)):
            raise UserError(
                f"{path}: its columns are not those of {width} {'samples' if table == 'panel' else 'panels'}"
            )
        self.path = path
        self.starts: list[int] = [0, *np.cumsum([batch.num_rows for batch in batches]).tolist()]
        self.n_rows: int = self.starts[-1]
        self._batches = [_views(batch) for batch in batches]

    def rows(self, start: int, stop: int) -> list[np.ndarray]:
        """All columns at the rows `start` to `stop`, which must exist: views, copied only across record batches."""
        number = min(bisect.bisect_right(self.starts, start) - 1, len(self._batches) - 1)
        offset, end = self.starts[number : number + 2]
        if stop <= end:
            return [array[start - offset : stop - offset] for array in self._batches[number]]
        pieces = []
        for offset, batch in zip(self.starts[number:], self._batches[number:], strict=False):
            if offset >= stop:
                break
            pieces.append([array[max(start - offset, 0) : stop - offset] for array in batch])
        return [np.concatenate(parts) for parts in zip(*pieces, strict=True)]

    def wide(self, rows: np.ndarray) -> list[np.ndarray]:
        """The wide columns (counts) at `rows` [K], each [K, width]; zeros where a row is below 0.

        The other rows ascend. Views of the memory map where all are there and lie together, in one record batch.
        """
        found = np.flatnonzero(rows >= 0)
        if 0 < found.size == rows.size:
            return self._take(rows)
        columns = [np.zeros((rows.size, array.shape[1]), array.dtype) for array in self._batches[0][4:]]
        if found.size:
            for column, values in zip(columns, self._take(rows[found]), strict=True):
                column[found] = values
        return columns

    def _take(self, rows: np.ndarray) -> list[np.ndarray]:
        """The wide columns at `rows` [K > 0], which ascend."""
        first, last = int(rows[0]), int(rows[-1])
        number = bisect.bisect_right(self.starts, first) - 1
        offset, stop = self.starts[number : number + 2]
        if last >= stop:
            cut = int(np.searchsorted(rows, stop))
            halves = (self._take(rows[:cut]), self._take(rows[cut:]))
            return [np.concatenate(parts) for parts in zip(*halves, strict=True)]
        columns = self._batches[number][4:]
        if last - first == rows.size - 1:
            return [column[first - offset : last - offset + 1] for column in columns]
        return [column.take(rows - offset, axis=0) for column in columns]


def _views(batch: pa.RecordBatch) -> list[np.ndarray]:
    pos, end, strand, context, *wide = batch.columns
    flat = (pos, end, strand.indices, context.indices, *(column.values for column in wide))
    arrays = [array.to_numpy(zero_copy_only=True) for array in flat]
    arrays[4:] = [array.reshape(batch.num_rows, wide[0].type.list_size) for array in arrays[4:]]
    return arrays


class FileLoci(NamedTuple):
    """Loci within a file of a panel or of the index; rows are counted from the first of them."""

    file: ArrowFile
    first: int

    def rows(self, start: int, stop: int) -> list[np.ndarray]:
        """As ArrowFile.rows."""
        return self.file.rows(self.first + start, self.first + stop)

    def wide(self, rows: np.ndarray) -> list[np.ndarray]:
        """As ArrowFile.wide."""
        return self.file.wide(np.where(rows < 0, rows, rows + self.first) if self.first else rows)


class OpenFiles:
    """The files that were used last, memory-mapped, of whatever number of them."""

    def __init__(self) -> None:
        # By folder and name: to make and hash a path for every contig costs more than to find the file.
        self._open: OrderedDict[tuple[Path, str], ArrowFile] = OrderedDict()

    def loci(self, folder: Path, place: Place, contig: str, table: str, width: int) -> FileLoci:
        """Loci at their place in a folder, those of `contig` the last of them.

        Raises UserError as ArrowFile does, and if the file is too short.
        """
        key = (folder, place.file)
        file = self._open.get(key)
        if file is None:
            file = self._open[key] = ArrowFile(folder / place.file, table, width)
            if len(self._open) > MOST_OPEN_FILES:
                self._open.popitem(last=False)
        self._open.move_to_end(key)
        if file.n_rows < place.first + place.n_loci:
            raise UserError(
                f"{file.path}: holds {file.n_rows} loci; {contig} is said to end at {place.first + place.n_loci}"
            )
        return FileLoci(file, place.first)


def contig_file(contig: str) -> str:
    """File name of a large contig in a panel or the index: the percent-encoded name with the suffix .arrow."""
    return f"{quote(contig, safe='')}.arrow"


def group_file(number: int) -> str:
    """File name of several small contigs; the plus is in no percent-encoded name."""
    return f"+{number:04d}.arrow"


class PanelColumns(NamedTuple):
    """A panel in the manifest: its folder, and of each of its samples the place in the cohort, -1 if not in it."""

    name: str
    places: tuple[int, ...]


def write_loci_manifest(
    directory: PathLike,
    samples: Sequence[str],
    panels: Sequence[PanelColumns],
    files: Sequence[LociFile],
    unit: Any,
    provenance: Provenance,
    details: Mapping[str, Any],
) -> None:
    """Write loci.json, which makes a folder of panels and index a `LociStore`; `details` is kept for people to read.

    files: those of the index.
    """
    manifest = {
        **asdict(provenance),
        "unit": unit,
        "n_loci": sum(sum(file.n_loci) for file in files),
        **details,
        "samples": list(samples),
        "panels": [panel._asdict() for panel in panels],
        FILES: as_record(files),
    }
    write_json(Path(directory) / MANIFEST, manifest)


class _Columns(NamedTuple):
    """What the cohort uses of a panel, both slices where they are consecutive."""

    used: slice | np.ndarray  # columns of the panel
    places: slice | np.ndarray  # their places in the cohort

    @classmethod
    def of(cls, panel: PanelColumns) -> _Columns:
        places = np.array(panel.places)
        used = np.flatnonzero(places >= 0)
        return cls(_as_slice(used), _as_slice(places[used]))


def _as_slice(numbers: np.ndarray) -> slice | np.ndarray:
    if numbers.size and np.all(np.diff(numbers) == 1):
        return slice(int(numbers[0]), int(numbers[-1]) + 1)
    return numbers


class _Run(NamedTuple):
    """Loci of consecutive contigs that lie together."""

    contigs: list[str]
    files: list[str | None]  # of the index, then of each panel; None where it has no locus of these contigs
    sizes: list[int]  # loci of each contig
    first: int  # row of the index's file


class LociStore:
    """The cohort's loci, memory-mapped: reading a block costs its pages, not its contig.

    Files open on first use, and those used last stay open; a copy sent to another process opens its own.
    """

    def __init__(self, directory: Path, manifest: Mapping[str, Any]) -> None:
        self.directory = directory
        self.samples: tuple[str, ...] = tuple(manifest["samples"])
        self.unit: Any = manifest["unit"]
        # Of each sample what CountsFile.sums holds.
        self.sums: dict[str, dict[str, tuple[float, ...]]] = {
            sample: {name: tuple(values) for name, values in sums.items()}
            for sample, sums in manifest.get("sums", {}).items()
        }
        # Of each sample what CountsFile.warnings holds.
        self.warnings: dict[str, tuple[str, ...]] = {
            sample: tuple(texts) for sample, texts in manifest.get("warnings", {}).items()
        }
        self.provenance = Provenance(
            *(manifest[key] for key in ("table", "seed", "config_hash", "pedigree_hash", "format_version", "version"))
        )
        self.panels = tuple(PanelColumns(entry["name"], tuple(entry["places"])) for entry in manifest["panels"])
        self._columns = [_Columns.of(panel) for panel in self.panels]
        self._is_one_panel = [panel.places for panel in self.panels] == [tuple(range(len(self.samples)))]
        places = places_of(manifest[FILES])
        self.contigs: tuple[str, ...] = tuple(sorted(places, key=natural_key))
        self._places = {contig: places[contig] for contig in self.contigs}
        self._ends = np.cumsum([place.n_loci for place in self._places.values()], dtype=np.int64)
        self.n_loci: int = int(self._ends[-1]) if self._ends.size else 0
        self._panel_places: list[dict[str, Place]] | None = None
        self._index_folder = directory / INDEX
        self._panel_folders = [directory / PANELS / panel.name for panel in self.panels]
        self._files = OpenFiles()

    @classmethod
    def open(cls, directory: PathLike) -> LociStore:
        """Open the folder that `epivi assemble` wrote; UserError if it is none, damaged, or of a newer format."""
        directory = Path(directory)
        path = directory / MANIFEST
        try:
            manifest = json.loads(path.read_text())
            _check_version(path, str(manifest["format_version"]), str(manifest.get("version")))
            _check_panels(path, manifest)
            store = cls(directory, manifest)
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{path}: no such file; expected a folder written by epivi assemble") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a manifest written by epivi assemble ({error!r})") from None
        _check_table(path, store.provenance, "loci")
        return store

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OpenFiles(), "_panel_places": None}

    def n_loci_of(self, contig: str) -> int:
        """Number of loci of one contig. Raises UserError if the contig is unknown."""
        return self._place(contig).n_loci

    def block(self, contig: str, start: int, stop: int) -> LocusBlock:
        """Loci `start` to `stop` of a contig, gathered from the panels.

        Views of the memory map where all lie together in one panel. Raises UserError if the contig is unknown or a file
        damaged, IndexError if the range is not within it.
        """
        return LocusBlock(contig, start, *self.rows_of([(contig, start, stop)]))

    def span(self, start: int, stop: int) -> LocusSpan:
        """Loci `start` to `stop` of all in genome order. Raises IndexError if the range is empty or not within them."""
        if not 0 <= start < stop <= self.n_loci:
            raise IndexError(f"loci {start} to {stop} asked for; there are {self.n_loci}")
        first, last = self._contig_numbers(start, stop)
        ends = self._ends[first:last]
        starts = ends - [self._places[contig].n_loci for contig in self.contigs[first:last]]
        lows, highs = (np.maximum(starts, start) - starts).tolist(), (np.minimum(ends, stop) - starts).tolist()
        ranges = list(zip(self.contigs[first:last], lows, highs, strict=True))
        rows = self.rows_of(ranges)
        blocks, done = [], 0
        for contig, low, high in ranges:
            size = high - low
            blocks.append(LocusBlock(contig, low, *[array[done : done + size] for array in rows]))
            done += size
        return LocusSpan(tuple(blocks), start, *rows)

    def rows_of(self, ranges: Sequence[tuple[str, int, int]]) -> PanelRows:
        """Loci `start` to `stop` of each of some contigs (contig, start, stop), one contig after the other.

        Ranges that follow one another in genome order are read together. Raises what `block` does.
        """
        return PanelRows(*_join([self._run_rows(run) for run in self._runs(ranges)]))

    def _runs(self, ranges: Sequence[tuple[str, int, int]]) -> Iterator[_Run]:
        """The ranges by runs that lie together: one after the other in the index, and in one file of every panel."""
        panels = self._places_in_panels()
        contigs: list[str] = []
        files: list[str | None] = []
        sizes: list[int] = []
        first = next_row = 0
        for contig, start, stop in ranges:
            place = self._place(contig)
            if not 0 <= start <= stop <= place.n_loci:
                raise IndexError(f"loci {start} to {stop} of {contig} asked for; it has {place.n_loci}")
            row = place.first + start
            own = [place.file, *[places[contig].file if contig in places else None for places in panels]]
            if (
                contigs
                and row == next_row
                and all(a is None or b is None or a == b for a, b in zip(own, files, strict=True))
            ):
                files = [a or b for a, b in zip(own, files, strict=True)]
            else:
                if contigs:
                    yield _Run(contigs, files, sizes, first)
                contigs, files, sizes, first = [], own, [], row
            contigs.append(contig)
            sizes.append(stop - start)
            next_row = row + stop - start
        yield _Run(contigs, files, sizes, first)

    def _run_rows(self, run: _Run) -> PanelRows:
        index_file, *panel_files = run.files
        last = self._place(run.contigs[-1])
        place = Place(index_file or "", run.first, last.first + last.n_loci - run.first)
        index = self._files.loci(self._index_folder, place, run.contigs[-1], "loci", len(self.panels))
        *columns, row = index.rows(0, sum(run.sizes))
        held = {number: file for number, file in enumerate(panel_files) if file}
        if self._is_one_panel and held:
            # Its columns are the cohort's, so that views can be handed out.
            panel, rows = self._in_panel(0, held[0], run, row[:, 0])
            return PanelRows(*columns, *panel.wide(rows))
        counts = np.zeros((2, len(row), len(self.samples)), np.uint16)
        for number, file in held.items():
            panel, rows = self._in_panel(number, file, run, row[:, number])
            used, places = self._columns[number]
            for array, values in zip(counts, panel.wide(rows), strict=True):
                array[:, places] = values[:, used]
        return PanelRows(*columns, *counts)

    def _in_panel(self, number: int, file: str, run: _Run, row: np.ndarray) -> tuple[FileLoci, np.ndarray]:
        """The file of a panel that holds a run, and the rows there of its loci, whose `row` counts from its contig."""
        places = self._places_in_panels()[number]
        held = [places.get(contig, NOWHERE) for contig in run.contigs]
        last = max(range(len(held)), key=lambda each: held[each].first + held[each].n_loci)
        end = held[last].first + held[last].n_loci
        whole = Place(file, 0, end)
        width = len(self.panels[number].places)
        panel = self._files.loci(self._panel_folders[number], whole, run.contigs[last], "panel", width)
        begin = np.repeat([place.first for place in held], run.sizes)
        return panel, np.where(row < 0, row, row + begin)

    def contigs_of(self, start: int, stop: int) -> tuple[str, ...]:
        """Contigs of the loci `start` to `stop` of all."""
        return self.contigs[slice(*self._contig_numbers(start, stop))]

    def _contig_numbers(self, start: int, stop: int) -> tuple[int, int]:
        first, last = np.searchsorted(self._ends, [start, stop - 1], "right").tolist()
        return first, last + 1

    def blocks(self, size: int) -> Iterator[LocusBlock]:
        """All loci in genome order, at most `size` at a time, near equal within a contig."""
        for number in range(len(index := self.global_blocks(size))):
            yield self.block(*index[number])

    def global_blocks(self, size: int) -> BlockIndex:
        """Genome-wide numbering of the blocks of at most `size` loci, for random minibatches."""
        counts = np.array([-(-self.n_loci_of(contig) // size) for contig in self.contigs], np.int64)
        return BlockIndex(self.contigs, tuple(map(self.n_loci_of, self.contigs)), np.cumsum(counts))

    def _place(self, contig: str) -> Place:
        if contig not in self._places:
            raise UserError(f"{self.directory}: no contig {contig!r}; expected one of {_listed(self.contigs)}")
        return self._places[contig]

    def _places_in_panels(self) -> list[dict[str, Place]]:
        """The place of each contig in every panel that has loci of it."""
        if self._panel_places is None:
            self._panel_places = [_read_places(folder) for folder in self._panel_folders]
        return self._panel_places


def _read_places(folder: Path) -> dict[str, Place]:
    """The contigs of a panel. Raises UserError if its record is missing or damaged."""
    path = folder / RECORD
    try:
        return places_of(json.loads(path.read_text())[FILES])
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file; write the loci again: epivi assemble") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a record of a panel ({error!r}); write the loci again: epivi assemble") from None


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MOST_NAMES])
    return f"{shown} and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else shown


def _check_panels(path: Path, manifest: Mapping[str, Any]) -> None:
    if "contigs" in manifest and FILES not in manifest:
        raise UserError(
            f"{path}: written by an earlier epivi ({manifest.get('version')}), which kept every contig in a file of its"
            " own; write the loci again: epivi assemble"
        )


def even_ranges(n: int, size: int) -> list[tuple[int, int]]:
    """[0, n) in the fewest ranges of at most `size`, whose lengths differ by at most one."""
    pieces = -(-n // size)
    return [(n * piece // pieces, n * (piece + 1) // pieces) for piece in range(pieces)]


@dataclass(frozen=True)
class BlockIndex:
    """Maps a genome-wide block number to (contig, start, stop); `len` is the number of blocks.

    Blocks of one contig differ by at most one locus in length.
    """

    contigs: tuple[str, ...]
    n_loci: tuple[int, ...]  # loci of each contig
    last_block: np.ndarray  # int64 [contigs], blocks up to and with each contig

    def __len__(self) -> int:
        return int(self.last_block[-1]) if self.last_block.size else 0

    def __getitem__(self, number: int) -> tuple[str, int, int]:
        if not 0 <= number < len(self):
            raise IndexError(f"block {number} asked for; there are {len(self)}")
        contig = int(np.searchsorted(self.last_block, number, side="right"))
        first = int(self.last_block[contig - 1]) if contig else 0
        pieces, piece, n = int(self.last_block[contig]) - first, number - first, self.n_loci[contig]
        return self.contigs[contig], n * piece // pieces, n * (piece + 1) // pieces
