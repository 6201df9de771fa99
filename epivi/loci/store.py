"""The only opener of our Parquet and Arrow files: tables with provenance, counts by contig, memory-mapped loci.

Loci lie in a folder: panels of samples, each with its samples' counts at every locus that one of them has reads at; an
index with the loci of the cohort and the row of each in every panel; and a manifest, without which nothing opens. A
large contig has a file in each of them, small ones share files.

Every file carries the format version, the epivi version, the kind of table, the seed and the hashes of configuration
and pedigree. A newer format, another kind of table, or a damaged file is one clear `UserError`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from epivi.base.errors import UserError
from epivi.base.files import write_json
from epivi.loci.loci_file import (
    MOST_NAMES,
    NOWHERE,
    FileLoci,
    LociFile,
    LocusBlock,
    OpenFiles,
    PanelColumns,
    PanelRows,
    Place,
    _as_slice,
    as_record,
    concatenated,
    places_of,
)
from epivi.tables.columns import CONTEXTS, STRANDS
from epivi.tables.parquet import PathLike, Provenance, check_table, check_version, natural_key, open_parquet

MANIFEST = "loci.json"
PANELS = "panels"
INDEX = "index"
# Beside the loci: which sample has which contigs, and samples whose positions are not those of the others.
CONTIGS, POSITIONS = "contigs.parquet", "positions.parquet"
# Beside its files a panel has a record, a JSON object with the key FILES.
RECORD = "panel.json"
# Key of the list of LociFile in the record of a panel and in the manifest.
FILES = "files"


def read_provenance(path: PathLike) -> Provenance:
    """Provenance of a Parquet file or of a folder of loci."""
    path = Path(path)
    return LociStore.open(path).provenance if (path / MANIFEST).is_file() else open_parquet(path)[1]


class LocusSpan(NamedTuple):
    """L consecutive loci in genome order for S samples, of any number of contigs.

    blocks: the same loci contig by contig; `start` is the number of the first among all loci.
    """

    blocks: tuple[LocusBlock, ...]
    start: int
    pos0: np.ndarray  # int32 [L], bp
    end0: np.ndarray  # int32 [L], bp, exclusive
    strand_code: np.ndarray  # int8 [L]
    context_code: np.ndarray  # int8 [L]
    meth: np.ndarray  # uint16 [L, S], reads
    total: np.ndarray  # uint16 [L, S], reads

    @property
    def contig(self) -> pa.DictionaryArray:
        """Name of the contig of each locus, [L]."""
        sizes = [block.pos0.size for block in self.blocks]
        codes = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        return pa.DictionaryArray.from_arrays(pa.array(codes), pa.array([block.contig for block in self.blocks]))

    @property
    def strand(self) -> np.ndarray:
        """Strand of each locus as text [L]."""
        return np.array(STRANDS)[self.strand_code]

    @property
    def context(self) -> np.ndarray:
        """Context of each locus as text [L]."""
        return np.array(CONTEXTS)[self.context_code]


def long_places(span: LocusSpan, rows: int) -> dict[str, Any]:
    """Columns `contig` and `pos` of a table with so many consecutive rows a locus, [L rows] each."""
    contig = span.contig
    indices = pa.array(np.repeat(contig.indices.to_numpy(), rows))
    return {
        "contig": pa.DictionaryArray.from_arrays(indices, contig.dictionary),
        "pos": np.repeat(span.pos0, rows),
    }


def write_loci_manifest(
    directory: PathLike,
    samples: Sequence[str],
    panels: Sequence[PanelColumns],
    files: Sequence[LociFile],
    unit: Any,
    provenance: Provenance,
    details: Mapping[str, Any],
) -> None:
    """Write loci.json, which makes a folder of panels and index a `LociStore`; `details` is kept for people to read.

    files: those of the index.
    """
    manifest = {
        **asdict(provenance),
        "unit": unit,
        "n_loci": sum(sum(file.n_loci) for file in files),
        **details,
        "samples": list(samples),
        "panels": [panel._asdict() for panel in panels],
        FILES: as_record(files),
    }
    write_json(Path(directory) / MANIFEST, manifest)


class _Columns(NamedTuple):
    """What the cohort uses of a panel, both slices where they are consecutive."""

    used: slice | np.ndarray  # columns of the panel
    places: slice | np.ndarray  # their places in the cohort

    @classmethod
    def of(cls, panel: PanelColumns) -> _Columns:
        places = np.array(panel.places)
        used = np.flatnonzero(places >= 0)
        return cls(_as_slice(used), _as_slice(places[used]))


class _Run(NamedTuple):
    """Loci of consecutive contigs that lie together."""

    contigs: list[str]
    files: list[str | None]  # of the index, then of each panel; None where it has no locus of these contigs
    sizes: list[int]  # loci of each contig
    first: int  # row of the index's file


class LociStore:
    """The cohort's loci, memory-mapped: reading a block costs its pages, not its contig.

    Files open on first use, and those used last stay open; a copy sent to another process opens its own.
    """

    def __init__(self, directory: Path, manifest: Mapping[str, Any]) -> None:
        self.directory = directory
        self.samples: tuple[str, ...] = tuple(manifest["samples"])
        self.unit: Any = manifest["unit"]
        # Of each sample what CountsFile.sums holds.
        self.sums: dict[str, dict[str, tuple[float, ...]]] = {
            sample: {name: tuple(values) for name, values in sums.items()}
            for sample, sums in manifest.get("sums", {}).items()
        }
        # Of each sample what CountsFile.warnings holds.
        self.warnings: dict[str, tuple[str, ...]] = {
            sample: tuple(texts) for sample, texts in manifest.get("warnings", {}).items()
        }
        # Of each file of `loci.exclude` what it left out; the assembly says with which keys.
        self.excluded: tuple[Mapping[str, Any], ...] = tuple(manifest.get("exclude", ()))
        self.provenance = Provenance(
            *(manifest[key] for key in ("table", "seed", "config_hash", "pedigree_hash", "format_version", "version"))
        )
        self.panels = tuple(PanelColumns(entry["name"], tuple(entry["places"])) for entry in manifest["panels"])
        self._columns = [_Columns.of(panel) for panel in self.panels]
        self._is_one_panel = [panel.places for panel in self.panels] == [tuple(range(len(self.samples)))]
        places = places_of(manifest[FILES])
        self.contigs: tuple[str, ...] = tuple(sorted(places, key=natural_key))
        self._places = {contig: places[contig] for contig in self.contigs}
        self._ends = np.cumsum([place.n_loci for place in self._places.values()], dtype=np.int64)
        self.n_loci: int = int(self._ends[-1]) if self._ends.size else 0
        self._panel_places: list[dict[str, Place]] | None = None
        self._index_folder = directory / INDEX
        self._panel_folders = [directory / PANELS / panel.name for panel in self.panels]
        self._files = OpenFiles()

    @classmethod
    def open(cls, directory: PathLike) -> LociStore:
        """Open the folder that `epivi assemble` wrote; UserError if it is none, damaged, or of a newer format."""
        directory = Path(directory)
        path = directory / MANIFEST
        try:
            manifest = json.loads(path.read_text())
            check_version(path, str(manifest["format_version"]), str(manifest.get("version")))
            _check_panels(path, manifest)
            store = cls(directory, manifest)
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{path}: no such file; expected a folder written by epivi assemble") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a manifest written by epivi assemble ({error!r})") from None
        check_table(path, store.provenance, "loci")
        return store

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OpenFiles(), "_panel_places": None}

    def n_loci_of(self, contig: str) -> int:
        """Number of loci of one contig. Raises UserError if the contig is unknown."""
        return self._place(contig).n_loci

    def block(self, contig: str, start: int, stop: int) -> LocusBlock:
        """Loci `start` to `stop` of a contig, gathered from the panels.

        Views of the memory map where all lie together in one panel. Raises UserError if the contig is unknown or a file
        damaged, IndexError if the range is not within it.
        """
        return LocusBlock(contig, start, *self.rows_of([(contig, start, stop)]))

    def span(self, start: int, stop: int) -> LocusSpan:
        """Loci `start` to `stop` of all in genome order. Raises IndexError if the range is empty or not within them."""
        if not 0 <= start < stop <= self.n_loci:
            raise IndexError(f"loci {start} to {stop} asked for; there are {self.n_loci}")
        first, last = self._contig_numbers(start, stop)
        ends = self._ends[first:last]
        starts = ends - [self._places[contig].n_loci for contig in self.contigs[first:last]]
        lows, highs = (np.maximum(starts, start) - starts).tolist(), (np.minimum(ends, stop) - starts).tolist()
        ranges = list(zip(self.contigs[first:last], lows, highs, strict=True))
        rows = self.rows_of(ranges)
        blocks, done = [], 0
        for contig, low, high in ranges:
            size = high - low
            blocks.append(LocusBlock(contig, low, *[array[done : done + size] for array in rows]))
            done += size
        return LocusSpan(tuple(blocks), start, *rows)

    def rows_of(self, ranges: Sequence[tuple[str, int, int]]) -> PanelRows:
        """Loci `start` to `stop` of each of some contigs (contig, start, stop), one contig after the other.

        Ranges that follow one another in genome order are read together. Raises what `block` does.
        """
        return PanelRows(*concatenated([self._run_rows(run) for run in self._runs(ranges)]))

    def _runs(self, ranges: Sequence[tuple[str, int, int]]) -> Iterator[_Run]:
        """The ranges by runs that lie together: one after the other in the index, and in one file of every panel."""
        panels = self._places_in_panels()
        contigs: list[str] = []
        files: list[str | None] = []
        sizes: list[int] = []
        first = next_row = 0
        for contig, start, stop in ranges:
            place = self._place(contig)
            if not 0 <= start <= stop <= place.n_loci:
                raise IndexError(f"loci {start} to {stop} of {contig} asked for; it has {place.n_loci}")
            row = place.first + start
            own = [place.file, *[places[contig].file if contig in places else None for places in panels]]
            if (
                contigs
                and row == next_row
                and all(a is None or b is None or a == b for a, b in zip(own, files, strict=True))
            ):
                files = [a or b for a, b in zip(own, files, strict=True)]
            else:
                if contigs:
                    yield _Run(contigs, files, sizes, first)
                contigs, files, sizes, first = [], own, [], row
            contigs.append(contig)
            sizes.append(stop - start)
            next_row = row + stop - start
        yield _Run(contigs, files, sizes, first)

    def _run_rows(self, run: _Run) -> PanelRows:
        index_file, *panel_files = run.files
        last = self._place(run.contigs[-1])
        place = Place(index_file or "", run.first, last.first + last.n_loci - run.first)
        index = self._files.loci(self._index_folder, place, run.contigs[-1], "loci", len(self.panels))
        *columns, row = index.rows(0, sum(run.sizes))
        held = {number: file for number, file in enumerate(panel_files) if file}
        if self._is_one_panel and held:
            # Its columns are the cohort's, so that views can be handed out.
            panel, rows = self._in_panel(0, held[0], run, row[:, 0])
            return PanelRows(*columns, *panel.wide(rows))
        counts = np.zeros((2, len(row), len(self.samples)), np.uint16)
        for number, file in held.items():
            panel, rows = self._in_panel(number, file, run, row[:, number])
            used, places = self._columns[number]
            for array, values in zip(counts, panel.wide(rows), strict=True):
                array[:, places] = values[:, used]
        return PanelRows(*columns, *counts)

    def _in_panel(self, number: int, file: str, run: _Run, row: np.ndarray) -> tuple[FileLoci, np.ndarray]:
        """The file of a panel that holds a run, and the rows there of its loci, whose `row` counts from its contig."""
        places = self._places_in_panels()[number]
        held = [places.get(contig, NOWHERE) for contig in run.contigs]
        last = max(range(len(held)), key=lambda each: held[each].first + held[each].n_loci)
        end = held[last].first + held[last].n_loci
        whole = Place(file, 0, end)
        width = len(self.panels[number].places)
        panel = self._files.loci(self._panel_folders[number], whole, run.contigs[last], "panel", width)
        begin = np.repeat([place.first for place in held], run.sizes)
        return panel, np.where(row < 0, row, row + begin)

    def contigs_of(self, start: int, stop: int) -> tuple[str, ...]:
        """Contigs of the loci `start` to `stop` of all."""
        return self.contigs[slice(*self._contig_numbers(start, stop))]

    def _contig_numbers(self, start: int, stop: int) -> tuple[int, int]:
        first, last = np.searchsorted(self._ends, [start, stop - 1], "right").tolist()
        return first, last + 1

    def blocks(self, size: int) -> Iterator[LocusBlock]:
        """All loci in genome order, at most `size` at a time, near equal within a contig."""
        for number in range(len(index := self.global_blocks(size))):
            yield self.block(*index[number])

    def global_blocks(self, size: int) -> BlockIndex:
        """Genome-wide numbering of the blocks of at most `size` loci, for random minibatches."""
        counts = np.array([-(-self.n_loci_of(contig) // size) for contig in self.contigs], np.int64)
        return BlockIndex(self.contigs, tuple(map(self.n_loci_of, self.contigs)), np.cumsum(counts))

    def _place(self, contig: str) -> Place:
        if contig not in self._places:
            raise UserError(f"{self.directory}: no contig {contig!r}; expected one of {_listed(self.contigs)}")
        return self._places[contig]

    def _places_in_panels(self) -> list[dict[str, Place]]:
        """The place of each contig in every panel that has loci of it."""
        if self._panel_places is None:
            self._panel_places = [_read_places(folder) for folder in self._panel_folders]
        return self._panel_places


def _read_places(folder: Path) -> dict[str, Place]:
    """The contigs of a panel. Raises UserError if its record is missing or damaged."""
    path = folder / RECORD
    try:
        return places_of(json.loads(path.read_text())[FILES])
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file; write the loci again: epivi assemble") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a record of a panel ({error!r}); write the loci again: epivi assemble") from None


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MOST_NAMES])
    return f"{shown} and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else shown


def _check_panels(path: Path, manifest: Mapping[str, Any]) -> None:
    if "contigs" in manifest and FILES not in manifest:
        raise UserError(
            f"{path}: written by an earlier epivi ({manifest.get('version')}), which kept every contig in a file of its"
            " own; write the loci again: epivi assemble"
        )


@dataclass(frozen=True)
class BlockIndex:
    """Maps a genome-wide block number to (contig, start, stop); `len` is the number of blocks.

    Blocks of one contig differ by at most one locus in length.
    """

    contigs: tuple[str, ...]
    n_loci: tuple[int, ...]  # loci of each contig
    last_block: np.ndarray  # int64 [contigs], blocks up to and with each contig

    def __len__(self) -> int:
        return int(self.last_block[-1]) if self.last_block.size else 0

    def __getitem__(self, number: int) -> tuple[str, int, int]:
        if not 0 <= number < len(self):
            raise IndexError(f"block {number} asked for; there are {len(self)}")
        contig = int(np.searchsorted(self.last_block, number, side="right"))
        first = int(self.last_block[contig - 1]) if contig else 0
        pieces, piece, n = int(self.last_block[contig]) - first, number - first, self.n_loci[contig]
        return self.contigs[contig], n * piece // pieces, n * (piece + 1) // pieces
