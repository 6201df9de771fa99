"""`epivi assemble`: the samples' counts -> memory-mapped loci."""

from __future__ import annotations

import logging

import click

from epivi.assemble import AssembleSettings, assemble
from epivi.config import load_config
from epivi.store import Provenance

log = logging.getLogger(__name__)


@click.command("assemble")
@click.argument("counts", nargs=-1, required=True, type=click.Path())
@click.option("--output", required=True, type=click.Path(), help="Folder of the loci.")
@click.option("--config", "config_source", required=True, help="Configuration file, or inline JSON.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1), help="Contigs joined at a time.")
def command(counts: tuple[str, ...], output: str, config_source: str, threads: int) -> None:
    """Join the samples' COUNTS (files written by `epivi ingest`) into memory-mapped loci.

    The samples keep the order of the files. Samples that the folder holds already, with the same counts, are not read
    again: a cohort that grows by a sample costs that sample's counts and an index.
    """
    from tqdm import tqdm

    config = load_config(config_source)
    loci = config.section("loci")
    settings = AssembleSettings(loci["unit"], loci["merge_strands"], loci["min_covered_samples"])
    provenance = Provenance("loci", config.seed(), config.hash("loci"), pedigree_hash="")
    with tqdm(desc="assemble", unit=" loci", unit_scale=True, disable=None) as bar:
        tallies = assemble(counts, output, settings, provenance, threads=threads, on_joined=bar.update)
    n_loci = sum(tally.n_loci for tally in tallies)
    log.info("%s: %d loci of %d samples on %d contigs", output, n_loci, len(counts), sum(t.n_loci > 0 for t in tallies))
    n_scaled = sum(tally.n_scaled for tally in tallies)
    if n_scaled:
        log.warning("%d counts of 65535 reads or more: scaled down to it, keeping their proportion", n_scaled)
