"""`epivi summary`: a run's result on the terminal, and its manifest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from epivi.results.summary import KindOfRelatives, Summary

# Wide enough for every line: a log or a pipe has no width of its own to wrap at.
WIDTH = 100


@click.command()
@click.option(
    "--results",
    required=True,
    type=click.Path(path_type=Path),
    help="The folder of a cohort's results, or of one of its analyses.",
)
@click.option(
    "--config",
    help="Configuration, as file or JSON: count anew and write manifest.json.  [default: print the manifest]",
)
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="Input files hashed at once.")
def command(results: Path, config: str | None, threads: int) -> None:
    """Print a run's result in a few lines and, given its configuration, write its manifest."""
    from epivi.results.summary import read_summary

    path = results / "manifest.json"
    summary = read_summary(path) if config is None else _write_manifest(path, config, threads)
    _print(summary)


def _write_manifest(path: Path, config: str, threads: int) -> Summary:
    from epivi.base.files import write_json
    from epivi.cohort.pedigree_files import read_pedigree
    from epivi.cohort.samples import read_sample_sheet
    from epivi.config.load import load_config
    from epivi.discovery.columns import DISCOVERY_TABLES
    from epivi.results.summary import manifest, misfit_table, summarize
    from epivi.tables.parquet import Provenance, write_table
    from epivi.tables.pieces import forget_all

    settings = load_config(config)
    sheet, pedigree = settings.require("samples"), settings.require("pedigree")
    unit = settings.resolved["loci"]["unit"]
    inputs = {
        "samples": [sheet],
        "pedigree": list(pedigree.values()) if isinstance(pedigree, dict) else [pedigree],
        "regions": [unit["bed"]] if isinstance(unit, dict) and "bed" in unit else [],
        "exclude": settings.resolved["loci"]["exclude"],
        "genotypes": [path for path in [settings.section("qc")["genotypes"]] if path],
        "classes": [path for path in (settings.resolved["model"]["classes"],) if path is not None],
        "counts": read_sample_sheet(sheet).paths,
    }
    summary = summarize(path.parent, settings, len(read_pedigree(pedigree).individuals))
    if summary.misfit:
        provenance = Provenance("misfit", settings.seed(), settings.hash("model", "compare"), "")
        columns = DISCOVERY_TABLES["misfit"]
        write_table(misfit_table(summary.misfit), path.parent / "misfit.parquet", columns, provenance)
    write_json(path, manifest(summary, settings, inputs, path.parent, threads))
    forget_all(path.parent / "evidence")
    return summary


def _print(summary: Summary) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=WIDTH, highlight=False)
    analysis = f", analysis {summary.analysis}" if summary.analysis else ""
    console.print(
        f"cohort {summary.cohort}{analysis}: {summary.n_loci:,} loci on {len(summary.loci)} contigs, "
        f"{summary.samples} samples, {summary.individuals} individuals in the pedigree"
    )
    table = Table("hypothesis", header_style="bold")
    over_families = ("over families",) if summary.controls else ()
    for title in ("weight", "95 % interval", *over_families, "expected loci"):
        table.add_column(title, justify="right")
    for row in _rows(summary):
        table.add_row(*row)
    console.print(table)
    words = {"alpha": "gain", "beta": "loss"}
    for rate in summary.rates:
        console.print(
            f"{rate.locus_class}: {words[rate.parameter]} {rate.median:.2e} ({rate.lower:.2e} to {rate.upper:.2e}) per "
            "copy and generation"
        )
    if summary.relatives_verdict:
        kinds = ", ".join(_kind_of_relatives(kind) for kind in summary.relatives)
        console.print(f"correlation of relatives (SE over families): {kinds or 'none'}", markup=False, soft_wrap=True)
        console.print(f"relatives: {summary.relatives_verdict}", markup=False, soft_wrap=True)
    for control in summary.controls:
        console.print(
            f"individuals exchanged, {control.control}: gain {control.largest_exchanged_nats:.1f} nats at most in "
            f"{control.exchanges}, {control.gain_nats:.1f} as they are; p = {control.p_value:.2f}; of "
            f"{control.called} sampled calls {control.called_exchanged:.1f} stay"
        )
    if summary.cannot_tell:
        console.print(summary.cannot_tell, markup=False, soft_wrap=True)
    else:
        console.print(f"{summary.n_calls:,} loci called at a false discovery rate of {summary.fdr:g}")
        for kind, count in summary.kinds.items():
            console.print(f"  {count:,} {kind.replace('|', ' or ')}", markup=False)
    for sentence in summary.design:
        console.print(sentence, markup=False, soft_wrap=True)
    if summary.misfit:
        share = 100 * summary.misfit[0] / sum(summary.misfit)
        console.print(f"misfit: {share:.1f} % of the loci have a p-value of at most 0.05, where the model gives 5 %")
    for path, what in summary.excluded.items():
        console.print(f"left out for {path}: {what}", markup=False, soft_wrap=True)
    console.print("flagged: " + ", ".join(f"{name} {count:,}" for name, count in summary.flags.items()))
    for warning in summary.warnings:
        console.print(f"warning: {warning}", markup=False, soft_wrap=True)


def _kind_of_relatives(kind: KindOfRelatives) -> str:
    correlation, error = ("?" if value is None else f"{value:.2f}" for value in (kind.correlation, kind.se_families))
    return f"{kind.kind.replace('_', ' ')} {correlation} ({error})"


def _rows(summary: Summary) -> Iterator[tuple[str, ...]]:
    for weight in summary.weights:
        name, over_families = weight.hypothesis, ""
        if weight.family_lower is not None and weight.family_upper is not None:
            over_families = f"{weight.family_lower:.3f} to {weight.family_upper:.3f}"
        yield (
            name,
            f"{weight.weight:.3f}",
            f"{weight.lower:.3f} to {weight.upper:.3f}",
            *((over_families,) if summary.controls else ()),
            f"{summary.expected[name]:,.0f}",
        )
