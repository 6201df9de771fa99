"""`epivi states`: a shard of loci, a fit and the comparison -> states of all nodes and changes on all branches."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import click

log = logging.getLogger(__name__)


@click.command("states")
@click.option("--evidence", required=True, type=click.Path(path_type=Path), help="One shard of epivi evidence.")
@click.option("--loci", required=True, type=click.Path(), help="Folder written by epivi assemble.")
@click.option("--fit", "fit_folder", required=True, type=click.Path(path_type=Path), help="Folder of the fit.")
@click.option(
    "--compare", "comparison", required=True, type=click.Path(path_type=Path), help="Folder of the comparison."
)
@click.option("--samples", required=True, type=click.Path(), help="Sample sheet.")
@click.option("--pedigree", required=True, help='Pedigree file, or {"nodes": ..., "edges": ...} as JSON.')
@click.option(
    "--states", "states_file", required=True, type=click.Path(path_type=Path), help="Table of states to write."
)
@click.option("--branches", "branches_file", required=True, type=click.Path(path_type=Path), help="Table of branches.")
@click.option("--config", "config_source", required=True, help="Configuration file, or inline JSON.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1), help="Processor threads.")
def command(
    evidence: Path,
    loci: str,
    fit_folder: Path,
    comparison: Path,
    samples: str,
    pedigree: str,
    states_file: Path,
    branches_file: Path,
    config_source: str,
    threads: int,
) -> None:
    """Posterior state of every individual and probability of gain and loss on every branch, at the loci of a shard.

    For the family epimutation. One row a locus and individual, and one a locus and branch, averaged over hypotheses.
    """
    from tqdm import tqdm

    from epivi.base.code_version import code_version
    from epivi.base.errors import UserError
    from epivi.base.files import content_hash
    from epivi.commands.shard import read_comparison, read_shard
    from epivi.config.declarations import DECLARATIONS
    from epivi.config.load import load_config
    from epivi.families import family_step
    from epivi.families.epimutation.columns import EPIMUTATION_TABLES
    from epivi.families.inputs import read_fit, read_inputs
    from epivi.fit.folder import use_threads
    from epivi.loci.store import LocusSpan
    from epivi.tables.parquet import Provenance, TableWriter
    from epivi.tables.parts import part_metadata

    config = load_config(config_source)
    if not DECLARATIONS[config.family].has_states:
        raise UserError(
            f"{config.source}: model.family is {config.family}, which has no discrete states: expected epimutation"
        )
    step = family_step(config.family, "states")
    problem = family_step(config.family, "prepare").prepare(read_inputs(loci, samples, pedigree), config)
    fitted = read_fit(fit_folder, problem, samples, pedigree, config.family)
    names = list(problem.hypothesis_names)
    shard = read_shard(evidence, problem.store, names)
    start, stop = shard.part.start, shard.part.stop
    compared = read_comparison(comparison, names, shard.part)
    use_threads(1)  # of torch: the compiled code has threads of its own

    def spans() -> Iterator[LocusSpan]:
        for first in range(start, stop, step.CHUNK_LOCI):
            yield problem.store.span(first, min(first + step.CHUNK_LOCI, stop))

    def provenance(kind: str) -> Provenance:
        source = shard.provenance
        return Provenance(kind, source.seed, config.hash("model", "compare"), source.pedigree_hash)

    stamp = content_hash([code_version("states", config.family), provenance("states").metadata(), compared.stamp])
    metadata = part_metadata((start, stop), problem.store.n_loci, shard.part.contigs, stamp, compared.stamp)
    started = time.monotonic()
    with (
        TableWriter(
            states_file, EPIMUTATION_TABLES["states"], provenance("states"), metadata=metadata
        ) as states_writer,
        TableWriter(
            branches_file, EPIMUTATION_TABLES["branches"], provenance("branches"), metadata=metadata
        ) as branches_writer,
        tqdm(total=stop - start, desc="states", unit=" loci", disable=None) as bar,
    ):
        for states, branches in step.tables(problem, fitted, compared.weight, spans(), threads):
            states_writer.write(states)
            branches_writer.write(branches)
            bar.update(min(step.CHUNK_LOCI, stop - start - bar.n))
    log.info("%s: %d loci in %.1f s", states_file, stop - start, time.monotonic() - started)
