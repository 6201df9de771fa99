"""Error of the log Bayes factors against a gold standard, and SDs of the field by every method, cell by cell.

    python tests/benchmarks/bench_accuracy.py --individuals 12 --coverage 5 --loci 300 --output accuracy

A cell is a number of individuals and a mean coverage. Every cell is written to its own file in the output folder as
soon as it is done; `--report` prints the tables of the files that are there. Needs pytest installed, whose test modules
draw the cohorts. How to read the tables:

- Log Bayes factors are against `reset`, and a locus counts with its worst hypothesis. `at best` and `at worst` are
  the shares within .02 nats with two standard errors of gold to either side; gold's noise is in all of them.
- `largest mean` is the mean error over loci of the log Bayes factor that is furthest off on average: what the evidences
  are off by at all loci alike, which `compare.tilt_nats` allows for several times.
- A locus whose error gold leaves in doubt, and the loci with the widest corrections, are sampled eight times longer,
  and those that are then still in doubt 64 times longer than at first.
- Shares: root mean square error of a level over that of the step that its `inner_error` is a share of, less gold's own
  error, and in brackets with it; errors and steps are against the mean of a locus's hypotheses. At the loci that were
  sampled longer.
- `outer` is production against the same level with gold's outer nodes: the lattice's own error.
- SDs are at the variance components that loci were drawn with, under the epigenetic hypothesis with a covariate; the
  ranges hold the reference's error, which the last line of a cell states.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "slow"))

import accuracy_cases as cases

from epivi.families.transmission.refinement import INNER_METHODS
from epivi.tables.columns import EVIDENCE_GOAL
from epivi.verify.calibrate import share_columns

OUTER_NODES, SCRAMBLES, POINTS = 1024, 16, 256  # of gold
LONGER = 4  # times the scrambles, and twice the points, where it matters; and once more where that leaves doubt
CHUNK_LOCI = 50
METHODS = ("ep", "lrvb", "laplace", "meanfield")
SD_DRAWS = 20_000
Row = list[str]


def measure(
    study: cases.Setup, coverage: float, loci: int, hard: int, seed: int
) -> tuple[cases.Comparison, np.ndarray]:
    """All loci, and then the loci in doubt and the `hard` hardest again with more points; which these are."""
    drawn = cases.draw_loci(study, coverage, loci, seed)
    meth, total = drawn.meth.astype(np.uint16), drawn.total.astype(np.uint16)

    def compared(rows: np.ndarray, scrambles: int, points: int, seed: int) -> cases.Comparison:
        pieces = []
        for part in np.array_split(rows, -(-len(rows) // CHUNK_LOCI)):
            counts = meth[part], total[part]
            gold = cases.gold_evidence(study.model, *counts, OUTER_NODES, scrambles, points, seed)
            pieces.append(cases.compare(study.model, *counts, part, gold))
        return cases.Comparison(*(np.concatenate(column) for column in zip(*pieces, strict=True)))

    found = compared(np.arange(loci), SCRAMBLES, POINTS, seed)
    rows = cases.to_resolve(found, hard, most=loci // 16)
    found = cases.with_rows(found, rows, compared(rows, LONGER * SCRAMBLES, 2 * POINTS, seed + 1000))
    still = cases.in_doubt(found, most=loci // 16)
    if len(still):
        found = cases.with_rows(found, still, compared(still, LONGER**2 * SCRAMBLES, 4 * POINTS, seed + 2000))
    return found, rows


def evidence_row(found: cases.Comparison) -> Row:
    error, se = cases.bayes_factor_error(found)
    mean, mean_se = cases.common_error(found)
    at = int(np.abs(mean).argmax())
    is_miss = error > EVIDENCE_GOAL
    within = share_columns(int((~is_miss).sum()), len(error), "within")
    share = [np.mean(found.inner_method == INNER_METHODS.index(name)) for name in ("ep", "importance")]
    return [
        str(len(error)),
        f"{within['share']:.4f} ({within['lower']:.3f} to {within['upper']:.3f})",
        f"{np.mean(error - 2 * se <= EVIDENCE_GOAL):.4f} / {np.mean(error + 2 * se <= EVIDENCE_GOAL):.4f}",
        f"{np.quantile(error, 0.5):.4f}, {np.quantile(error, 0.99):.4f}, {error.max():.4f}",
        f"{np.quantile(se, 0.5):.4f}, {np.quantile(se, 0.99):.4f}",
        f"{mean[at]:.4f} ({mean_se[at]:.4f})",
        f"{share[0]:.3f}, {share[1]:.3f}",
        f"{found.is_flagged.mean():.3f}",
        f"{(is_miss & found.is_flagged).sum()} of {is_miss.sum()}",
    ]


def share_row(found: cases.Comparison, rows: np.ndarray) -> Row:
    """Errors of the levels over what their estimates are shares of, at the loci sampled longest."""
    part = cases.Comparison(*(column[rows] for column in found))
    columns = [str(len(rows))]
    step = cases.against_mean(part.propagated - part.laplace)
    for value, estimate in ((part.laplace, cases.against_mean(part.correction)), (part.propagated, step)):
        error = cases.against_mean(value - part.gold)
        share, upper = cases.measured_share(error, part.against_mean_se, estimate)
        columns += [
            f"{np.sqrt((error**2).mean()):.4f}",
            f"{np.sqrt((estimate**2).mean()):.4f}",
            f"{share:.2f} (<{upper:.2f})",
        ]
    return [*columns, f"{np.sqrt((part.against_mean_se**2).mean()):.4f}"]


def stated_row(found: cases.Comparison) -> Row:
    """Root mean square error over that of inner_error, by the level that production stopped at; outer errors apart."""
    columns = []
    for number, value in ((0, found.laplace), (1, found.propagated)):
        at = found.inner_method == number
        if not at.any():
            columns += ["0", "", ""]
            continue
        error, se = cases.against_mean(value - found.gold)[at], found.against_mean_se[at]
        share, upper = cases.measured_share(error, se, found.inner_error[at])
        outer = np.abs(cases.against_reset(found.production - value)[at]).max(1)
        columns += [str(at.sum()), f"{share:.2f} (<{upper:.2f})", f"{np.quantile(outer, 0.99):.4f}"]
    return columns


def spread_rows(file: np.lib.npyio.NpzFile) -> list[Row]:
    rows = []
    for method in METHODS:
        row = [method]
        for part in cases.SpreadRatios._fields:
            ratio = file[f"sd_{method}_{part}"]
            low, middle, high = np.nanquantile(ratio, [0.01, 0.5, 0.99])
            row.append(f"{middle:.4f} ({low:.4f} to {high:.4f})")
        rows.append([*row, str(int(np.isnan(file[f"sd_{method}_baseline"]).sum()))])
    error = [f"{np.quantile(file[f'sd_se_{part}'], 0.5):.4f}" for part in cases.SpreadRatios._fields]
    return [*rows, ["(error of the reference)", *error, ""]]


def report(folder: Path) -> None:
    console = Console(width=190)
    cell = ["individuals", "reads"]
    tables = {
        "log Bayes factors": [
            "loci", "within .02 (95 % interval)", "at best / at worst", "error: median, 99 %, max",
            "gold SE: median, 99 %", "largest mean (SE)",
            "to EP, sampled", "flagged", "misses flagged",
        ],
        "what the shares of epivi.families.transmission.refinement stand for (hardest loci)": [
            "loci", "Laplace rms", "correction rms", "share", "EP rms", "step rms", "share", "gold SE",
        ],
        "rms error over rms inner_error": ["Laplace loci", "ratio", "outer 99 %", "EP loci", "ratio", "outer 99 %"],
        "SD over true SD, median (1 to 99 %)": ["method", *cases.SpreadRatios._fields, "not converged"],
    }  # fmt: skip
    printed = {name: Table(*cell, *columns, title=name) for name, columns in tables.items()}
    evidence, shares, stated, spreads = printed.values()
    for path in sorted(folder.glob("*.npz"), key=lambda path: tuple(map(float, path.stem.split("_")))):
        name = path.stem.split("_")
        with np.load(path) as file:
            found = cases.Comparison(*(file[field] for field in cases.Comparison._fields))
            evidence.add_row(*name, *evidence_row(found))
            shares.add_row(*name, *share_row(found, file["hard"]))
            stated.add_row(*name, *stated_row(found))
            for row in spread_rows(file):
                spreads.add_row(*name, *row)
    for table in printed.values():
        console.print(table)


@click.command(context_settings={"show_default": True})
@click.option("--individuals", multiple=True, type=click.Choice(["12", "28", "60"]), default=["12", "28", "60"])
@click.option("--coverage", "coverages", multiple=True, type=float, default=cases.COVERAGES, help="Mean reads.")
@click.option("--loci", default=400, type=click.IntRange(10), help="Loci of a cell.")
@click.option("--hard", default=16, type=click.IntRange(2), help="Loci with the widest corrections, sampled longer.")
@click.option("--sd-loci", default=30, type=click.IntRange(2), help="Loci for the SDs at fixed variance components.")
@click.option("--seed", default=7, type=click.IntRange(0), help="Of the loci drawn and of gold.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder of the cells' numbers.")
@click.option("--report", "only_report", is_flag=True, help="Measure nothing, print what the folder holds.")
def main(
    individuals: tuple[str, ...],
    coverages: tuple[float, ...],
    loci: int,
    hard: int,
    sd_loci: int,
    seed: int,
    output: Path,
    only_report: bool,
) -> None:
    """Measure cells and print their tables."""
    output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for size in () if only_report else map(int, individuals):
        study = cases.setup(size, seed=size)
        for coverage in coverages:
            began = time.process_time()
            found, rows = measure(study, coverage, loci, hard, seed)
            ratios, errors = cases.sd_ratios(study, coverage, sd_loci, SD_DRAWS, seed, METHODS)
            arrays = {f"sd_{m}_{part}": v for m, r in ratios.items() for part, v in r._asdict().items()}
            arrays |= {f"sd_se_{part}": value for part, value in errors._asdict().items()}
            np.savez(output / f"{size}_{coverage:g}.npz", **found._asdict(), **arrays, hard=rows)
            print(
                f"{size} individuals, {coverage:g} reads: {time.process_time() - began:.0f} s of CPU", file=sys.stderr
            )
    report(output)


if __name__ == "__main__":
    main()
