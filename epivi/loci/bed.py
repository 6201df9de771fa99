"""Rows of BED files."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from epivi.base.errors import UserError
from epivi.loci.units import Intervals
from epivi.tables.parquet import PathLike


class BedRow(NamedTuple):
    """One interval of a BED file; cells: the line's columns as text."""

    line: int
    contig: str
    start: int
    end: int
    cells: list[str]


def bed_rows(path: PathLike) -> Iterator[BedRow]:
    """The intervals of a BED file (plain or gzip) in its order.

    Raises UserError naming file, line and value on anything but integers 0 <= start < end.
    """
    try:
        with open(path, "rb") as raw:
            opener = gzip.open if raw.read(2) == b"\x1f\x8b" else open
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip() and not line.startswith(("#", "track", "browser")):
                    yield _bed_row(path, number, line)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as BED ({error})") from None


def read_bed(path: PathLike) -> dict[str, Intervals]:
    """Distinct intervals of each contig of a BED file; names and further columns are ignored.

    Raises UserError as `bed_rows`, and for a file without intervals.
    """
    starts: dict[str, list[tuple[int, int]]] = {}
    for row in bed_rows(path):
        starts.setdefault(row.contig, []).append((row.start, row.end))
    if not starts:
        raise UserError(f"{path}: holds no interval; expected lines of contig, start, end")
    distinct = {contig: np.unique(np.array(pairs, np.int64), axis=0) for contig, pairs in starts.items()}
    return {contig: Intervals(pairs[:, 0].copy(), pairs[:, 1].copy()) for contig, pairs in distinct.items()}


def _bed_row(path: PathLike, number: int, line: str) -> BedRow:
    cells = line.rstrip("\r\n").split("\t") if "\t" in line else line.split()
    if len(cells) < 3:
        raise UserError(f"{path}: line {number}: {len(cells)} columns; expected contig, start, end")
    for name, cell in (("start", cells[1]), ("end", cells[2])):
        if not cell.isdecimal():
            raise UserError(f"{path}: line {number}: {name} is {cell!r}; expected a whole number >= 0")
    start, end = int(cells[1]), int(cells[2])
    if not start < end < 2**31:
        raise UserError(f"{path}: line {number}: end is {end}; expected a position after the start, {start}")
    return BedRow(number, cells[0], start, end, cells)
