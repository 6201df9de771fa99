"""Files of a simulated cohort."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.csv
from tqdm import tqdm

from epivi.base.ordered import on_threads
from epivi.cohort.pedigree import Pedigree
from epivi.cohort.samples import SampleSheet
from epivi.simulate.formats import TEXT_FORMATS
from epivi.simulate.options import Options

SHEET_COLUMNS = ("sample", "individual", "path", "format", "false_methylated", "false_unmethylated")
WRITE_OPTIONS = pyarrow.csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")


def pedigree_text(pedigree: Pedigree) -> str:
    """The pedigree as a table with a header, parents before children."""

    def name(index: int) -> str:
        return pedigree.individuals[index] if index >= 0 else "."

    rows = zip(
        pedigree.individuals,
        map(name, pedigree.mother),
        map(name, pedigree.father),
        pedigree.sex,
        pedigree.mode,
        map(str, pedigree.generations),
        strict=True,
    )
    return _table_text(("individual", "mother", "father", "sex", "mode", "generations"), rows)


def sheet_text(sheet: SampleSheet) -> str:
    """The sample sheet as a table with a header; paths are relative to it."""
    rows = zip(
        sheet.samples,
        sheet.individuals,
        sheet.paths,
        sheet.formats,
        map(str, sheet.false_methylated.tolist()),
        map(str, sheet.false_unmethylated.tolist()),
        *sheet.columns.values(),
        strict=True,
    )
    return _table_text((*SHEET_COLUMNS, *sheet.columns), rows)


def _table_text(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    return "".join("\t".join(row) + "\n" for row in (header, *rows))


class _SampleFile:
    """One sample's gzipped counts, appended block by block without keeping the file open (cohorts may be large)."""

    def __init__(self, path: Path, kind: str, decimals: int, gzip_level: int) -> None:
        self._path = path
        self._table = TEXT_FORMATS[kind].table
        self._decimals = decimals
        # The gzip header that zlib writes by itself (31 = 16 + 15) has neither time nor name: same draws, same bytes.
        self._compressor = zlib.compressobj(gzip_level, zlib.DEFLATED, 31)
        self._add(self._compressor.compress(TEXT_FORMATS[kind].header.encode()))

    def append(self, contig: str, pos0: np.ndarray, meth: np.ndarray, total: np.ndarray) -> None:
        is_covered = total > 0
        sink = pa.BufferOutputStream()
        table = self._table(contig, pos0[is_covered], meth[is_covered], total[is_covered], self._decimals)
        pyarrow.csv.write_csv(table, sink, WRITE_OPTIONS)
        self._add(self._compressor.compress(sink.getvalue()))

    def finish(self) -> None:
        self._add(self._compressor.flush())

    def _add(self, data: bytes) -> None:
        with self._path.open("ab") as file:
            file.write(data)


class DrawnBlock(Protocol):
    """Loci that were drawn, of whatever family: L of one contig, S samples; `truth` holds columns [L] by name."""

    @property
    def contig(self) -> str: ...

    @property
    def pos0(self) -> np.ndarray: ...

    @property
    def meth(self) -> np.ndarray: ...

    @property
    def total(self) -> np.ndarray: ...

    @property
    def truth(self) -> Mapping[str, np.ndarray]: ...


class _AppendJob(NamedTuple):
    file: _SampleFile
    block: DrawnBlock
    sample: int

    def run(self) -> None:
        block = self.block
        self.file.append(block.contig, block.pos0, block.meth[:, self.sample], block.total[:, self.sample])


def write_counts(
    asked: Options,
    n_loci: int,
    blocks: Iterator[Any],
    sheet: SampleSheet,
    folder: Path,
    add_truth: Callable[[Any], None],
) -> None:
    """Counts of every sample, block by block, and what `add_truth` writes; samples are formatted in parallel."""
    files = [
        _SampleFile(folder / path, kind, asked.percent_decimals, asked.gzip_level)
        for path, kind in zip(sheet.paths, sheet.formats, strict=True)
    ]
    with tqdm(total=n_loci, unit=" loci", unit_scale=True, disable=None, desc="simulate") as progress:
        for block in blocks:
            jobs = [_AppendJob(file, block, number) for number, file in enumerate(files)]
            for _ in on_threads(_AppendJob.run, jobs, asked.threads, ahead=len(jobs)):
                pass
            add_truth(block)
            progress.update(len(block.pos0))
        for file in files:
            file.finish()


def truth_table(block: DrawnBlock, hypotheses: Sequence[str]) -> pa.Table:
    n_loci = len(block.pos0)
    columns = dict(block.truth) | {
        "contig": pa.DictionaryArray.from_arrays(pa.array(np.zeros(n_loci, np.int32)), pa.array([block.contig])),
        "pos": block.pos0,
        "hypothesis": pa.DictionaryArray.from_arrays(
            pa.array(block.truth["hypothesis"].astype(np.int32)), pa.array(hypotheses)
        ),
    }
    return pa.table(columns)
