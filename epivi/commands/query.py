"""`epivi query`: loci by region and SQL condition."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from epivi.base.errors import UserError
from epivi.base.files import atomic_path
from epivi.config.load import load_config
from epivi.results.selection import BED_COLUMNS, FORMATS, TABLE_NAMES, Selection

if TYPE_CHECKING:
    from epivi.results.query import Result


@click.command("query")
@click.argument("region", required=False)
@click.option(
    "--table", type=click.Choice(TABLE_NAMES), default="posterior", show_default=True, help="What to select from."
)
@click.option("--where", default="", metavar="SQL", help="Condition on the columns, e.g. 'prob_epigenetic > 0.9'.")
@click.option("--columns", default="", metavar="A,B", help="Columns, in this order.  [default: all]")
@click.option("--results", type=click.Path(), help="Folder of the cohort's results.  [default: as configured]")
@click.option("--config", "config_source", default="config/config.yaml", show_default=True, help="Configuration.")
@click.option("--format", "format_name", type=click.Choice(FORMATS), help="[default: by the output's suffix, else tsv]")
@click.option("--output", default="-", show_default=True, metavar="FILE", help="Where to write; - is the terminal.")
@click.option("--limit", type=click.IntRange(min=0), help="Stop after this many rows.")
def command(
    region: str | None,
    table: str,
    where: str,
    columns: str,
    results: str | None,
    config_source: str,
    format_name: str | None,
    output: str,
    limit: int | None,
) -> None:
    """Print the loci of REGION that meet a condition.

    A region is a contig, contig:start-end (0-based, half-open), contig:start- to its end, or contig:position.

    Column names are those of the table; names with signs, and the SQL word end, stand in double quotes:
    --where '"prob_epigenetic+cis" > 0.5 AND "end" < 5000'.
    """
    from epivi.results.query import TEXT_WRITERS, select, write_parquet

    format_name = format_name or _format_of(output)
    selection = Selection(region, where, _chosen_columns(columns, format_name), limit, table)
    with select(results or _configured_results(config_source), selection) as result:
        if format_name == "parquet":
            if output == "-":
                raise UserError("--format parquet: expected --output FILE, a Parquet file cannot be printed")
            write_parquet(result, output, selection)
        elif output == "-":
            _print(result, TEXT_WRITERS[format_name])
        else:
            with atomic_path(output) as temporary, temporary.open("wb") as stream:
                TEXT_WRITERS[format_name](result, stream)


def _format_of(output: str) -> str:
    suffix = Path(output).suffix.removeprefix(".")
    return suffix if suffix in FORMATS else "tsv"


def _chosen_columns(columns: str, format_name: str) -> tuple[str, ...]:
    if format_name == "bed":
        if columns:
            raise UserError("--columns: the columns of BED are fixed; expected --format tsv, csv or parquet")
        return BED_COLUMNS
    # A name that holds a comma stands in double quotes, as in SQL.
    return tuple(name.strip() for name in next(csv.reader([columns], skipinitialspace=True))) if columns else ()


def _configured_results(config_source: str) -> Path:
    config = load_config(config_source)
    return Path(config.require("results")) / config.require("cohort")


def _print(result: Result, write: Callable[[Result, IO[bytes]], None]) -> None:
    try:
        write(result, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # The reader (such as head) has seen enough; nothing more may be flushed to it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
