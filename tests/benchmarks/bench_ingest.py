"""Seconds and peak memory of `epivi ingest` on simulated files of every format, with gzip -dc and pandas beside it.

    python tests/benchmarks/bench_ingest.py --rows 5000000 --reads 100000 --output ingest.json

README.md in this folder says how to read the numbers. Nothing here asserts on time.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pysam
from pyarrow import csv
from rich.console import Console
from rich.table import Table

from epivi.base.files import write_json

SEED = 1
N_CONTIGS = 20
MEAN_COVERAGE = 13
MB = 1e6
READ_BASES = 4000
BASES = np.frombuffer(b"ACGT", dtype=np.uint8)
COMPLEMENT = np.zeros(256, dtype=np.uint8)
COMPLEMENT[BASES] = BASES[::-1]
PANDAS = "import sys, pandas; pandas.read_csv(sys.argv[1], sep='\\t', header=None, skiprows=int(sys.argv[2]))"


@dataclass(frozen=True)
class Run:
    """One process, the fastest of several by the clock; memory is that of the largest process under it."""

    wall_s: float
    cpu_s: float
    peak_mb: float


@dataclass(frozen=True)
class Sites:
    """Simulated cytosines; every array is [rows]. Positions are 0-based, whole CpGs, sorted within contigs."""

    contig: pa.DictionaryArray
    pos0: np.ndarray
    meth: np.ndarray
    total: np.ndarray

    @property
    def percent(self) -> np.ndarray:
        return 100.0 * self.meth / self.total


def simulate_sites(n_rows: int) -> Sites:
    """About one CpG in 60 bases, three quarters of them methylated, 13 reads each."""
    generator = np.random.default_rng(SEED)
    contig = np.arange(n_rows) * N_CONTIGS // n_rows
    walked = np.cumsum(generator.geometric(1 / 60, n_rows) + 1)
    pos0 = walked - walked[np.searchsorted(contig, contig)] + 10_000
    total = generator.poisson(MEAN_COVERAGE - 1, n_rows) + 1
    level = np.where(generator.random(n_rows) < 0.75, generator.beta(9, 1, n_rows), generator.beta(1, 15, n_rows))
    names = pa.array([f"chr{number + 1}" for number in range(N_CONTIGS)])
    codes = pa.array(contig.astype(np.int32))
    return Sites(pa.DictionaryArray.from_arrays(codes, names), pos0, generator.binomial(total, level), total)


def _same(value: str, sites: Sites) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(sites.pos0), np.int32)), pa.array([value]))


def _strands(sites: Sites, names: str = "+-") -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array((np.arange(len(sites.pos0)) % 2).astype(np.int32)), list(names))


# format -> preamble, and the columns of the rows
FORMATS: dict[str, tuple[str, Callable[[Sites], list]]] = {
    "bismark_cov": ("", lambda s: [s.contig, s.pos0 + 1, s.pos0 + 1, s.percent, s.meth, s.total - s.meth]),
    "cytosine_report": (
        "",
        lambda s: [s.contig, s.pos0 + 1, _strands(s), s.meth, s.total - s.meth, _same("CG", s), _same("CGA", s)],
    ),
    "bedmethyl": (
        "",
        lambda s: [
            s.contig, s.pos0, s.pos0 + 1, _same("m", s), s.total, _strands(s), s.pos0, s.pos0 + 1, _same("255,0,0", s),
            s.total, np.round(s.percent, 2), s.meth, s.total - s.meth, *[np.zeros(len(s.pos0), np.int32)] * 5,
        ],
    ),
    "methylome": (
        "seqnames\tstart\tstrand\tcontext\tcounts.methylated\tcounts.total\n",
        lambda s: [s.contig, s.pos0 + 1, _strands(s), _same("CG", s), s.meth, s.total],
    ),
    "methyldackel": (
        'track type="bedGraph" description="x CpG methylation levels"\n',
        lambda s: [s.contig, s.pos0, s.pos0 + 1, s.percent.astype(np.int32), s.meth, s.total - s.meth],
    ),
    "pb_cpg": (
        "##pileup-mode=count\n",
        lambda s: [
            s.contig, s.pos0, s.pos0 + 1, np.round(s.percent, 1), _same("Total", s), s.total, s.meth, s.total - s.meth,
            _same("0.95", s), _same("0.05", s),
        ],
    ),
    "allc": (
        "",
        lambda s: [s.contig, s.pos0 + 1, _strands(s), _same("CGA", s), s.meth, s.total, np.ones(len(s.pos0), np.int32)],
    ),
    "cgmap": (
        "",
        lambda s: [
            s.contig, _same("C", s), s.pos0 + 1, _same("CG", s), _same("CG", s), np.round(s.percent / 100, 2), s.meth,
            s.total,
        ],
    ),
    "dnmtools": (
        "",
        lambda s: [s.contig, s.pos0, _strands(s), _same("CpG", s), np.round(s.percent / 100, 6), s.total],
    ),
    "biscuit": (
        "",
        lambda s: [s.contig, s.pos0, s.pos0 + 1, pa.array([f"{level:.3f}" for level in s.percent / 100]), s.total],
    ),
    "methylkit": (
        "chrBase\tchr\tbase\tstrand\tcoverage\tfreqC\tfreqT\n",
        lambda s: [
            _same("x", s), s.contig, s.pos0 + 1, _strands(s, "FR"), s.total, np.round(s.percent, 2),
            np.round(100 - s.percent, 2),
        ],
    ),
    "dss": ("chr\tpos\tN\tX\n", lambda s: [s.contig, s.pos0 + 1, s.total, s.meth]),
    "beta_matrix": (
        "contig\tposition\ts\tother\n",
        lambda s: [s.contig, s.pos0 + 1, np.round(s.percent / 100, 4), np.round(s.percent / 100, 3)],
    ),
}  # fmt: skip


def write_table(path: Path, format_name: str, n_rows: int) -> Path:
    """A gzip file of the format, as `gzip -6` writes it."""
    sites = simulate_sites(n_rows)
    preamble, columns = FORMATS[format_name]
    table = pa.table(
        [pa.array(column) for column in columns(sites)], names=[str(i) for i in range(len(columns(sites)))]
    )
    with open(path, "wb") as file:
        file.write(preamble.encode())
        options = csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
        csv.write_csv(table, file, options)
    subprocess.run(["gzip", "-f", str(path)], check=True)
    return path.with_name(f"{path.name}.gz")


def write_modbam(path: Path, n_reads: int) -> Path:
    """Reads of about 4,000 bases on two contigs, 5mC called at every CpG of the read, with its index."""
    generator = np.random.default_rng(SEED)
    length = 500 * max(n_reads, 100)
    header = {"HD": {"VN": "1.6", "SO": "coordinate"}, "SQ": [{"SN": f"chr{i}", "LN": length} for i in (1, 2)]}
    with pysam.AlignmentFile(str(path), "wb", header=header) as bam:
        for contig in range(2):
            genome = BASES[generator.integers(0, 4, length)]
            starts = np.sort(generator.integers(0, length - 2 * READ_BASES, n_reads // 2))
            for start, size in zip(
                starts, generator.integers(READ_BASES // 2, READ_BASES * 3 // 2, len(starts)), strict=True
            ):
                bam.write(_modified_read(generator, bam.header, contig, int(start), genome[start : start + size]))
    pysam.index(str(path))
    return path


def _modified_read(
    generator: np.random.Generator, header: pysam.AlignmentHeader, contig: int, start: int, bases: np.ndarray
) -> pysam.AlignedSegment:
    is_reverse = bool(generator.integers(2))
    sequenced = COMPLEMENT[bases[::-1]] if is_reverse else bases
    is_cpg = np.append((sequenced[:-1] == ord("C")) & (sequenced[1:] == ord("G")), False)
    calls = np.flatnonzero(is_cpg[sequenced == ord("C")])
    read = pysam.AlignedSegment(header)
    read.query_name, read.flag, read.mapping_quality = f"{contig}:{start}", 16 * is_reverse, 60
    read.reference_id, read.reference_start = contig, start
    read.query_sequence = bases.tobytes().decode()
    half = len(bases) // 2
    read.cigarstring = f"{half}M2D{len(bases) - half}M"
    levels = np.where(generator.random(len(calls)) < 0.7, 240, generator.integers(0, 160, len(calls)))
    skips = np.diff(calls, prepend=-1) - 1
    read.set_tag("MM", f"C+m?{''.join(f',{skip}' for skip in skips)};")
    read.set_tag("ML", array("B", levels.tolist()))
    return read


def in_a_process(function: Callable[..., Path], *arguments: object) -> Path:
    """Its result, from a process of its own: the kernel counts the peak of a parent as that of its children."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def measured(command: Sequence[str], repeats: int) -> Run:
    """The fastest of several runs, each a process of its own; raises RuntimeError with its last words if it fails."""
    return min((_measured_once(command) for _ in range(repeats)), key=lambda run: run.wall_s)


def _measured_once(command: Sequence[str]) -> Run:
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        _, status, used = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"{' '.join(command)}: {errors.read().decode()[-500:]}")
    return Run(wall_s, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / MB)


def ingest_command(path: Path, format_name: str, threads: int) -> list[str]:
    config = json.dumps({"loci": {"array": {"pseudo_reads": 100}}})
    outputs = ["--output", str(path.parent / "out.parquet"), "--qc", str(path.parent / "out.json")]
    return [
        sys.executable, "-m", "epivi", "ingest", str(path), "--sample", "s", *outputs, "--config", config,
        "--format", format_name, "--threads", str(threads),
    ]  # fmt: skip


def bench_text(path: Path, format_name: str, repeats: int) -> dict[str, Run]:
    """All readers of one file, one after the other."""
    n_preamble = str(FORMATS[format_name][0].count("\n"))
    return {
        "gzip -dc": measured(["gzip", "-dc", str(path)], repeats),
        "epivi, 1 thread": measured(ingest_command(path, format_name, 1), repeats),
        "epivi, 2 threads": measured(ingest_command(path, format_name, 2), repeats),
        "pandas": measured([sys.executable, "-c", PANDAS, str(path), n_preamble], repeats),
    }


def show(title: str, runs: dict[str, Run], items: dict[str, float]) -> None:
    """A table of the runs of one file; items: how many of what the file holds, for the rates."""
    table = Table(
        "", "s", "CPU s", "peak MB", *(f"{name}/s" for name in items), *(f"{name}/CPU s" for name in items), title=title
    )
    for name, run in runs.items():
        rates = [f"{number / seconds:,.0f}" for seconds in (run.wall_s, run.cpu_s) for number in items.values()]
        table.add_row(name, f"{run.wall_s:.2f}", f"{run.cpu_s:.2f}", f"{run.peak_mb:.0f}", *rates)
    Console(width=150).print(table)


@click.command()
@click.option("--rows", default=5_000_000, show_default=True, help="Rows of every text file.")
@click.option("--reads", default=100_000, show_default=True, help="Reads of the modBAM file.")
@click.option(
    "--format", "formats", multiple=True, type=click.Choice([*FORMATS, "modbam"]), help="Only these; may repeat."
)
@click.option("--repeats", default=3, show_default=True, help="Runs of each, of which the fastest counts.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where the files are made and kept.")
@click.option("--output", type=click.Path(path_type=Path), help="JSON file of the numbers.")
def main(
    rows: int, reads: int, formats: tuple[str, ...], repeats: int, folder: Path | None, output: Path | None
) -> None:
    """Measure every format, or those that are asked for."""
    os.environ["OMP_NUM_THREADS"] = "1"
    scratch = folder or Path(tempfile.mkdtemp())
    scratch.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for format_name in formats or (*FORMATS, "modbam"):
        if format_name == "modbam":
            path = in_a_process(write_modbam, scratch / "reads.bam", reads)
            items = {"reads": reads, "Mbases": reads * READ_BASES / 1e6}
            runs = {f"epivi, {n} threads": measured(ingest_command(path, format_name, n), repeats) for n in (1, 2)}
        else:
            path, items = in_a_process(write_table, scratch / format_name, format_name, rows), {"rows": rows}
            runs = bench_text(path, format_name, repeats)
        show(f"{format_name}: {path.stat().st_size / MB:.0f} MB", runs, items)
        found[format_name] = {name: asdict(run) for name, run in runs.items()}
        if output:
            write_json(output, {"rows": rows, "reads": reads, "repeats": repeats, "runs": found})
    if not folder:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
