"""Parquet files with provenance: written whole, read with their kind and version checked."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from epivi import __version__
from epivi.base.errors import UserError
from epivi.base.files import atomic_path
from epivi.tables.columns import FORMAT_VERSION, Column, arrow_schema

PathLike = str | os.PathLike[str]

ROW_GROUP_ROWS = 100_000
# Small pages let a reader of many samples hold one page of each, not one row group of each.
DATA_PAGE_BYTES = 1 << 16


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


def parse_provenance(path: Path, metadata: Mapping[bytes, bytes] | None) -> Provenance:
    values = {key.decode(): value.decode() for key, value in (metadata or {}).items() if key.startswith(b"epivi.")}
    if "epivi.format_version" not in values or "epivi.table" not in values:
        raise UserError(f"{path}: not a file written by epivi (its metadata name no epivi.table)")
    version = values["epivi.format_version"]
    check_version(path, version, values.get("epivi.version", "unknown"))
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


def check_version(path: Path, version: str, written_by: str) -> None:
    if _major(version) > FORMAT_VERSION:
        raise UserError(
            f"{path}: format version {version} (written by epivi {written_by}) is newer than this epivi "
            f"{__version__} reads ({FORMAT_VERSION}); update epivi"
        )


def check_table(path: Path, provenance: Provenance, table_name: str) -> None:
    if provenance.table != table_name:
        raise UserError(f"{path}: holds the table {provenance.table!r}; expected {table_name!r}")


@contextmanager
def damage_is_user_error(path: Path, kind: str) -> Iterator[None]:
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
    with damage_is_user_error(path, "Parquet"):
        file = pq.ParquetFile(path, memory_map=True)
    provenance = parse_provenance(path, file.schema_arrow.metadata)
    if table_name is not None:
        check_table(path, provenance, table_name)
    return file, provenance


def read_table(path: PathLike, table_name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A whole Parquet file, or `columns` of it; tables in parts are read by epivi.tables.parts.

    Raises UserError on a newer format, another kind of table, a damaged or missing file, unknown columns.
    """
    path = Path(path)
    file, _ = open_parquet(path, table_name)
    for name in columns or ():
        if name not in file.schema_arrow.names:
            raise UserError(f"{path}: no column {name!r}; expected one of {', '.join(file.schema_arrow.names)}")
    with damage_is_user_error(path, "Parquet"):
        return file.read(columns=columns)


def natural_key(name: str) -> tuple[tuple[str | tuple[int, str], ...], str]:
    """Sort key under which chr2 comes before chr10, and chr10 before chrX, however many digits a number has."""
    parts = re.split(r"([0-9]+)", name)
    return tuple(_number_key(part) if index % 2 else part for index, part in enumerate(parts)), name


def _number_key(digits: str) -> tuple[int, str]:
    """Sorts as the number does; Python refuses to read thousands of digits as one."""
    digits = digits.lstrip("0")
    return len(digits), digits
