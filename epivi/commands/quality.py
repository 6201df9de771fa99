"""`epivi quality`: what the assembled counts say of each sample -> tables and warnings."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("--loci", required=True, type=click.Path(), help="Folder of loci: epivi assemble.")
@click.option("--samples", required=True, type=click.Path(), help="Sample sheet.")
@click.option("--pedigree", required=True, help="Pedigree: a file, or JSON with the paths of nodes and edges.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder of the tables.")
@click.option("--config", "config_source", required=True, help="Configuration file, or inline JSON.")
def command(loci: str, samples: str, pedigree: str, output: Path, config_source: str) -> None:
    """Estimate error rates from controls; look for swapped samples, shared reads, wrong sexes and outliers.

    Nothing is dropped. Each warning carries its number, in the log and in quality/findings.parquet.
    """
    from epivi.quality.check import check_quality

    check_quality(loci, samples, pedigree, output, config_source)
