"""`epivi relatives`: how alike relatives of each kind are at a sample of loci."""

from __future__ import annotations

import logging
from pathlib import Path

import click

log = logging.getLogger(__name__)


@click.command("relatives")
@click.option("--loci", required=True, type=click.Path(), help="Folder written by epivi assemble.")
@click.option("--samples", required=True, type=click.Path(), help="Sample sheet.")
@click.option("--pedigree", required=True, help="Pedigree file, or JSON of AlphaBeta's two lists.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder of the tables and the figure.")
@click.option("--config", "config_source", required=True, help="Configuration file, or inline JSON.")
def command(loci: str, samples: str, pedigree: str, output: Path, config_source: str) -> None:
    """Correlate the methylation of relatives by kind, with mates and in-laws as negative controls; look for factors.

    Writes relatives.parquet, factors.parquet, factor_values.parquet, factor_relations.parquet, findings.parquet and
    relatives.svg. It needs no fit, and of the model covariates and environments alone.
    """
    import pyarrow as pa

    from epivi.base.files import atomic_path
    from epivi.config.load import load_config
    from epivi.families.inputs import read_inputs
    from epivi.quality.columns import QUALITY_TABLES, VERDICT_METADATA
    from epivi.quality.factors import factor_rows, value_rows
    from epivi.quality.relatives import compared, relatives_report
    from epivi.tables.columns import arrow_schema
    from epivi.tables.parquet import Provenance, write_table
    from epivi.verify.relatives_figure import relatives_figure

    config = load_config(config_source)
    inputs = read_inputs(loci, samples, pedigree)
    cohort = compared(inputs.store, inputs.sheet, inputs.pedigree, config)
    report = relatives_report(cohort, inputs.sheet, inputs.pedigree, config)
    rows = [row._asdict() for row in report.resemblance.rows]
    for row in rows:
        del row["freedom"]
    tables = {
        "relatives": rows,
        "factors": list(factor_rows(report.factors)),
        "factor_values": list(value_rows(report.factors, cohort.libraries.names)),
        "factor_relations": [relation._asdict() for relation in report.relations],
        "findings": [finding._asdict() for finding in report.findings],
    }
    for name, content in tables.items():
        table = pa.Table.from_pylist(content, schema=arrow_schema(QUALITY_TABLES[name]))
        provenance = Provenance(name, config.seed(), config.hash("model", "relatives"), inputs.pedigree_hash)
        metadata = {VERDICT_METADATA: report.verdict}
        write_table(table, output / f"{name}.parquet", QUALITY_TABLES[name], provenance, metadata=metadata)
    with atomic_path(output / "relatives.svg") as temporary:
        relatives_figure(rows, report.resemblance.reference).savefig(temporary, format="svg")
    for finding in report.findings:
        log.warning("%s", finding.text)
    log.info("%s", report.verdict)
