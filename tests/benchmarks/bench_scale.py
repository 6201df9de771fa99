"""Wall time and peak memory of every step, by its own command line, for cohorts of several sizes side by side.

    python tests/benchmarks/bench_scale.py --loci 100000 --loci 1000000 --samples 24 --output bench.json

README.md in this folder says how to read the numbers. Nothing here asserts on time.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import psutil
from rich.console import Console
from rich.table import Table

from epivi.base.errors import UserError
from epivi.base.files import write_json
from epivi.cohort.samples import read_sample_sheet
from epivi.config.load import Config, load_config
from epivi.loci.loci_file import even_ranges
from epivi.loci.store import LociStore
from epivi.simulate.templates import TEMPLATES, template_pedigree

SAMPLING_S = 0.05
MB = 1e6


@dataclass(frozen=True)
class Job:
    """One process. Memory is that of the process and all its descendants at once.

    peak_rss_mb counts resident pages, with those of mapped files; peak_private_mb without them.
    """

    wall_s: float
    cpu_s: float
    peak_rss_mb: float
    peak_private_mb: float


@dataclass(frozen=True)
class Step:
    """All jobs of a step: wall clock of the whole step, sums of CPU time, and the largest memory of one job.

    output_mb and output_files are of the folder in which the step leaves its results.
    """

    step: str
    jobs: int
    wall_s: float
    cpu_s: float
    longest_job_s: float
    peak_rss_mb: float
    peak_private_mb: float
    output_mb: float
    output_files: int


def run_job(arguments: Sequence[str], log: Path) -> Job:
    """Run `epivi <arguments>`; on failure print its log and raise SystemExit."""
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    rss, private = 0, 0
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, "-m", "epivi", *arguments], stdout=file, stderr=subprocess.STDOUT)
        watched = psutil.Process(process.pid)
        # os.wait4, not Popen.poll, reaps the process: only it tells what the process and its children have used.
        while not (reaped := os.wait4(process.pid, os.WNOHANG))[0]:
            memory = list(_tree_memory(watched))
            rss = max(rss, sum(resident for resident, _ in memory))
            private = max(private, sum(resident - shared for resident, shared in memory))
            time.sleep(SAMPLING_S)
    wall_s = time.perf_counter() - began
    _, status, usage = reaped
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"epivi {' '.join(arguments)}\nended with status {process.returncode}:\n{log.read_text()}")
    # A peak between two samples shows in the kernel's own record, which is that of the largest single process.
    rss = max(rss, usage.ru_maxrss * 1024)
    return Job(wall_s, usage.ru_utime + usage.ru_stime, rss / MB, private / MB)


def _tree_memory(process: psutil.Process) -> Iterable[tuple[int, int]]:
    """Resident and shared (file-backed) bytes of a process and each of its descendants."""
    try:
        members = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in members:
        try:
            memory = member.memory_info()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        yield memory.rss, memory.shared


class Bench:
    """Runs the steps of one cohort in a folder of its own and keeps what each took."""

    def __init__(self, folder: Path, parallel_jobs: int) -> None:
        self.folder = folder
        self.parallel_jobs = parallel_jobs
        self.steps: list[Step] = []

    def run(self, step: str, jobs: Sequence[Sequence[str]], output: Path) -> None:
        """Run the jobs of a step, `parallel_jobs` at a time; each job is the arguments of `epivi`."""
        began = time.perf_counter()
        logs = [self.folder / "logs" / f"{step}-{number}.log" for number in range(len(jobs))]
        with ThreadPoolExecutor(self.parallel_jobs) as pool:
            done = list(pool.map(run_job, jobs, logs))
        files = [path for path in (output, *output.rglob("*")) if path.is_file()]
        self.steps.append(
            Step(
                step=step,
                jobs=len(jobs),
                wall_s=time.perf_counter() - began,
                cpu_s=sum(job.cpu_s for job in done),
                longest_job_s=max(job.wall_s for job in done),
                peak_rss_mb=max(job.peak_rss_mb for job in done),
                peak_private_mb=max(job.peak_private_mb for job in done),
                output_mb=sum(path.stat().st_size for path in files) / MB,
                output_files=len(files),
            )
        )
        print(f"{self.folder.name}: {step}: {self.steps[-1].wall_s:.1f} s", file=sys.stderr)


def line(step: str, *positional: str, **options: object) -> list[str]:
    """Arguments of `epivi`: line("ingest", "a.cov", sample="a") is ["ingest", "a.cov", "--sample", "a"]."""
    return [step, *positional, *(word for name, value in options.items() for word in (f"--{name}", str(value)))]


def simulate(
    bench: Bench, n_loci: int, n_samples: int, template: str, contigs: int, threads: int, config: str
) -> Config:
    """Draw the cohort: as many families of the template as the samples need, the surplus individuals unsampled."""
    members = len(template_pedigree(template, 1).individuals)
    families = math.ceil(n_samples / members)
    cohort = bench.folder / "cohort"
    arguments = line(
        "simulate",
        output=cohort,
        seed=1,
        template=template,
        families=families,
        unsampled=families * members - n_samples,
        loci=n_loci,
        contigs=contigs,
        config=config,
        threads=threads,
    )
    bench.run("simulate", [arguments], cohort / "counts")
    return load_config(str(cohort / "config.yaml"))


def measure(bench: Bench, settings: Config, threads: int) -> None:
    """Every step of the workflow in turn, from the samples' files to the manifest."""
    cohort, out = bench.folder / "cohort", bench.folder / "results"
    config = cohort / "config.yaml"
    sheet = read_sample_sheet(cohort / "samples.tsv")
    counts = [str(out / "counts" / f"{sample}.parquet") for sample in sheet.samples]
    loci, fit, compare = out / "loci", out / "fit", out / "compare"
    fitted = {
        "loci": loci,
        "samples": cohort / "samples.tsv",
        "pedigree": cohort / "pedigree.tsv",
        "config": config,
        "threads": threads,
    }
    bench.run(
        "ingest",
        [
            line("ingest", path, sample=sample, format=kind, config=config, output=count, qc=f"{count}.qc.json")
            for path, sample, kind, count in zip(sheet.paths, sheet.samples, sheet.formats, counts, strict=True)
        ],
        out / "counts",
    )
    bench.run("assemble", [line("assemble", *counts, output=loci, config=config, threads=threads)], loci)
    quality = line("quality", output=out / "quality", **{name: fitted[name] for name in fitted if name != "threads"})
    bench.run("quality", [quality], out / "quality")
    bench.run("compile", [line("compile")], out / "nothing")
    bench.run("fit", [line("fit", output=fit, **fitted)], fit)
    shards = even_ranges(LociStore.open(loci).n_loci, settings.section("evidence")["shard_loci"])
    parts = [f"part-{number:04d}.parquet" for number in range(len(shards))]
    jobs = [
        line("evidence", fit=fit, **fitted, start=start, stop=stop, output=out / "evidence" / part)
        for part, (start, stop) in zip(parts, shards, strict=True)
    ]
    bench.run("evidence", jobs, out / "evidence")
    bench.run("compare", [line("compare", evidence=out / "evidence", output=compare, config=config)], compare)
    made = {"loci": loci, "compare": compare, "config": config}
    jobs = [
        line("posterior", evidence=out / "evidence" / part, output=out / "posterior" / part, **made) for part in parts
    ]
    bench.run("posterior", jobs, out / "posterior")
    bench.run("summary", [line("summary", results=out, config=config, threads=threads)], out / "manifest.json")


def table_of(sizes: Sequence[int], runs: Sequence[Sequence[Step]]) -> Table:
    """A row for each step, three columns for each size."""
    table = Table("step")
    for size in sizes:
        for title in (f"{size:,} loci: s", "CPU s", "peak MB"):
            table.add_column(title, justify="right")
    for steps in zip(*runs, strict=True):
        cells = [(f"{step.wall_s:.1f}", f"{step.cpu_s:.1f}", f"{step.peak_rss_mb:.0f}") for step in steps]
        table.add_row(steps[0].step, *(cell for row in cells for cell in row))
    return table


@click.command(context_settings={"show_default": True})
@click.option("--loci", "sizes", multiple=True, default=(100_000,), type=click.IntRange(1), help="Repeat for more.")
@click.option("--samples", "n_samples", default=24, type=click.IntRange(1), help="Samples of each cohort.")
@click.option("--template", default="three_generations", type=click.Choice(list(TEMPLATES)), help="Family shape.")
@click.option("--contigs", default=4, type=click.IntRange(1), help="Contigs, each with an equal part of the loci.")
@click.option("--shard-loci", default=1_000_000, type=click.IntRange(1), help="Loci in one evidence job.")
@click.option("--max-steps", type=click.IntRange(1), help="Steps of the fit, if not the default.")
@click.option("--threads", default=os.cpu_count() or 1, type=click.IntRange(1), help="Threads of one job.")
@click.option("--jobs", default=1, type=click.IntRange(1), help="Jobs of a step at a time.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keep all files here, instead of a temporary folder.")
@click.option("--output", type=click.Path(path_type=Path), help="Write the numbers here, as JSON.")
def main(
    sizes: tuple[int, ...],
    n_samples: int,
    template: str,
    contigs: int,
    shard_loci: int,
    max_steps: int | None,
    threads: int,
    jobs: int,
    folder: Path | None,
    output: Path | None,
) -> None:
    """Measure every step on simulated cohorts of the given sizes."""
    config = json.dumps(
        {"evidence": {"shard_loci": shard_loci}} | ({"fit": {"max_steps": max_steps}} if max_steps else {})
    )
    top = folder or Path(tempfile.mkdtemp(prefix="epivi-bench-"))
    runs = []
    try:
        for size in sizes:
            bench = Bench(top / f"{size}-loci", jobs)
            settings = simulate(bench, size, n_samples, template, contigs, threads, config)
            measure(bench, settings, threads)
            runs.append(bench.steps)
    except UserError as error:
        raise SystemExit(f"bench_scale: {error}") from None
    finally:
        if folder is None:
            shutil.rmtree(top)
    Console(width=max(80, 12 + 40 * len(sizes))).print(table_of(sizes, runs))
    if output is not None:
        record = {
            "samples": n_samples,
            "template": template,
            "threads": threads,
            "parallel_jobs": jobs,
            "cores": os.cpu_count(),
            "platform": platform.platform(),
            "python": platform.python_version(),
            "sizes": [{"loci": size, "steps": list(map(asdict, run))} for size, run in zip(sizes, runs, strict=True)],
        }
        write_json(output, record)


if __name__ == "__main__":
    main()
