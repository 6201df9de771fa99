"""Counts of a few samples as text, through `epivi ingest` and `epivi assemble` as a user calls them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from click.testing import CliRunner, Result

from epivi.commands import assemble, ingest
from epivi.loci.store import LociStore


class Drawn(NamedTuple):
    """Reads of one sample at CpGs of some contigs."""

    contig: np.ndarray  # str [L]
    pos0: np.ndarray  # int [L]
    meth: np.ndarray  # int [L]
    total: np.ndarray  # int [L]

    def named(self, old: str, new: str) -> Drawn:
        """With another spelling of the contigs' names."""
        return self._replace(contig=np.char.replace(self.contig, old, new))

    def moved(self, bases: int) -> Drawn:
        return self._replace(pos0=self.pos0 + bases)


def cpgs(seed: int, contigs: tuple[str, ...] = ("chr1", "chr2"), loci: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Contig and position of CpGs, about 60 bp apart."""
    rng = np.random.default_rng(seed)
    pos0 = [10 + np.cumsum(2 + rng.geometric(1 / 60, loci // len(contigs))) for _ in contigs]
    return np.repeat(contigs, loci // len(contigs)), np.concatenate(pos0)


def drawn(
    seed: int, contig: np.ndarray, pos0: np.ndarray, level: float | np.ndarray = 0.7, depth: float = 10.0
) -> Drawn:
    """Reads with Poisson coverage; loci without reads are left out."""
    rng = np.random.default_rng([seed, 1])
    total = rng.poisson(depth, len(pos0))
    meth = rng.binomial(total, level)
    seen = total > 0
    return Drawn(contig[seen], pos0[seen], meth[seen], total[seen])


def coverage_text(sample: Drawn, *, zero_based: bool = False) -> str:
    """Bismark coverage, one base a row; with zero-based starts and ends if asked for, as a BED file has them."""
    lines = []
    for contig, pos0, meth, total in zip(*(column.tolist() for column in sample), strict=True):
        start, end = (pos0, pos0 + 1) if zero_based else (pos0 + 1, pos0 + 1)
        lines.append(f"{contig}\t{start}\t{end}\t{100 * meth / total:.6f}\t{meth}\t{total - meth}")
    return "\n".join(lines) + "\n"


def report_text(sample: Drawn) -> str:
    """A cytosine report of + strand CpGs."""
    lines = [
        f"{contig}\t{pos0 + 1}\t+\t{meth}\t{total - meth}\tCG\tCGA"
        for contig, pos0, meth, total in zip(*(column.tolist() for column in sample), strict=True)
    ]
    return "\n".join(lines) + "\n"


def write_sheet(folder: Path, rows: list[tuple[str, ...]], columns: str = "sample individual path") -> Path:
    path = folder / "samples.tsv"
    path.write_text("\n".join("\t".join(row) for row in [tuple(columns.split()), *rows]) + "\n")
    return path


def ingested(folder: Path, name: str, text: str | bytes, config: Mapping[str, Any] | None = None) -> Path:
    """A sample's counts file."""
    source = folder / f"{name}.txt"
    source.write_bytes(text.encode() if isinstance(text, str) else text)
    counts = folder / f"{name}.parquet"
    options = ["--sample", name, "--output", str(counts), "--qc", str(folder / f"{name}.json")]
    done = CliRunner().invoke(
        ingest.command, [str(source), *options, "--config", json.dumps(config or {})], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    return counts


def assembled(folder: Path, texts: Mapping[str, str | bytes], config: Mapping[str, Any] | None = None) -> Result:
    """The outcome of `epivi assemble` of samples given as text, line 2 and on of a sheet; loci are in folder/loci."""
    counts = [str(ingested(folder, name, text, config)) for name, text in texts.items()]
    sheet = write_sheet(folder, [(name, name, f"{name}.txt") for name in texts])
    options = ["--output", str(folder / "loci"), "--samples", str(sheet), "--config", json.dumps(config or {})]
    return CliRunner().invoke(assemble.command, [*counts, *options])


def loci_of(folder: Path) -> dict[tuple[str, int], list[int]]:
    """Total reads of every sample by contig and position of the assembled loci."""
    store = LociStore.open(folder / "loci")
    return {
        (block.contig, int(pos)): total.tolist()
        for block in store.blocks(1000)
        for pos, total in zip(block.pos0, block.total, strict=True)
    }
