"""`epivi evidence`: a shard of loci and a fit -> log evidence and posterior moments of every hypothesis."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import click

log = logging.getLogger(__name__)


@click.command("evidence")
@click.option("--loci", required=True, type=click.Path(), help="Folder written by epivi assemble.")
@click.option("--fit", "fit_folder", required=True, type=click.Path(path_type=Path), help="Folder of the fit.")
@click.option("--samples", required=True, type=click.Path(), help="Sample sheet.")
@click.option("--pedigree", required=True, help='Pedigree file, or {"nodes": ..., "edges": ...} as JSON.')
@click.option("--contig", required=True, help="Contig of the shard.")
@click.option("--start", default=0, show_default=True, type=click.IntRange(min=0), help="First locus of the shard.")
@click.option("--stop", type=click.IntRange(min=1), help="Locus after the last.  [default: all of the contig]")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Parquet file of the shard.")
@click.option("--config", "config_source", required=True, help="Configuration file, or inline JSON.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1), help="Processor threads.")
def command(
    loci: str,
    fit_folder: Path,
    samples: str,
    pedigree: str,
    contig: str,
    start: int,
    stop: int | None,
    output: Path,
    config_source: str,
    threads: int,
) -> None:
    """Integrate every hypothesis at every locus of a shard.

    Loci are counted within the contig, from 0, in the order of the store.
    """
    from tqdm import tqdm

    from epivi.commands.problem import read_fit, read_inputs
    from epivi.config import load_config
    from epivi.errors import UserError
    from epivi.families import FAMILIES
    from epivi.fitted import use_threads
    from epivi.store import LocusBlock, Provenance, TableWriter

    config = load_config(config_source)
    family = FAMILIES[config.family]
    problem = family.prepare(read_inputs(loci, samples, pedigree), config)
    store = problem.store
    fitted = read_fit(fit_folder, problem, samples, pedigree, config.family)
    stop = store.n_loci_of(contig) if stop is None else stop
    if not start < stop <= store.n_loci_of(contig):
        raise UserError(
            f"--start {start} --stop {stop}: {contig} has {store.n_loci_of(contig)} loci; expected a part of it"
        )
    use_threads(1)  # of torch: the threads of the evidence take chunks of loci each
    offset = sum(store.n_loci_of(name) for name in store.contigs[: store.contigs.index(contig)])
    provenance = Provenance(
        "evidence", config.seed("evidence"), config.hash("model", "evidence"), problem.pedigree_hash
    )
    metadata = {"epivi.contig": contig, "epivi.start": str(start), "epivi.stop": str(stop)}

    def blocks() -> Iterator[LocusBlock]:
        for first in range(start, stop, family.chunk_loci):
            yield store.block(contig, first, min(first + family.chunk_loci, stop))

    started, reported, done = time.monotonic(), time.monotonic(), 0
    tables = family.evidence_tables(problem, fitted, config, blocks(), offset, threads)
    with (
        TableWriter(output, family.evidence_columns(), provenance, metadata=metadata) as writer,
        tqdm(total=stop - start, desc=f"evidence {contig}", unit=" loci", disable=None) as bar,
    ):
        for table in tables:
            writer.write(table)
            n_loci = table.num_rows // len(problem.hypothesis_names)
            done += n_loci
            bar.update(n_loci)
            if time.monotonic() - reported > 60:
                log.info("%s: %d of %d loci", contig, done, stop - start)
                reported = time.monotonic()
    seconds = time.monotonic() - started
    log.info("%s: %d loci in %.1f s (%.0f loci/s)", output, stop - start, seconds, (stop - start) / seconds)
