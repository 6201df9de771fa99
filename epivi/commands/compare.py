"""`epivi compare`: all evidence -> weights of the hypotheses and the table of q-values."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import numpy as np

    from epivi.tables.parts import Part

log = logging.getLogger(__name__)


@click.command("compare")
@click.option("--evidence", required=True, type=click.Path(path_type=Path), help="Folder of the evidence shards.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder of the comparison.")
@click.option("--config", "config_source", required=True, help="Configuration file, or inline JSON.")
def command(evidence: Path, output: Path, config_source: str) -> None:
    """Estimate the weights of the hypotheses over all loci, and the false discovery rate at every lfdr.

    Writes weights.parquet, weights.json and qvalue.parquet. The evidence must be whole: all parts, of one run. Where
    fewer than two families have sampled relatives, nothing is learned or called.
    """
    import numpy as np
    import pyarrow as pa

    from epivi.base.code_version import code_version
    from epivi.base.files import content_hash, write_json
    from epivi.config.load import load_config
    from epivi.discovery.columns import DISCOVERY_TABLES
    from epivi.discovery.compare import estimate_weights, nothing_called, qvalue_table, unlearned_weights
    from epivi.discovery.replicates import (
        CANNOT_TELL_METADATA,
        FAMILIES_METADATA,
        warning_of_few_families,
        why_nothing_is_called,
    )
    from epivi.loci.store import read_provenance
    from epivi.tables.parquet import Provenance, write_table
    from epivi.tables.parts import MADE_FROM, STAMP, whole_table

    config = load_config(config_source)
    names = list(config.section("model")["hypotheses"])
    parts = whole_table(evidence, "evidence")

    def evidence_pass() -> Iterator[np.ndarray]:
        for part in parts:
            yield _log_evidence(part, names)

    n_loci = parts[0].n_loci
    section, seed = config.section("compare"), config.seed()
    is_null = np.isin(names, config.null_hypotheses)
    families = _families(parts[0])
    cannot_tell = why_nothing_is_called(families)
    if cannot_tell:
        weights = unlearned_weights(len(names), n_loci)
        table = nothing_called(qvalue_table(evidence_pass, weights.weight, is_null))
    else:
        weights = estimate_weights(evidence_pass, n_loci, section["blocks"], section["bootstrap"], seed)
        table = qvalue_table(evidence_pass, weights.weight, is_null)
    identity = read_provenance(parts[0].path).pedigree_hash

    def provenance(kind: str) -> Provenance:
        return Provenance(kind, seed, config.hash("model", "compare"), identity)

    stamp = content_hash([code_version("compare"), provenance("weights").metadata(), parts[0].stamp])
    replicates = {} if families is None else {FAMILIES_METADATA: str(families)}
    metadata = {STAMP: stamp, MADE_FROM: parts[0].stamp, CANNOT_TELL_METADATA: cannot_tell} | replicates
    write_table(
        pa.table({"lfdr": table.lfdr, "qvalue": table.qvalue, "n_loci": table.n_loci}),
        output / "qvalue.parquet",
        DISCOVERY_TABLES["qvalue"],
        provenance("qvalue"),
        metadata=metadata,
    )
    rows = {
        "hypothesis": names,
        "weight": weights.weight.tolist(),
        "lower": weights.lower.tolist(),
        "upper": weights.upper.tolist(),
        "n_loci": [weights.n_loci] * len(names),
    }
    write_json(output / "weights.json", [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)])
    write_table(
        pa.table(rows),
        output / "weights.parquet",
        DISCOVERY_TABLES["weights"],
        provenance("weights"),
        metadata=metadata,
    )
    warning = warning_of_few_families(families)
    if warning:
        log.warning("%s", warning)
    for name, weight, lower, upper in zip(names, weights.weight, weights.lower, weights.upper, strict=True):
        log.info("%-20s %.4f (%.4f to %.4f)", name, weight, lower, upper)


def _families(part: Part) -> int | None:
    """Independent families of the cohort that a part of the evidence is of; None where they do not matter."""
    from epivi.discovery.replicates import FAMILIES_METADATA
    from epivi.tables.parquet import open_parquet

    text = open_parquet(part.path, "evidence")[0].schema_arrow.metadata.get(FAMILIES_METADATA.encode())
    return None if text is None else int(text)


def _log_evidence(part: Part, names: list[str]) -> np.ndarray:
    """Log evidences of one shard, [L, H] in the order of the configuration."""
    from epivi.base.errors import UserError
    from epivi.tables.parquet import read_table

    path = part.path
    table = read_table(path, "evidence", ["hypothesis", "log_evidence"])
    found = table["hypothesis"].unique().to_pylist()
    if found != names:
        raise UserError(f"{path}: holds the hypotheses {', '.join(found)}; expected {', '.join(names)}, as configured")
    if table.num_rows != (part.stop - part.start) * len(names):
        raise UserError(
            f"{path}: holds {table.num_rows:,} rows; expected {len(names)} for each of its "
            f"{part.stop - part.start:,} loci: run epivi evidence again"
        )
    return table["log_evidence"].to_numpy().reshape(-1, len(names))
