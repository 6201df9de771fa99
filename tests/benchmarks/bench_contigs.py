"""The same loci on many contigs and on one, through every step of the workflow by its own command line.

    python tests/benchmarks/bench_contigs.py --contigs 100000 --samples 3 --loci 300000 --output contigs.json

README.md in this folder says how to read the numbers. Nothing here asserts on time.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
from bench_scale import Bench, Step, measure, simulate
from pyarrow import csv
from rich.console import Console
from rich.table import Table

from epivi.base.errors import UserError
from epivi.base.files import write_json
from epivi.simulate.templates import TEMPLATES
from epivi.tables.parquet import read_table

FIRST_POSITION = 100  # of a locus on its contig
COLUMNS = ["contig", "start", "end", "percentage", "methylated", "unmethylated"]  # of Bismark's coverage files


def spread(cohort: Path, target: Path, n_contigs: int) -> None:
    """Write the cohort again with its loci, which lie on one contig, in equal numbers on many; their gaps are kept."""
    pos0 = np.sort(read_table(cohort / "truth.parquet", "truth", ["pos"])["pos"].to_numpy())
    contig = np.arange(pos0.size) * n_contigs // pos0.size
    begin = pos0[np.searchsorted(contig, np.arange(n_contigs))] - FIRST_POSITION
    names = pa.array([f"scaffold_{number}" for number in range(1, n_contigs + 1)])
    (target / "counts").mkdir(parents=True)
    for path in sorted((cohort / "counts").iterdir()):
        table = csv.read_csv(path, csv.ReadOptions(column_names=COLUMNS), csv.ParseOptions(delimiter="\t"))
        start = table["start"].to_numpy()  # one-based
        of_row = contig[np.searchsorted(pos0, start - 1)]
        place = pa.array(start - begin[of_row])
        rows = pa.table([names.take(pa.array(of_row)), place, place, *table.columns[3:]], names=COLUMNS)
        with pa.CompressedOutputStream(str(target / "counts" / path.name), "gzip") as file:
            csv.write_csv(rows, file, csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none"))
    for name in ("samples.tsv", "pedigree.tsv", "config.yaml"):
        shutil.copyfile(cohort / name, target / name)


def table_of(names: Sequence[str], runs: Sequence[Sequence[Step]]) -> Table:
    """A row for each step, four columns for each cohort."""
    table = Table("step")
    for name in names:
        for title in (f"{name}: s", "CPU s", "peak MB", "files"):
            table.add_column(title, justify="right")
    for steps in zip(*runs, strict=True):
        cells = [(f"{s.wall_s:.1f}", f"{s.cpu_s:.1f}", f"{s.peak_rss_mb:.0f}", str(s.output_files)) for s in steps]
        table.add_row(steps[0].step, *(cell for row in cells for cell in row))
    return table


@click.command(context_settings={"show_default": True})
@click.option("--contigs", "n_contigs", default=100_000, type=click.IntRange(1))
@click.option("--loci", "n_loci", default=300_000, type=click.IntRange(1), help="Over all contigs.")
@click.option("--samples", "n_samples", default=3, type=click.IntRange(1))
@click.option("--template", default="trio", type=click.Choice(list(TEMPLATES)), help="Family shape.")
@click.option("--max-steps", default=100, type=click.IntRange(1), help="Steps of the fit.")
@click.option("--threads", default=os.cpu_count() or 1, type=click.IntRange(1), help="Threads of one job.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keep all files here, instead of a temporary folder.")
@click.option("--output", type=click.Path(path_type=Path), help="Write the numbers here, as JSON.")
def main(
    n_contigs: int,
    n_loci: int,
    n_samples: int,
    template: str,
    max_steps: int,
    threads: int,
    folder: Path | None,
    output: Path | None,
) -> None:
    """Measure every step on one cohort, with its loci on one contig and spread over many."""
    if n_contigs > n_loci:
        raise click.BadParameter(f"{n_contigs} for {n_loci} loci; expected at least one locus on each")
    top = folder or Path(tempfile.mkdtemp(prefix="epivi-bench-"))
    try:
        one, many = Bench(top / "1-contig", 1), Bench(top / f"{n_contigs}-contigs", 1)
        config = json.dumps({"fit": {"max_steps": max_steps}})
        settings = simulate(one, n_loci, n_samples, template, 1, threads, config)
        one.steps.clear()
        # What this process holds would be in the kernel's record of every process that it starts.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            pool.submit(spread, one.folder / "cohort", many.folder / "cohort", n_contigs).result()
        for bench in (many, one):
            measure(bench, settings, threads)
    except UserError as error:
        raise SystemExit(f"bench_contigs: {error}") from None
    finally:
        if folder is None:
            shutil.rmtree(top)
    Console(width=120).print(table_of([f"{n_contigs:,} contigs", "1 contig"], [many.steps, one.steps]))
    if output is not None:
        record = {
            "loci": n_loci,
            "samples": n_samples,
            "template": template,
            "max_steps": max_steps,
            "threads": threads,
            "cores": os.cpu_count(),
            "platform": platform.platform(),
            "cohorts": [
                {"contigs": contigs, "steps": list(map(asdict, bench.steps))}
                for contigs, bench in ((n_contigs, many), (1, one))
            ],
        }
        write_json(output, record)


if __name__ == "__main__":
    main()
