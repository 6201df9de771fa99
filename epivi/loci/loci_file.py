"""Memory-mapped files of loci, which may hold several contigs."""

from __future__ import annotations

import bisect
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from epivi.base.errors import UserError
from epivi.base.files import atomic_path
from epivi.loci.columns import index_columns, panel_columns
from epivi.tables.columns import CONTEXTS, STRANDS, Column, arrow_schema
from epivi.tables.parquet import PathLike, Provenance, check_table, damage_is_user_error, natural_key, parse_provenance

# Values in one record batch of a contig: of each locus one a sample (or panel) and one a narrow column. 16 MiB or less,
# methylated and total reads together.
BATCH_VALUES = 1 << 22
N_NARROW = 4  # columns before the wide ones: position, end, strand, context
# Contigs of fewer loci share files of at most twice as many.
LARGE_CONTIG_LOCI = 1 << 15
# Files that a process keeps open; a map more costs a microsecond, a file handle more may be one too many.
MOST_OPEN_FILES = 256
MOST_NAMES = 10  # of contigs in a message


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
            self._writer.write_batch(_record_batch(concatenated(self._pending), self._schema))
        self._pending, self._pending_loci = [], 0


def concatenated(pieces: Sequence[Sequence[np.ndarray]]) -> Sequence[np.ndarray]:
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
        with damage_is_user_error(path, "Arrow"):
            reader = pa.ipc.open_file(pa.memory_map(str(path)), options=pa.ipc.IpcReadOptions(use_threads=False))
            batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        check_table(path, parse_provenance(path, reader.schema.metadata), table)
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
                f"{file.path}: holds {file.n_rows} loci; {contig} is recorded to end at {place.first + place.n_loci}"
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


def _as_slice(numbers: np.ndarray) -> slice | np.ndarray:
    if numbers.size and np.all(np.diff(numbers) == 1):
        return slice(int(numbers[0]), int(numbers[-1]) + 1)
    return numbers


def even_ranges(n: int, size: int) -> list[tuple[int, int]]:
    """[0, n) in the fewest ranges of at most `size`, whose lengths differ by at most one."""
    pieces = -(-n // size)
    return [(n * piece // pieces, n * (piece + 1) // pieces) for piece in range(pieces)]
