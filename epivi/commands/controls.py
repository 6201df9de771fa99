"""`epivi controls`: a sample of loci under exchanged pedigrees, without each family, and under other priors."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import click

log = logging.getLogger(__name__)


@click.command("controls")
@click.option("--loci", required=True, type=click.Path(), help="Folder written by epivi assemble.")
@click.option(
    "--fit", "fit_folder", required=True, type=click.Path(path_type=Path), help="Folder written by epivi fit."
)
@click.option("--samples", required=True, type=click.Path(), help="Sample sheet.")
@click.option("--pedigree", required=True, help="Pedigree file, or JSON of AlphaBeta's two lists.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Parquet file of the controls.")
@click.option(
    "--usual", required=True, type=click.Path(path_type=Path), help="Parquet file of loci drawn from the fitted model."
)
@click.option("--config", "config_source", required=True, help="Configuration file, or inline JSON.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="Loci taken at once.")
def command(
    loci: str,
    fit_folder: Path,
    samples: str,
    pedigree: str,
    output: Path,
    usual: Path,
    config_source: str,
    threads: int,
) -> None:
    """Evaluate a sample of loci with the pedigree broken, which shows what a call rests on.

    Individuals are exchanged across families, within families, and sibship by sibship; each family is left out once;
    and the prior of the heritable share is varied. epivi compare reads the file. As many loci are drawn from the fitted
    model, whose log evidences show epivi posterior which ones are unusual.
    """
    from dataclasses import replace

    from tqdm import tqdm

    from epivi.config.load import load_config
    from epivi.discovery.columns import DISCOVERY_TABLES
    from epivi.discovery.control_file import control_rows
    from epivi.discovery.controls import TRUE
    from epivi.discovery.misfit import count_statistics, usual_rows
    from epivi.families import family_step
    from epivi.families.inputs import read_fit, read_inputs
    from epivi.fit.folder import use_threads
    from epivi.loci.source import sample_runs
    from epivi.tables.parquet import Provenance, TableWriter, write_table

    config = load_config(config_source)
    problem = family_step(config.family, "prepare").prepare(read_inputs(loci, samples, pedigree), config)
    fitted = read_fit(fit_folder, problem, samples, pedigree, config.family)
    step = family_step(config.family, "controls")
    use_threads(1)  # of torch: the threads of the evidence take chunks of loci each
    seed = config.seed()
    counts = sample_runs(problem.store, config.section("controls")["loci"], seed)
    variants = list(step.variants(problem, config, seed))
    misfit = family_step(config.family, "misfit")
    drawn = misfit.drawn_counts(problem, fitted, config, counts.total, seed)
    provenance = Provenance(
        "control_evidence", seed, config.hash("model", "evidence", "controls"), problem.pedigree_hash
    )
    started = time.monotonic()
    with (
        TableWriter(output, DISCOVERY_TABLES["control_evidence"], provenance) as writer,
        tqdm(total=len(variants) + 1, desc="controls", unit=" controls", disable=None) as bar,
    ):
        unchanged = None  # the true problem's, at the level of the others
        for variant in variants:
            if variant.is_changed or unchanged is None:
                found = step.log_evidences(variant, fitted, config, counts, threads)
            else:
                found = unchanged
            if variant.control == TRUE:
                unchanged = found
            writer.write(control_rows(variant, counts.locus, problem.hypothesis_names, found))
            bar.update()
        found = misfit.drawn_evidences(problem, fitted, config, drawn, threads)
        bar.update()
    write_table(
        usual_rows(problem.hypothesis_names, found, count_statistics(drawn.meth, drawn.total)),
        usual,
        DISCOVERY_TABLES["usual_evidence"],
        replace(provenance, table="usual_evidence"),
    )
    log.info(
        "%s: %d controls of %d loci in %.1f s", output, len(variants), len(counts.locus), time.monotonic() - started
    )
