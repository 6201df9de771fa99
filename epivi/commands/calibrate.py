"""`epivi calibrate`: a fit -> loci drawn from it, evaluated like data and compared with their truth."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import numpy as np

    from epivi.config.load import Config
    from epivi.families.transmission.prepare import TransmissionProblem
    from epivi.loci.store import LociStore
    from epivi.tables.parquet import Provenance
    from epivi.verify.calibrate import Rows

log = logging.getLogger(__name__)

CHUNK_LOCI = 4096  # evaluated at once


@click.command("calibrate")
@click.option("--loci", required=True, type=click.Path(), help="Folder written by epivi assemble, for its coverage.")
@click.option("--fit", "fit_folder", required=True, type=click.Path(path_type=Path), help="Folder of the fit.")
@click.option("--samples", required=True, type=click.Path(), help="Sample sheet.")
@click.option("--pedigree", required=True, help='Pedigree file, or {"nodes": ..., "edges": ...} as JSON.')
@click.option(
    "--compare",
    "comparison",
    type=click.Path(path_type=Path),
    help="Folder written by epivi compare, for the weights of the hypotheses.  [default: those that the fit learned]",
)
@click.option("--scenario", "scenarios", multiple=True, help="How loci are drawn; may be repeated.  [default: all]")
@click.option("--loci-per-scenario", default=30_000, show_default=True, type=click.IntRange(min=1), help="Loci drawn.")
@click.option("--seed", default=1, show_default=True, type=click.IntRange(min=0), help="Seed of the drawn loci.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder of tables and figures.")
@click.option("--config", "config_source", required=True, help="Configuration file, or inline JSON.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1), help="Processor threads.")
def command(
    loci: str,
    fit_folder: Path,
    samples: str,
    pedigree: str,
    comparison: Path | None,
    scenarios: tuple[str, ...],
    loci_per_scenario: int,
    seed: int,
    output: Path,
    config_source: str,
    threads: int,
) -> None:
    """Check a fit's claims on loci whose truth is known.

    Loci are drawn from the fitted model with the coverage of the cohort's loci, and evaluated like data: as the model
    says, and in scenarios in which data do not follow it (null, overdispersed, conversion, pedigree). Writes
    sbc.parquet, coverage.parquet, lfdr.parquet, fdr.parquet, bayes_factors.parquet, weights.parquet and their figures.
    """
    import numpy as np
    from tqdm import tqdm

    from epivi.cohort.pedigree import families
    from epivi.config.load import load_config
    from epivi.families.inputs import read_fit, read_problem
    from epivi.families.transmission.outer_integral import build_evidence_model
    from epivi.families.transmission.refinement import evaluate_batch
    from epivi.fit.folder import device_of, use_threads
    from epivi.tables.parquet import Provenance
    from epivi.verify.calibrate import SCENARIOS, Judged, build_plan, draw, judge, tables

    config = load_config(config_source)
    problem = read_problem(loci, samples, pedigree, config)
    fitted = read_fit(fit_folder, problem, samples, pedigree)
    names = _scenario_names(scenarios, list(SCENARIOS), has_families=len(families(problem.pedigree)) > 1)
    weight = fitted.learned.hypothesis_weights if comparison is None else _weights(comparison, problem)
    null_hypotheses = list(config.null_hypotheses) if comparison is None else _nulls(comparison, problem, config)
    plan = build_plan(
        problem.hypotheses,
        null_hypotheses,
        weight,
        fitted.learned,
        problem.priors,
        problem.cohort,
        config.section("model")["covariates"],
        problem.pedigree,
        problem.sheet,
        seed,
    )
    use_threads(1)  # of torch: the threads of the evidence take chunks of loci each
    model = build_evidence_model(
        problem.cohort, problem.hypotheses, fitted.learned, problem.priors, fitted.encoder_state, fitted.hidden,
        device_of(config.section("evidence")["device"], "evidence"), trained_at=fitted.trained_at,
    )  # fmt: skip
    nodes, settings = config.section("evidence")["nodes"], config.section("compare")

    def evaluate(meth: np.ndarray, total: np.ndarray, numbers: np.ndarray) -> list:
        return evaluate_batch(model, meth, total, numbers, nodes, config.seed("evidence"), threads)

    total = _resampled_coverage(problem.store, loci_per_scenario, np.random.default_rng([seed, 4]))
    rows: dict[str, Rows] = {}
    started = time.monotonic()
    with tqdm(total=len(names) * loci_per_scenario, desc="calibrate", unit=" loci", disable=None) as bar:
        for name in names:
            drawn = draw(plan, SCENARIOS[name], total)
            for step in judge(plan, drawn, evaluate, CHUNK_LOCI):
                if isinstance(step, Judged):
                    found = tables(plan, step, name, settings)
                else:
                    bar.update(step)
            for table, more in found.items():
                rows.setdefault(table, []).extend(more)
            _report(name, SCENARIOS[name].meaning, found)
    for table in rows:
        kind = f"calibration_{table}"
        provenance = Provenance(kind, seed, config.hash("model", "evidence", "compare"), problem.pedigree_hash)
        _write(rows[table], output / f"{table}.parquet", provenance)
    _draw_figures(rows, output)
    log.info("%s: %d loci in %.1f s", output, len(names) * loci_per_scenario, time.monotonic() - started)


def _scenario_names(asked: tuple[str, ...], known: list[str], has_families: bool) -> list[str]:
    """Those asked for, in the order of the table; without any, all that the pedigree allows."""
    from epivi.base.errors import UserError
    from epivi.config.load import suggestion

    for name in asked:
        if name not in known:
            raise UserError(f"--scenario {name!r}: {suggestion(name, known)}")
    if "pedigree" in asked and not has_families:
        raise UserError("--scenario pedigree: the pedigree is one family; expected two or more to exchange individuals")
    if asked:
        return [name for name in known if name in asked]
    if not has_families:
        log.info("scenario pedigree left out: the pedigree is one family")
    return [name for name in known if has_families or name != "pedigree"]


def _weights(comparison: Path, problem: TransmissionProblem) -> np.ndarray:
    from epivi.base.errors import UserError
    from epivi.tables.parquet import read_table

    names = [hypothesis.name for hypothesis in problem.hypotheses]
    table = read_table(comparison / "weights.parquet", "weights")
    if table["hypothesis"].to_pylist() != names:
        raise UserError(f"{comparison}: compares other hypotheses than {', '.join(names)}; run epivi compare again")
    weights: np.ndarray = table["weight"].to_numpy()
    return weights


def _nulls(comparison: Path, problem: TransmissionProblem, config: Config) -> list[str]:
    """Hypotheses that count as null in the comparison, with those that the samples cannot separate from one."""
    import numpy as np

    from epivi.discovery.merged import groups_of, merged_nulls
    from epivi.tables.parquet import read_table

    names = problem.hypothesis_names
    merged = read_table(comparison / "weights.parquet", "weights", ["merged"])["merged"].to_pylist()
    is_null = merged_nulls(np.isin(names, config.null_hypotheses), groups_of(names, merged))
    return [name for name, null in zip(names, is_null, strict=True) if null]


def _resampled_coverage(store: LociStore, number: int, random: np.random.Generator) -> np.ndarray:
    """Reads of all samples at loci drawn with replacement from the cohort's, [number, S]."""
    import numpy as np

    result = np.empty((number, len(store.samples)), dtype=np.uint16)
    chosen = random.integers(store.n_loci, size=number)
    order = np.argsort(chosen)
    ends = np.cumsum([store.n_loci_of(contig) for contig in store.contigs])
    contig = np.searchsorted(ends, chosen[order], side="right")
    for row, which in zip(order, contig, strict=True):
        name = store.contigs[which]
        place = int(chosen[row] - ends[which] + store.n_loci_of(name))
        result[row] = store.block(name, place, place + 1).total[0]
    return result


def _report(name: str, meaning: str, found: dict[str, Rows]) -> None:
    """A scenario in a few lines of the log."""
    from epivi.verify.calibrate import AVERAGED, TRUE

    log.info("%s: %s", name, meaning)
    for kind in (TRUE, AVERAGED):
        shares = [
            f"{row['parameter']} {row['share']:.3f}"
            for row in found["coverage"]
            if (row["hypothesis"], row["stratum"], row["level"]) == (kind, "overall", 0.9)
        ]
        log.info("  90 %% intervals %s hold the truth: %s", kind, ", ".join(shares))
    for row in found["bayes_factors"]:
        if row["drawn_from"] == row["null"]:
            pair = f"{row['hypothesis']} over loci of {row['null']}"
            log.info("  mean Bayes factor of %s: %.3f, standard error %.3f", pair, row["mean"], row["standard_error"])
    for row in found["fdr"]:
        if row["nominal"] == 0.05:
            calls = f"{row['n_loci']:,}, of them false {row['false_calls']:,}"
            log.info("  called at FDR 0.05 with %s weights: %s", row["weights"], calls)


def _write(rows: Rows, path: Path, provenance: Provenance) -> None:
    import pyarrow as pa

    from epivi.tables.parquet import write_table
    from epivi.verify.columns import CALIBRATE_TABLES

    columns = CALIBRATE_TABLES[provenance.table]
    table = pa.table({column.name: [row[column.name] for row in rows] for column in columns})
    write_table(table, path, columns, provenance)


def _draw_figures(rows: dict[str, Rows], output: Path) -> None:
    from epivi.base.files import atomic_path
    from epivi.verify.figures import calibration_figures

    for name, figure in calibration_figures(rows):
        with atomic_path(output / f"{name}.png") as temporary:
            figure.savefig(temporary, format="png", dpi=120)
