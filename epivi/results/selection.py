"""What may be selected from the results: light, for the parser of `epivi query`."""

from __future__ import annotations

from dataclasses import dataclass

TABLE_NAMES = ("posterior", "states", "branches")
BED_COLUMNS = ("contig", "pos", "end", "kind_set", "best", "lfdr", "strand")
FORMATS = ("tsv", "csv", "bed", "parquet")


@dataclass(frozen=True)
class Selection:
    """Which rows and columns of which of TABLE_NAMES: None, "" and () mean all of them."""

    region: str | None = None
    where: str = ""
    columns: tuple[str, ...] = ()
    limit: int | None = None
    table: str = "posterior"
