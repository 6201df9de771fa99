"""Select rows of a table of loci by region and SQL condition, with DuckDB, in the order of the genome."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from epivi.base.errors import UserError
from epivi.config.load import suggestion
from epivi.results.selection import Selection
from epivi.tables.columns import schema_columns
from epivi.tables.parquet import PathLike, Provenance, TableWriter, open_parquet
from epivi.tables.parts import whole_table

BATCH_ROWS = 50_000
MOST_NAMES = 30  # contigs named in a message


class Region(NamedTuple):
    """Part of a contig, 0-based and half-open; all of it without an end where that is None."""

    contig: str
    start: int
    end: int | None


class Result(NamedTuple):
    """Rows of a query, batch by batch, with the schema (field and file metadata) they had in the table."""

    schema: pa.Schema
    provenance: Provenance
    batches: Iterator[pa.RecordBatch]


def parse_region(text: str, contigs: Sequence[str]) -> Region:
    """`contig`, `contig:start-end`, `contig:start-` to its end, or `contig:position` (0-based, half-open).

    Commas in numbers are allowed. A contig's name may itself hold a colon. Raises UserError on bad syntax and on
    unknown contigs.
    """
    if text in contigs:
        return Region(text, 0, None)
    match = re.fullmatch(r"(.+):([0-9][0-9,]*)(?:(-)([0-9][0-9,]*)?)?", text)
    contig = match[1] if match else text
    if contig not in contigs and (match or ":" not in text):
        raise UserError(f"region {text!r}: no contig {contig!r} in the results; {_meant(contig, contigs)}")
    if match is None:
        example = f"{contigs[0]}:1,000,000-1,200,000"
        raise UserError(
            f"region {text!r}: expected contig, contig:start-end, contig:start- or contig:position, as in {example}"
        )
    start = int(match[2].replace(",", ""))
    if match[3] is None:
        return Region(contig, start, start + 1)
    end = None if match[4] is None else int(match[4].replace(",", ""))
    if end is not None and start >= end:
        raise UserError(f"region {text!r}: the start, {start}, must be smaller than the end, {end}")
    return Region(contig, start, end)


def _meant(contig: str, contigs: Sequence[str]) -> str:
    """The contig with another spelling of its prefix or case, or else what there is."""

    def bare(name: str) -> str:
        return name.lower().removeprefix("chr")

    close = [name for name in contigs if bare(name) == bare(contig)]
    return f"did you mean {close[0]!r}?" if close else f"expected one of {_listed(contigs)}"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MOST_NAMES])
    return f"{shown} and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else shown


@contextmanager
def select(results: PathLike, selection: Selection) -> Iterator[Result]:
    """Run a query on the folder of a cohort's results; rows come sorted by contig (natural order) and position.

    Raises UserError if there are no results, on an unknown contig or column, and on what DuckDB refuses.
    """
    parts = whole_table(Path(results) / selection.table, selection.table)
    contigs = list(dict.fromkeys(contig for part in parts for contig in part.contigs))
    region = None if selection.region is None else parse_region(selection.region, contigs)
    files = [str(part.path.absolute()) for part in parts if region is None or region.contig in part.contigs]
    file, provenance = open_parquet(parts[0].path, selection.table)
    schema = file.schema_arrow
    has_end = "end" in schema.names
    for name in selection.columns:
        if name not in schema.names:
            raise UserError(f"--columns: no column {name!r}; {suggestion(name, schema.names)}")
    if selection.columns:
        schema = pa.schema([schema.field(name) for name in selection.columns], schema.metadata)
    import duckdb

    with closing(_connection(duckdb, files)) as connection:
        sql, parameters = _sql(schema.names, selection, region, has_end)
        with _is_user_error(selection, duckdb.Error):
            _check_condition(duckdb, selection.where)
            relation = connection.sql(sql, params={**parameters, "files": files})
            reader = relation.to_arrow_reader(BATCH_ROWS)
        yield Result(schema, provenance, _batches(reader, schema, selection, duckdb.Error))


def _connection(duckdb: Any, files: Sequence[str]) -> Any:
    """A database that can read these files and nothing else, neither on the disk nor in this process or the network."""
    connection = duckdb.connect(config={"autoinstall_known_extensions": "false", "python_enable_replacements": "false"})
    connection.execute("SET allowed_paths = $files", {"files": list(files)})
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _sql(
    names: Sequence[str], selection: Selection, region: Region | None, has_end: bool
) -> tuple[str, dict[str, Any]]:
    """The query and its parameters, but for the files. Their order is the order of the rows, so nothing is sorted."""
    conditions: list[str] = []
    parameters: dict[str, Any] = {}
    if region is not None:
        ends_after = '"end" > $region_start' if has_end else "pos >= $region_start"
        conditions.append(f"contig = $region_contig AND {ends_after}")
        parameters = {"region_contig": region.contig, "region_start": region.start}
    if region is not None and region.end is not None:
        conditions.append("pos < $region_end")
        parameters["region_end"] = region.end
    if selection.where.strip():
        # A comment at the end of the condition must not swallow the bracket.
        conditions.append(f"({selection.where}\n)")
    sql = f"SELECT {', '.join(map(_quoted, names))} FROM read_parquet($files, hive_partitioning = false)"
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


def write_csv(result: Result, stream: IO[bytes]) -> None:
    """The same with commas, and names in quotes, since a contig's may hold a comma."""
    stream.write((",".join(result.schema.names) + "\n").encode())
    _write_rows(result.batches, stream, delimiter=",", quoting_style="needed")


def write_bed(result: Result, stream: IO[bytes]) -> None:
    """BED of six columns, without header: the score is 1000 * (1 - lfdr).

    The name is the best hypothesis, or where there is none the set of kinds. The result must have been selected with
    BED_COLUMNS.
    """
    _write_rows(map(_bed_batch, result.batches), stream)


def _bed_batch(batch: pa.RecordBatch) -> pa.RecordBatch:
    score = pc.round(pc.multiply(pc.subtract(1.0, batch.column("lfdr")), 1000.0)).cast(pa.int32())
    best, kinds = (batch.column(name).cast(pa.string()) for name in ("best", "kind_set"))
    name = pc.if_else(pc.equal(best, ""), kinds, best)
    columns = [*(batch.column(place) for place in ("contig", "pos", "end")), name, score, batch.column("strand")]
    return pa.RecordBatch.from_arrays(columns, ["chrom", "chromStart", "chromEnd", "name", "score", "strand"])


def _write_rows(
    batches: Iterator[pa.RecordBatch], stream: IO[bytes], delimiter: str = "\t", quoting_style: str = "none"
) -> None:
    options = pyarrow.csv.WriteOptions(include_header=False, delimiter=delimiter, quoting_style=quoting_style)
    for batch in batches:
        pyarrow.csv.write_csv(batch, stream, options)


def write_parquet(result: Result, path: PathLike, selection: Selection) -> None:
    """A Parquet file with the metadata of the table, and what was asked for as epivi.region and epivi.where."""
    metadata = {key.decode(): value.decode() for key, value in result.schema.metadata.items()}
    metadata |= {"epivi.region": selection.region or "", "epivi.where": selection.where}
    with TableWriter(path, schema_columns(result.schema), result.provenance, metadata=metadata) as writer:
        for batch in result.batches:
            writer.write(batch)


TEXT_WRITERS: Mapping[str, Callable[[Result, IO[bytes]], None]] = {"tsv": write_tsv, "csv": write_csv, "bed": write_bed}
