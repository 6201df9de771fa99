"""A cohort grown by one sample against a fresh assembly, and the speed of reading loci from one panel and from two.

    python tests/benchmarks/bench_growth.py --loci 1000000 --samples 24 --output growth.json

README.md in this folder says how to read the numbers. Nothing here asserts on time.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from epivi.base.files import write_json
from epivi.ingest.columns import INGEST_TABLES
from epivi.loci.loci_file import LocusBlock
from epivi.loci.store import LociStore
from epivi.tables.columns import CONTEXTS, STRANDS
from epivi.tables.parquet import Provenance, TableWriter

SEED = 1
N_CONTIGS = 4
MEAN_COVERAGE = 6
RUN_LOCI = 16  # as in a minibatch of the fit
BLOCK_LOCI = 4096
MB = 1e6


@dataclass(frozen=True)
class Assembly:
    """One `epivi assemble`, a process of its own; peak_mb is the kernel's record of it."""

    name: str
    wall_s: float
    cpu_s: float
    peak_mb: float
    written_mb: float


@dataclass(frozen=True)
class Reading:
    """Microseconds of processor for a block: handed out, and copied to double precision as well, which touches all."""

    folder: str
    loci: int
    panels: int
    run_us: float
    run_converted_us: float
    block_us: float
    block_converted_us: float


def write_cohort(folder: Path, n_loci: int, n_samples: int) -> list[Path]:
    """Counts files of CpGs about 100 bp apart, whose coverage varies from locus to locus and from sample to sample."""
    random = np.random.default_rng(SEED)
    pos0 = np.cumsum(random.integers(2, 200, n_loci)).astype(np.int32)
    mean = random.gamma(3, MEAN_COVERAGE / 3, n_loci)
    level = random.beta(0.7, 0.4, n_loci)
    ends = np.linspace(0, n_loci, N_CONTIGS + 1).astype(int)
    paths = []
    for sample in range(n_samples):
        total = random.poisson(mean).astype(np.int32)
        meth = random.binomial(total, level).astype(np.int32)
        paths.append(folder / f"sample{sample}.parquet")
        with TableWriter(paths[-1], INGEST_TABLES["counts"], Provenance("counts", SEED, "", "")) as writer:
            for contig, (start, stop) in enumerate(itertools.pairwise(ends.tolist()), 1):
                seen = start + np.flatnonzero(total[start:stop])
                columns = {"pos": pos0[seen], "meth": meth[seen], "total": total[seen]}
                writer.write(labelled(columns, f"chr{contig}"))
                writer.flush()
    return paths


def labelled(columns: dict[str, np.ndarray], contig: str) -> pa.Table:
    """The columns with contig, strand and context, which are the same in all rows."""
    codes = pa.array(np.zeros(len(columns["pos"]), np.int8))
    labels = {"contig": [contig], "strand": STRANDS[:1], "context": CONTEXTS[:1]}
    text = {name: pa.DictionaryArray.from_arrays(codes, pa.array(values)) for name, values in labels.items()}
    return pa.table({name: text.get(name, columns.get(name)) for name in (c.name for c in INGEST_TABLES["counts"])})


def assemble(name: str, counts: Sequence[Path], folder: Path, threads: int) -> Assembly:
    """Run the command; what it has written are the files that were not there before."""
    before = files_of(folder)
    config = json.dumps({"loci": {"min_covered_samples": 0.5}})
    line = [sys.executable, "-m", "epivi", "--quiet", "assemble", *map(str, counts)]
    line += ["--output", str(folder), "--config", config, "--threads", str(threads)]
    began = time.perf_counter()
    process = subprocess.Popen(line)
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{name}: ended with status {process.returncode}")
    written = sum(size for file, size in files_of(folder).items() if file not in before)
    return Assembly(name, wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / MB, written / MB)


def files_of(folder: Path) -> dict[tuple[str, int, int], int]:
    """Files by name, number and time of writing -> bytes."""
    found = ((path, path.stat()) for path in folder.rglob("*") if path.is_file())
    return {(str(path), status.st_ino, status.st_mtime_ns): status.st_size for path, status in found}


def read(folder: Path, repeats: int) -> Reading:
    """The fastest of several rounds over the same blocks, all pages in memory."""
    store = LociStore.open(folder)
    random = np.random.default_rng(SEED)
    us = []
    for size, number in ((RUN_LOCI, 4000), (BLOCK_LOCI, 200)):
        index = store.global_blocks(size)
        places = [index[int(block)] for block in random.integers(0, len(index), number)]
        buffer = np.empty((size, len(store.samples)))

        def converted(block: LocusBlock, buffer: np.ndarray = buffer) -> None:
            for counts in (block.meth, block.total):
                np.copyto(buffer[: len(counts)], counts)

        for use in (handed_out, converted):
            us.append(min(round_s(store, places, use) for _ in range(repeats)) / number * 1e6)
    return Reading(str(folder), store.n_loci, len(getattr(store, "panels", "1")), *us)


def round_s(store: LociStore, places: Sequence[tuple[str, int, int]], use: Callable[[LocusBlock], None]) -> float:
    began = time.thread_time()
    for place in places:
        use(store.block(*place))
    return time.thread_time() - began


def handed_out(block: LocusBlock) -> None:
    pass


def show(assemblies: Sequence[Assembly], readings: Sequence[Reading]) -> None:
    console = Console(width=120)
    if assemblies:
        table = Table("assembly", "s", "CPU s", "peak MB", "MB written")
        for run in assemblies:
            cells = (run.wall_s, run.cpu_s, run.peak_mb, run.written_mb)
            table.add_row(run.name, *(f"{value:.1f}" for value in cells))
        console.print(table)
    table = Table("us of processor", "loci", "panels", "run", "and converted", "block", "and converted")
    for reading in readings:
        cells = (reading.run_us, reading.run_converted_us, reading.block_us, reading.block_converted_us)
        table.add_row(reading.folder, f"{reading.loci:,}", str(reading.panels), *(f"{value:.1f}" for value in cells))
    console.print(table)


@click.command(context_settings={"show_default": True})
@click.option("--loci", "n_loci", default=1_000_000, type=click.IntRange(1))
@click.option("--samples", "n_samples", default=24, type=click.IntRange(1), help="Before the cohort grows by one.")
@click.option("--threads", default=1, type=click.IntRange(1), help="Of epivi assemble.")
@click.option("--repeats", default=5, type=click.IntRange(1), help="Rounds of reading.")
@click.option("--read", "folders", multiple=True, type=click.Path(path_type=Path), help="Only read these loci.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keep all files here, instead of a temporary folder.")
@click.option("--output", type=click.Path(path_type=Path), help="Write the numbers here, as JSON.")
def main(
    n_loci: int,
    n_samples: int,
    threads: int,
    repeats: int,
    folders: tuple[Path, ...],
    folder: Path | None,
    output: Path | None,
) -> None:
    """Assemble a simulated cohort, grow it by a sample, assemble the grown one afresh, and read all three."""
    assemblies: list[Assembly] = []
    top = folder or Path(tempfile.mkdtemp(prefix="epivi-bench-"))
    try:
        if not folders:
            top.mkdir(exist_ok=True)
            counts = write_cohort(top, n_loci, n_samples + 1)
            grown, fresh = top / "grown", top / "fresh"
            assemblies.append(assemble(f"fresh, {n_samples} samples", counts[:-1], grown, threads))
            shutil.copytree(grown, top / "before")
            assemblies.append(assemble(f"grown to {n_samples + 1}", counts, grown, threads))
            assemblies.append(assemble(f"fresh, {n_samples + 1} samples", counts, fresh, threads))
            assemblies.append(assemble(f"nothing new, {n_samples + 1} samples", counts, grown, threads))
            folders = (top / "before", fresh, grown)
        readings = [read(path, repeats) for path in folders]
    finally:
        if folder is None:
            shutil.rmtree(top)
    show(assemblies, readings)
    if output is not None:
        write_json(output, {"assemblies": list(map(asdict, assemblies)), "readings": list(map(asdict, readings))})


if __name__ == "__main__":
    main()
