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
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Parquet file of the shard.")
@click.option("--config", "config_source", required=True, help="Configuration file, or inline JSON.")
def command(evidence: Path, loci: str, comparison: Path, output: Path, config_source: str) -> None:
    """Turn a shard's evidence into hypothesis probabilities and model-averaged posteriors, one row a locus."""
    import numpy as np
    import pyarrow as pa

    from epivi.compare import QvalueTable
    from epivi.config import load_config
    from epivi.errors import UserError
    from epivi.families import FAMILIES
    from epivi.store import LociStore, Provenance, TableWriter, open_parquet, read_table

    config = load_config(config_source)
    names = list(config.section("model")["hypotheses"])
    store = LociStore.open(loci)
    file, source = open_parquet(evidence, "evidence")
    metadata = {key.decode(): value.decode() for key, value in file.schema_arrow.metadata.items()}
    contig, start, stop = metadata["epivi.contig"], int(metadata["epivi.start"]), int(metadata["epivi.stop"])
    if store.n_loci_of(contig) < stop or file.metadata.num_rows != (stop - start) * len(names):
        raise UserError(f"{evidence}: does not belong to {loci} and {len(names)} hypotheses; run epivi evidence again")
    weights = read_table(comparison / "weights.parquet", "weights")
    if weights["hypothesis"].to_pylist() != names:
        raise UserError(f"{comparison}: compares other hypotheses than {', '.join(names)}; run epivi compare again")
    steps = read_table(comparison / "qvalue.parquet", "qvalue")
    table = QvalueTable(*(steps[name].to_numpy() for name in ("lfdr", "qvalue", "n_loci")))
    is_null = np.isin(names, config.null_hypotheses)
    provenance = Provenance("posterior", source.seed, config.hash("model", "compare"), source.pedigree_hash)
    family = FAMILIES[config.family]
    with TableWriter(output, family.posterior_columns(names), provenance, metadata={"epivi.contig": contig}) as writer:
        first = start
        for batch in file.iter_batches(batch_size=CHUNK_LOCI * len(names)):
            block = store.block(contig, first, first + batch.num_rows // len(names))
            first += len(block.pos0)
            writer.write(
                pa.table(family.posterior_table(block, batch, names, is_null, weights["weight"].to_numpy(), table))
            )
    log.info("%s: %d loci", output, stop - start)
