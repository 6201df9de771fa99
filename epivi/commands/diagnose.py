"""`epivi diagnose`: a fit -> every method on some of its loci, against high-precision integration and NUTS."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from epivi.field.layout import Cohort
    from epivi.tables.parquet import Provenance
    from epivi.verify.diagnose import Columns

log = logging.getLogger(__name__)


@click.command("diagnose")
@click.option("--loci", required=True, type=click.Path(), help="Folder written by epivi assemble.")
@click.option("--fit", "fit_folder", required=True, type=click.Path(path_type=Path), help="Folder of the fit.")
@click.option("--samples", required=True, type=click.Path(), help="Sample sheet.")
@click.option("--pedigree", required=True, help='Pedigree file, or {"nodes": ..., "edges": ...} as JSON.')
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder of the tables.")
@click.option("--config", "config_source", required=True, help="Configuration file, or inline JSON.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1), help="Processor threads.")
def command(
    loci: str,
    fit_folder: Path,
    samples: str,
    pedigree: str,
    output: Path,
    config_source: str,
    threads: int,
) -> None:
    """Put every inference method to the same random loci and tabulate what each gets right.

    Writes summary.parquet (bias and SD ratio of each method), evidences.parquet, bounds.parquet and
    posteriors.parquet; the sections `diagnose` and `evidence` of the configuration say at how many loci and nodes.
    """
    from tqdm import tqdm

    from epivi.config.load import load_config
    from epivi.families.inputs import read_fit, read_problem
    from epivi.families.transmission.guide import GUIDES
    from epivi.families.transmission.outer_integral import build_evidence_model
    from epivi.fit.folder import use_threads
    from epivi.loci.source import sample_loci
    from epivi.tables.parquet import Provenance
    from epivi.verify.diagnose import Settings, bound_rows, evidence_rows, posterior_rows, study, summary_rows

    config = load_config(config_source)
    problem = read_problem(loci, samples, pedigree, config)
    fitted = read_fit(fit_folder, problem, samples, pedigree)
    section, seed = config.section("diagnose"), config.seed("diagnose")
    use_threads(threads)
    model = build_evidence_model(
        problem.cohort, problem.hypotheses, fitted.learned, problem.priors, fitted.encoder_state, fitted.hidden,
        trained_at=fitted.trained_at,
    )  # fmt: skip
    methods = _usable_methods(section["methods"], problem.cohort)
    settings = Settings(methods, config.section("evidence")["nodes"], section["nuts_loci"], seed)
    chosen = sample_loci(problem.store, section["loci"], seed)
    started = time.monotonic()
    with tqdm(total=len(chosen.number), desc="diagnose", unit=" loci", disable=None) as bar:
        found = study(model, GUIDES[fitted.guide], chosen, settings, bar.update)
    null = config.null_hypotheses[0] if config.null_hypotheses else problem.hypotheses[0].name
    tables = {
        "posteriors": posterior_rows(found),
        "evidences": evidence_rows(found, null),
        "bounds": bound_rows(found),
        "summary": summary_rows(found),
    }
    for name, columns in tables.items():
        provenance = Provenance(
            f"diagnose_{name}", seed, config.hash("model", "evidence", "diagnose"), problem.pedigree_hash
        )
        _write(columns, output / f"{name}.parquet", provenance)
    _report(tables["summary"], tables["evidences"], null)
    log.info("%s: %d loci in %.0f s", output, len(chosen.number), time.monotonic() - started)


def _usable_methods(asked: list[str], cohort: Cohort) -> tuple[str, ...]:
    """Those that the cohort allows."""
    from epivi.field.layout import has_exact_reads

    if "cavi" in asked and not has_exact_reads(cohort):
        log.warning("cavi left out: its augmentation is exact only without false_methylated and false_unmethylated")
        return tuple(method for method in asked if method != "cavi")
    return tuple(asked)


def _write(columns: Columns, path: Path, provenance: Provenance) -> None:
    import pyarrow as pa

    from epivi.tables.parquet import write_table
    from epivi.verify.columns import DIAGNOSE_TABLES

    specified = DIAGNOSE_TABLES[provenance.table]
    table = pa.table({column.name: pa.array(columns[column.name]).cast(column.type) for column in specified})
    write_table(table, path, specified, provenance)


def _report(summary: Columns, evidences: Columns, null: str) -> None:
    """What a reader wants first, on the terminal and in the log."""
    import numpy as np

    for method in dict.fromkeys(evidences["method"].tolist()):
        rows = (evidences["method"] == method) & (evidences["hypothesis"] != null)
        error = np.abs(evidences["log_bayes_factor_error"][rows])
        log.info(
            "%-10s |error of log Bayes factor|: median %.4f, 99 %% %.4f nats",
            method,
            *np.nanquantile(error, (0.5, 0.99)),
        )
    for method in dict.fromkeys(summary["method"].tolist()):
        parts = []
        for group in dict.fromkeys(summary["group"].tolist()):
            rows = (summary["method"] == method) & (summary["group"] == group) & (summary["reference"] == "reference")
            if rows.any():
                ratio, bias = np.nanmedian(summary["sd_ratio_median"][rows]), np.nanmedian(summary["bias_rms"][rows])
                parts.append(f"{group} {ratio:.3f} ({bias:.3f})")
        if parts:
            log.info("%-10s SD ratio (bias in SD): %s", method, ", ".join(parts))
