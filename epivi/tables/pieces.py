"""A shard's table in pieces: each is a file of its own until all are there, so that killed work goes on from them.

The pieces lie in a hidden folder beside the table. Pieces and table carry a stamp of all that they depend on; what has
another stamp is written anew. A second name of the finished file, hidden too, outlives the first: Snakemake removes the
outputs of jobs that it did not see end, as when it was killed itself while a cluster went on with them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from epivi.base.errors import UserError
from epivi.base.files import exclusive
from epivi.tables.columns import Column
from epivi.tables.parquet import Provenance, TableWriter, open_parquet
from epivi.tables.parts import PATTERN

if TYPE_CHECKING:
    import pyarrow as pa


def pieces_folder(path: Path) -> Path:
    """Where the pieces of a table lie until it is whole."""
    return path.with_name(f".{path.name}.pieces")


def second_name(path: Path) -> Path:
    """The other name of a table that is whole."""
    return path.with_name(f".{path.name}.whole")


def forget(path: Path) -> None:
    """Remove what would let a table go on from earlier work."""
    shutil.rmtree(pieces_folder(path), ignore_errors=True)
    second_name(path).unlink(missing_ok=True)


def forget_all(folder: Path) -> None:
    """The same for all parts of a table."""
    for pattern in (f".{PATTERN}.pieces", f".{PATTERN}.whole"):
        for left in folder.glob(pattern):
            forget(folder / left.name.removeprefix(".").removesuffix(left.suffix))


class PiecewiseTable:
    """A Parquet file of loci `start` to `stop`, in pieces of at most `piece_loci` loci.

    rows_per_locus: rows of the table for each locus. metadata: of the file, its stamp among them, added to what the
    provenance gives.
    """

    def __init__(
        self,
        path: Path,
        columns: Sequence[Column],
        provenance: Provenance,
        *,
        metadata: dict[str, str],
        loci: tuple[int, int],
        piece_loci: int,
        rows_per_locus: int,
    ) -> None:
        self._path, self._columns, self._provenance = path, columns, provenance
        self._metadata, self._rows_per_locus = metadata, rows_per_locus
        self._folder = pieces_folder(path)
        start, stop = loci
        self._ranges = [(first, min(first + piece_loci, stop)) for first in range(start, stop, piece_loci)]

    def is_whole(self) -> bool:
        """Whether the file is there, with this metadata, or was and is now again.

        Pieces that a kill at the very end left are then removed.
        """
        if not self._is_of_this_table(self._path):
            if not self._is_of_this_table(second_name(self._path)):
                return False
            self._path.unlink(missing_ok=True)
            os.link(second_name(self._path), self._path)
        shutil.rmtree(self._folder, ignore_errors=True)
        return True

    def missing(self) -> list[tuple[int, int]]:
        """First locus, and locus after the last, of each piece that is not there."""
        return [loci for loci in self._ranges if not self._is_of_this_table(self._piece(loci))]

    def write(self, tables: Iterator[pa.Table], on_loci: Callable[[int], None]) -> None:
        """Write the missing pieces from their tables, of whole loci and in order, and put all pieces together.

        on_loci: called with the number of loci in each table as it is written. Raises UserError where another process
        writes the same file.
        """
        second_name(self._path).unlink(missing_ok=True)
        if len(self._ranges) == 1:
            self._write_loci(self._path, self._ranges[0], tables, on_loci)
            self._name_twice()
            return
        with exclusive(self._folder / "lock"):
            for loci in self.missing():
                self._write_loci(self._piece(loci), loci, tables, on_loci)
            with self._writer(self._path) as writer:
                for loci in self._ranges:
                    file, _ = open_parquet(self._piece(loci), self._provenance.table)
                    for group in range(file.num_row_groups):
                        writer.write(file.read_row_group(group))
        self._name_twice()
        shutil.rmtree(self._folder)

    def _name_twice(self) -> None:
        # On a file system without hard links, removed work is lost work.
        with contextlib.suppress(OSError):
            os.link(self._path, second_name(self._path))

    def _write_loci(
        self, path: Path, loci: tuple[int, int], tables: Iterator[pa.Table], on_loci: Callable[[int], None]
    ) -> None:
        left = loci[1] - loci[0]
        with self._writer(path) as writer:
            while left:
                table = next(tables)
                writer.write(table)
                on_loci(table.num_rows // self._rows_per_locus)
                left -= table.num_rows // self._rows_per_locus

    def _writer(self, path: Path) -> TableWriter:
        return TableWriter(path, self._columns, self._provenance, metadata=self._metadata)

    def _piece(self, loci: tuple[int, int]) -> Path:
        return self._folder / f"{loci[0]}-{loci[1]}.parquet"

    def _is_of_this_table(self, path: Path) -> bool:
        if not path.exists():
            return False
        try:
            file, _ = open_parquet(path)
        except UserError:  # damaged, so as good as none
            return False
        found = file.schema_arrow.metadata or {}
        return all(found.get(name.encode()) == value.encode() for name, value in self._metadata.items())
