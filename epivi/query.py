"""Select rows of a table of loci by region and SQL condition, with DuckDB, in the order of the genome."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from epivi.config import suggestion
from epivi.errors import UserError
from epivi.schema import TABLES, schema_columns
from epivi.store import PathLike, Provenance, TableWriter, open_parquet, partitions

BATCH_ROWS = 50_000
MOST_NAMES = 30  # contigs named in a message
CONTIG = TABLES["counts"][0]
BED_COLUMNS = ("contig", "pos", "end", "best", "lfdr", "strand")


TABLE_NAMES = ("posterior", "states", "branches")


class Region(NamedTuple):
    """Part of a contig, 0-based and half-open; the whole of it if start and end are None."""

    contig: str
    start: int | None
    end: int | None


@dataclass(frozen=True)
class Selection:
    """Which rows and columns of which of TABLE_NAMES: None, "" and () mean all of them."""

    region: str | None = None
    where: str = ""
    columns: tuple[str, ...] = ()
    limit: int | None = None
    table: str = "posterior"


class Result(NamedTuple):
    """Rows of a query, batch by batch, with the schema (field and file metadata) they had in the table."""

    schema: pa.Schema
    provenance: Provenance
    batches: Iterator[pa.RecordBatch]


def parse_region(text: str, contigs: Sequence[str]) -> Region:
    """`contig` or `contig:start-end` (0-based, half-open, commas in numbers allowed).

    A contig's name may itself hold a colon. Raises UserError on bad syntax and on unknown contigs.
    """
    if text in contigs:
        return Region(text, None, None)
    match = re.fullmatch(r"(.+):([0-9][0-9,]*)-([0-9][0-9,]*)", text)
    contig = match[1] if match else text
    if contig not in contigs and (match or ":" not in text):
        raise UserError(f"region {text!r}: no contig {contig!r} in the results; expected one of {_listed(contigs)}")
    if match is None:
        raise UserError(f"region {text!r}: expected contig or contig:start-end, as in {contigs[0]}:1,000,000-1,200,000")
    start, end = (int(match[group].replace(",", "")) for group in (2, 3))
    if start >= end:
        raise UserError(f"region {text!r}: the start, {start}, must be smaller than the end, {end}")
    return Region(contig, start, end)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MOST_NAMES])
    return f"{shown} and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else shown


@contextmanager
def select(results: PathLike, selection: Selection) -> Iterator[Result]:
    """Run a query on the folder of a cohort's results; rows come sorted by contig (natural order) and position.

    Raises UserError if there are no results, on an unknown contig or column, and on what DuckDB refuses.
    """
    parts = _parts(Path(results), selection.table)
    region = None if selection.region is None else parse_region(selection.region, list(parts))
    contigs = list(parts) if region is None else [region.contig]
    files = [str(part) for contig in contigs for part in parts[contig]]
    file, provenance = open_parquet(files[0], selection.table)
    every = file.schema_arrow.names
    schema = _with_contig(file.schema_arrow)
    for name in selection.columns:
        if name not in schema.names:
            raise UserError(f"--columns: no column {name!r}; {suggestion(name, schema.names)}")
    if selection.columns:
        schema = pa.schema([schema.field(name) for name in selection.columns], schema.metadata)
    import duckdb

    # Nothing is fetched from the network: an unknown function is an error, not a download.
    with closing(duckdb.connect(config={"autoinstall_known_extensions": "false"})) as connection:
        sql, parameters = _sql(schema.names, selection, region, has_end="end" in every)
        with _is_user_error(selection, duckdb.Error):
            _check_condition(duckdb, selection.where)
            relation = connection.sql(sql, params={**parameters, "files": files})
            reader = relation.to_arrow_reader(BATCH_ROWS)
        yield Result(schema, provenance, _batches(reader, schema, selection, duckdb.Error))


def _parts(results: Path, table: str) -> Mapping[str, list[Path]]:
    folder = results / table
    parts = {contig: files for contig, files in partitions(folder).items() if files}
    if not parts:
        raise UserError(f"{folder}: no {table} table here; run the workflow first, or name the folder with --results")
    return parts


def _with_contig(schema: pa.Schema) -> pa.Schema:
    contig = pa.field(CONTIG.name, CONTIG.type, False, {"doc": CONTIG.doc, "unit": CONTIG.unit, "range": CONTIG.range})
    return pa.schema([contig, *schema], schema.metadata)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _sql(
    names: Sequence[str], selection: Selection, region: Region | None, has_end: bool
) -> tuple[str, dict[str, Any]]:
    """The query and its parameters, but for the files. Their order is the order of the rows, so nothing is sorted."""
    conditions, parameters = [], {}
    if region is not None and region.start is not None:
        starts_before = '"end" > $region_start' if has_end else "pos >= $region_start"
        conditions.append(f"pos < $region_end AND {starts_before}")
        parameters = {"region_start": region.start, "region_end": region.end}
    if selection.where.strip():
        # A comment at the end of the condition must not swallow the bracket.
        conditions.append(f"({selection.where}\n)")
    sql = (
        f"SELECT {', '.join(map(_quoted, names))} "
        "FROM read_parquet($files, hive_partitioning = true, hive_types = {'contig': VARCHAR})"
    )
    sql += f" WHERE {' AND '.join(conditions)}" if conditions else ""
    sql += f" LIMIT {selection.limit}" if selection.limit is not None else ""
    return sql, parameters


def _check_condition(duckdb: Any, where: str) -> None:
    """The condition alone must be one expression, so that brackets or semicolons in it cannot change the query."""
    if where.strip():
        duckdb.SQLExpression(where)


@contextmanager
def _is_user_error(selection: Selection, *error_types: type[Exception]) -> Iterator[None]:
    try:
        yield
    except error_types as error:
        message = " ".join(str(error).split("\n\nLINE ")[0].split())
        given = f"--where {selection.where!r}" if selection.where else "the query"
        raise UserError(f"{given}: {message}") from None


def _batches(
    reader: Any, schema: pa.Schema, selection: Selection, error_type: type[Exception]
) -> Iterator[pa.RecordBatch]:
    """The reader's batches; errors that DuckDB meets while running (casts, damaged files) are user errors too."""
    while True:
        with _is_user_error(selection, error_type, pa.ArrowException, OSError):
            batch = next(reader, None)
        if batch is None:
            return
        yield batch.rename_columns(schema.names)


# ------------------------------------------------------------------------------------------------------------- formats


def write_tsv(result: Result, stream: IO[bytes]) -> None:
    """A header line and one line a locus; numbers in their shortest exact form, flags as true and false."""
    stream.write(("\t".join(result.schema.names) + "\n").encode())
    _write_rows(result.batches, stream)


def write_bed(result: Result, stream: IO[bytes]) -> None:
    """BED of six columns, without header: the name is the best hypothesis, the score 1000 * (1 - lfdr).

    The result must have been selected with BED_COLUMNS.
    """
    _write_rows(map(_bed_batch, result.batches), stream)


def _bed_batch(batch: pa.RecordBatch) -> pa.RecordBatch:
    score = pc.round(pc.multiply(pc.subtract(1.0, batch.column("lfdr")), 1000.0)).cast(pa.int32())
    columns = [*(batch.column(name) for name in ("contig", "pos", "end", "best")), score, batch.column("strand")]
    return pa.RecordBatch.from_arrays(columns, ["chrom", "chromStart", "chromEnd", "name", "score", "strand"])


def _write_rows(batches: Iterator[pa.RecordBatch], stream: IO[bytes]) -> None:
    options = pyarrow.csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
    for batch in batches:
        pyarrow.csv.write_csv(batch, stream, options)


def write_parquet(result: Result, path: PathLike, selection: Selection) -> None:
    """A Parquet file with the metadata of the table, and what was asked for as epivi.region and epivi.where."""
    metadata = {key.decode(): value.decode() for key, value in result.schema.metadata.items()}
    metadata |= {"epivi.region": selection.region or "", "epivi.where": selection.where}
    with TableWriter(path, schema_columns(result.schema), result.provenance, metadata=metadata) as writer:
        for batch in result.batches:
            writer.write(batch)
