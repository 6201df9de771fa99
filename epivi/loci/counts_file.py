"""Counts of one sample, by contig."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from epivi.base.errors import UserError
from epivi.tables.columns import CONTEXTS, STRANDS
from epivi.tables.parquet import PathLike, Provenance, damage_is_user_error, open_parquet

# Key of the JSON of QcRecord.sums in the metadata of a counts file, and of those of all samples in the manifest.
SUMS_METADATA = "epivi.sums"
CONTIG_SUMS_METADATA = "epivi.contig_sums"
# The same of QcRecord.warnings.
WARNINGS_METADATA = "epivi.warnings"
COUNT_COLUMNS = ["pos", "strand", "context", "meth", "total"]


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
        with damage_is_user_error(self.path, "Parquet"):
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
            with damage_is_user_error(self.path, "Parquet"):
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
    with damage_is_user_error(path, "Parquet"):
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
    return UserError(f"{path}: rows of {contig} are not contiguous; write it again: epivi ingest")
