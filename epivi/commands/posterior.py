"""`epivi posterior`: one shard of evidence and the comparison -> the table that users query."""

from __future__ import annotations

import logging
from pathlib import Path

import click

log = logging.getLogger(__name__)

CHUNK_LOCI = 50_000


@click.command("posterior")
@click.option("--evidence", required=True, type=click.Path(path_type=Path), help="One shard of epivi evidence.")
@click.option("--loci", required=True, type=click.Path(), help="Folder written by epivi assemble.")
@click.option(
    "--compare", "comparison", required=True, type=click.Path(path_type=Path), help="Folder of the comparison."
)
@click.option(
    "--usual",
    type=click.Path(path_type=Path),
    help="Loci drawn from the fitted model, as epivi controls writes them: gives misfit_pvalue.  [default: none]",
)
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Parquet file of the shard.")
@click.option("--config", "config_source", required=True, help="Configuration file, or inline JSON.")
def command(evidence: Path, loci: str, comparison: Path, usual: Path | None, output: Path, config_source: str) -> None:
    """Turn a shard's evidence into hypothesis probabilities and model-averaged posteriors, one row a locus."""
    import numpy as np
    import pyarrow as pa

    from epivi.base.code_version import code_version
    from epivi.base.files import content_hash
    from epivi.commands.shard import read_comparison, read_shard
    from epivi.config.load import load_config
    from epivi.discovery.merged import group_name, merged_nulls
    from epivi.discovery.misfit import count_statistics, misfit_columns, read_usual
    from epivi.families import family_step
    from epivi.loci.store import LociStore
    from epivi.tables.columns import schema_columns
    from epivi.tables.parquet import Provenance, TableWriter
    from epivi.tables.parts import part_metadata

    config = load_config(config_source)
    names = list(config.section("model")["hypotheses"])
    store = LociStore.open(loci)
    shard = read_shard(evidence, store, names)
    compared = read_comparison(comparison, names, shard.part)
    is_null = merged_nulls(np.isin(names, config.null_hypotheses), compared.groups)
    merged = [group_name(group, names) for group in compared.groups if len(group) > 1]
    fdr = config.section("compare")["fdr"]
    source = shard.provenance
    provenance = Provenance("posterior", source.seed, config.hash("model", "compare"), source.pedigree_hash)
    stamp = content_hash([code_version("posterior", config.family), provenance.metadata(), compared.stamp])
    start, stop = shard.part.start, shard.part.stop
    metadata = part_metadata((start, stop), store.n_loci, shard.part.contigs, stamp, compared.stamp)
    posterior = family_step(config.family, "posterior")
    columns = posterior.columns(names, schema_columns(shard.file.schema_arrow), merged)
    has_misfit = any(column.name == "misfit_pvalue" for column in columns)
    expected = None if usual is None else read_usual(usual, names, compared.draws.mean(axis=0))
    with TableWriter(output, columns, provenance, metadata=metadata) as writer:
        first = start
        for batch in shard.file.iter_batches(batch_size=CHUNK_LOCI * len(names)):
            span = store.span(first, first + batch.num_rows // len(names))
            first += len(span.pos0)
            rows = posterior.table(span, batch, names, is_null, compared.draws, compared.qvalues, fdr, compared.groups)
            rows["flag_cannot_tell"] = np.full(len(span.pos0), bool(compared.cannot_tell))
            if has_misfit:
                log_evidence = np.stack([rows[f"log_evidence_{name}"] for name in names], axis=1)
                rows |= misfit_columns(expected, log_evidence, count_statistics(span.meth, span.total))
            writer.write(pa.table(rows))
    log.info("%s: %d loci", output, stop - start)
