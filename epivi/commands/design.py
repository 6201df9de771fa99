"""`epivi design`: what a cohort can show, from its pedigree, samples and priors alone."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

if TYPE_CHECKING:
    import numpy as np

    from epivi.cohort.samples import SampleSheet
    from epivi.config.load import Config
    from epivi.tables.parquet import Provenance
    from epivi.verify.design import Assumed, Evaluated, Rows

log = logging.getLogger(__name__)

MEASURED_LOCI = 20_000  # from which coverage and methylation are measured


@click.command("design")
@click.option("--pedigree", required=True, help='Pedigree file, or {"nodes": ..., "edges": ...} as JSON.')
@click.option(
    "--samples", type=click.Path(), help="Sample sheet.  [default: a sample of every individual of the pedigree]"
)
@click.option("--config", "config_source", default="{}", help="Configuration file, or inline JSON.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder of tables and figure.  [default: none]")
@click.option(
    "--loci", type=click.Path(), help="Folder written by epivi assemble: coverage and methylation are measured."
)
@click.option("--coverage", type=click.FloatRange(0, min_open=True), help="Mean reads.  [default: design.coverage]")
@click.option("--replicates", default=1, show_default=True, type=click.IntRange(1), help="Samples of each individual.")
@click.option(
    "--simulate",
    "simulated",
    type=click.IntRange(0),
    help="Loci of each hypothesis to draw and evaluate.  [default: design.simulate]",
)
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="Threads of the simulation.")
def command(
    pedigree: str,
    samples: str | None,
    config_source: str,
    output: Path | None,
    loci: str | None,
    coverage: float | None,
    replicates: int,
    simulated: int | None,
    threads: int,
) -> None:
    """Say what a cohort can show before it is sequenced: which hypotheses its pedigree can separate, and how well.

    For every two hypotheses the least divergence, loci and families needed, and the chances of strong, weak and
    misleading evidence; hypotheses that no data of these samples can separate; what to sequence next. Writes
    design.parquet, design_confusion.parquet, design_next.parquet and design.svg.

    \b
    What a pedigree could show with 15 reads of everyone:
      epivi design --pedigree cohort.ped --coverage 15
    Of a cohort as configured, confirmed at 300 simulated loci of each hypothesis:
      epivi design --pedigree pedigree.tsv --samples samples.tsv --config config.yaml \\
        --simulate 300 --output design
    """
    from epivi.base.errors import UserError
    from epivi.cohort.haplotypes import check_sexual, sampled_units
    from epivi.cohort.pedigree import check_samples, pedigree_hash
    from epivi.cohort.pedigree_files import read_pedigree
    from epivi.cohort.samples import read_sample_sheet
    from epivi.config.declarations import DECLARATIONS
    from epivi.config.load import load_config
    from epivi.tables.parquet import Provenance
    from epivi.verify.design import assumed, confusion_rows, everyone, pair_rows, predicted, sentences, separation
    from epivi.verify.next_samples import next_rows

    config = load_config(config_source)
    if not DECLARATIONS[config.family].has_design:
        families = " or ".join(name for name, declared in DECLARATIONS.items() if declared.has_design)
        raise UserError(
            f"{config.source}: model.family is {config.family}: expected {families}, whose designs can be judged in "
            "advance"
        )
    if samples is not None and replicates > 1:
        raise UserError(f"--replicates {replicates}: expected without --samples, whose rows say who has several")
    relatives = read_pedigree(pedigree)
    sheet = everyone(relatives, replicates) if samples is None else read_sample_sheet(samples)
    check_samples(sheet, relatives)
    check_sexual(sampled_units(sheet)[0], relatives, sheet)
    depth = _depth(config, sheet, samples, loci, coverage)
    loci_drawn = config.section("design")["simulate"] if simulated is None else simulated
    region_loci = config.section("design")["region_loci"]
    if 0 < loci_drawn < region_loci:
        raise UserError(
            f"--simulate {loci_drawn}: expected 0, or at least the {region_loci} loci of a region (design.region_loci)"
        )
    started = time.monotonic()
    asked = assumed(config, depth.sheet, relatives, depth.reads, depth.levels)
    seed = config.seed()
    found, expected = separation(asked), predicted(asked, seed)
    further = next_rows(asked, found.of_cohort)
    realized = _realized(asked, config, loci_drawn, threads) if loci_drawn else None
    tables = {
        "design": pair_rows(asked, found, expected, realized),
        "design_confusion": confusion_rows(asked, found, expected, realized),
        "design_next": further,
    }
    said = sentences(asked, found, tables["design"], further)
    for line in said:
        click.echo(line)
    if output is not None:
        names = [[asked.names[h] for h in group] for group in found.groups]
        identity = (seed, config.hash("model", "design"), pedigree_hash(relatives))
        for kind, rows in tables.items():
            _write(rows, output / f"{kind}.parquet", Provenance(kind, *identity), names, said)
        _draw(tables, output / "design.svg")
        log.info("%s: %.1f s", output, time.monotonic() - started)


class Depth(NamedTuple):
    """What is assumed of reads; the sheet's rows stand in the order of `reads`."""

    sheet: SampleSheet
    reads: np.ndarray  # [S], mean of a sample at a locus
    levels: tuple[float, ...]  # of methylation


def _depth(config: Config, sheet: SampleSheet, samples: str | None, loci: str | None, coverage: float | None) -> Depth:
    """As configured, or measured from loci."""
    import numpy as np

    from epivi.base.errors import UserError
    from epivi.cohort.samples import in_order_of
    from epivi.loci.source import sample_runs
    from epivi.loci.store import LociStore
    from epivi.quality.conversion import with_estimated_errors
    from epivi.verify.design import measured_levels

    settings = config.section("design")
    if loci is None:
        reads = np.full(len(sheet.samples), float(settings["coverage"] if coverage is None else coverage))
        return Depth(sheet, reads, tuple(settings["methylation"]))
    if samples is None or coverage is not None:
        raise UserError(f"--loci {loci}: expected with --samples, and without --coverage, which is measured")
    store = LociStore.open(loci)
    counts = sample_runs(store, MEASURED_LOCI, config.seed())
    ordered = with_estimated_errors(in_order_of(store, sheet), store.sums)
    return Depth(ordered, counts.total.mean(0), measured_levels(counts.meth, counts.total))


def _realized(asked: Assumed, config: Config, loci: int, threads: int) -> Evaluated:
    from tqdm import tqdm

    from epivi.fit.folder import use_threads
    from epivi.verify.design import Evaluated
    from epivi.verify.design_simulation import realized

    use_threads(1)  # of torch: the threads of the evidence take chunks of loci each
    with tqdm(total=loci * len(asked.names), desc="design", unit=" loci", disable=None) as bar:
        for step in realized(asked, loci, config.section("evidence")["nodes"], config.seed(), threads):
            if isinstance(step, Evaluated):
                return step
            bar.update(step)
    raise AssertionError("the simulation ended without a result")


def _write(rows: Rows, path: Path, provenance: Provenance, groups: list[list[str]], said: list[str]) -> None:
    import json

    import pyarrow as pa

    from epivi.discovery.merged import GROUPS_METADATA, SENTENCES_METADATA
    from epivi.tables.columns import arrow_schema
    from epivi.tables.parquet import write_table
    from epivi.verify.columns import DESIGN_TABLES

    columns = DESIGN_TABLES[provenance.table]
    metadata = {GROUPS_METADATA: json.dumps(groups), SENTENCES_METADATA: json.dumps(said)}
    table = pa.Table.from_pylist(rows, schema=arrow_schema(columns))
    write_table(table, path, columns, provenance, metadata=metadata)


def _draw(tables: dict[str, Rows], path: Path) -> None:
    from matplotlib import rc_context

    from epivi.base.files import atomic_path
    from epivi.verify.figures import design_figure

    figure = design_figure(tables["design"], tables["design_next"], tables["design_confusion"])
    # The salt makes the file the same each time.
    with atomic_path(path) as temporary, rc_context({"svg.hashsalt": "epivi"}):
        figure.savefig(temporary, format="svg", metadata={"Date": None})
