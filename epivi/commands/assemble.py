"""`epivi assemble`: the samples' counts -> memory-mapped loci."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("assemble")
@click.argument("counts", nargs=-1, required=True, type=click.Path())
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder of the loci.")
@click.option("--config", "config_source", required=True, help="Configuration file, or inline JSON.")
@click.option("--samples", type=click.Path(), help="Sample sheet, whose lines messages then name.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1), help="Contigs joined at a time.")
def command(counts: tuple[str, ...], output: Path, config_source: str, samples: str | None, threads: int) -> None:
    """Join the samples' COUNTS (files written by `epivi ingest`) into memory-mapped loci.

    The samples keep the order of the files. Samples that the folder holds already, with the same counts, are not read
    again: a cohort that grows by a sample costs that sample's counts and an index.

    First the samples are compared: the same counts in two of them, contigs that other samples spell otherwise, and
    positions one base off or of another build are errors. OUTPUT/contigs.parquet says which sample has which contigs.
    """
    from epivi.cohort.assembly import assemble_cohort

    assemble_cohort(counts, output, config_source, samples, threads)
