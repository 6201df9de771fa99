"""`epivi ingest`: one sample's counts, as text or as calls on aligned reads -> Parquet and a quality record."""

from __future__ import annotations

from pathlib import Path

import click

from epivi.ingest.formats import FORMATS


@click.command()
@click.argument("source", metavar="INPUT", type=click.Path(path_type=Path))
@click.option("--sample", required=True, help="Name of the sample.")
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Counts to write: a Parquet file sorted by position.",
)
@click.option("--qc", required=True, type=click.Path(path_type=Path), help="Quality record to write: a JSON file.")
@click.option(
    "--config", required=True, help="Configuration: a YAML or JSON file, or JSON text; its sections loci and qc count."
)
@click.option(
    "--format",
    "format_name",
    type=click.Choice(["auto", *FORMATS]),
    default="auto",
    show_default=True,
    help="Format of INPUT; auto looks at the content.",
)
@click.option(
    "--haplotype",
    default="all",
    show_default=True,
    help="Reads of a BAM file to count: with this number in the tag HP, without it (unphased), or all. Of text: which"
    " reads its counts are of.",
)
@click.option(
    "--threads", default=1, show_default=True, type=click.IntRange(min=1), help="Parts of the file read at a time."
)
def command(
    source: Path,
    sample: str,
    output: Path,
    qc: Path,
    config: str,
    format_name: str,
    haplotype: str,
    threads: int,
) -> None:
    """Read the methylation counts of one sample into Parquet.

    INPUT is text, plain or compressed by gzip or bgzip: Bismark coverage, a Bismark cytosine report, bedMethyl (modkit
    and older tools), MethylDackel bedGraph, pb-CpG-tools BED, allc of methylpy, a methylome table of methimpute, or a
    matrix of an array's beta values. Or it is a sorted BAM file: modBAM of Nanopore or PacBio reads (tags MM and ML),
    or bisulfite reads with the calls of Bismark (tags XM and XG).
    """
    from epivi.ingest.sample import ingest_sample

    ingest_sample(source, sample, output, qc, config, format_name, haplotype, threads)
