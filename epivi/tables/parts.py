"""Tables in parts: one file for each shard of the loci, none for each contig, and a check that all belong together.

A shard is a range of the loci in genome order, whatever the contigs. Its file `part-<shard>.parquet` says which loci of
how many it holds, of which contigs they are, and carries the stamp of all that the table was made from: so a part that
is missing, or left from an earlier run, is found by whoever reads the table, without anything beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from epivi.base.errors import UserError
from epivi.tables.parquet import PathLike, open_parquet, read_table

STAMP = "epivi.stamp"  # key in a file's metadata: of all that a table depends on
MADE_FROM = "epivi.made_from"  # the stamp of the table that it was made from
PATTERN = "part-*.parquet"
FORMER_PATTERN = "contig=*"


class Part(NamedTuple):
    """A file of a table, and the loci `start` to `stop` of `n_loci` that it is about, in genome order."""

    path: Path
    start: int
    stop: int
    n_loci: int
    contigs: tuple[str, ...]
    stamp: str
    made_from: str


def part_path(folder: PathLike, shard: str) -> Path:
    """`<folder>/part-<shard>.parquet`."""
    return Path(folder) / f"part-{shard}.parquet"


def part_metadata(
    loci: tuple[int, int], n_loci: int, contigs: Sequence[str], stamp: str, made_from: str = ""
) -> dict[str, str]:
    """What a part says of itself: its loci, first and after the last; all loci; its contigs; the stamps."""
    return {
        "epivi.start": str(loci[0]),
        "epivi.stop": str(loci[1]),
        "epivi.n_loci": str(n_loci),
        "epivi.contigs": json.dumps(list(contigs)),
        STAMP: stamp,
        MADE_FROM: made_from,
    }


def read_part(path: PathLike, table_name: str) -> Part:
    """What a part says of itself. Raises UserError where it is no part of such a table."""
    return part_of(Path(path), open_parquet(path, table_name)[0].schema_arrow.metadata)


def part_of(path: Path, metadata: Mapping[bytes, bytes]) -> Part:
    """The same from the metadata of an open file."""
    try:
        start, stop, n_loci = (int(metadata[f"epivi.{name}".encode()]) for name in ("start", "stop", "n_loci"))
        contigs = tuple(json.loads(metadata[b"epivi.contigs"]))
        stamps = [metadata[name.encode()].decode() for name in (STAMP, MADE_FROM)]
    except (KeyError, ValueError):
        raise UserError(
            f"{path}: does not say which loci it holds; written by an earlier epivi? Run the workflow again"
        ) from None
    return Part(path, start, stop, n_loci, contigs, *stamps)


def whole_table(folder: PathLike, table_name: str) -> list[Part]:
    """All parts of a table in genome order.

    Raises UserError with one line where there is none, one is missing or of another kind, two hold the same loci, or
    they were not made from the same inputs.
    """
    folder = Path(folder)
    paths = sorted(folder.glob(PATTERN))
    if not paths:
        raise UserError(f"{folder}: no {table_name} table here{_former(folder)}; run the workflow first")
    parts = sorted((read_part(path, table_name) for path in paths), key=lambda part: (part.start, part.path))
    first = parts[0]
    for part in parts:
        if (part.stamp, part.n_loci) != (first.stamp, first.n_loci):
            raise UserError(
                f"{part.path}: not made from the same inputs, settings and code as {first.path.name} beside it; "
                "expected parts of one run: run the workflow again to its end"
            )
    reached = 0
    for part in parts:
        if part.start != reached:
            what = "are missing" if part.start > reached else "stand in two files"
            raise UserError(_gap(folder, table_name, min(reached, part.start), max(reached, part.start), first, what))
        reached = part.stop
    if reached != first.n_loci:
        raise UserError(_gap(folder, table_name, reached, first.n_loci, first, "are missing"))
    return parts


def _gap(folder: Path, table_name: str, start: int, stop: int, part: Part, what: str) -> str:
    return (
        f"{folder}: loci {start:,} to {stop:,} of {part.n_loci:,} {what} in the table {table_name}; expected each "
        "locus in one file: run the workflow again to its end"
    )


def _former(folder: Path) -> str:
    return " but folders contig=<name> of an earlier epivi" if any(folder.glob(FORMER_PATTERN)) else ""


def batches(parts: Sequence[Part], table_name: str, columns: Sequence[str], rows: int = 1 << 16) -> Iterator[Any]:
    """The chosen columns of all parts as record batches, in genome order."""
    for part in parts:
        file, _ = open_parquet(part.path, table_name)
        yield from file.iter_batches(batch_size=rows, columns=list(columns))


def read_parts(folder: PathLike, table_name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A whole table, or `columns` of it, in genome order. Raises UserError as `whole_table` does."""
    pieces = [read_table(part.path, table_name, columns) for part in whole_table(folder, table_name)]
    return pa.concat_tables(pieces).unify_dictionaries()
