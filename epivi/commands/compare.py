"""`epivi compare`: all evidence -> weights of the hypotheses and the table of q-values."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from epivi.discovery.controls import ControlEvidence
    from epivi.discovery.merged import Groups
    from epivi.discovery.weights import Weights
    from epivi.tables.parts import Part

log = logging.getLogger(__name__)


@click.command("compare")
@click.option("--evidence", required=True, type=click.Path(path_type=Path), help="Folder of the evidence shards.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder of the comparison.")
@click.option(
    "--controls",
    type=click.Path(path_type=Path),
    help="File written by epivi controls: exchanged pedigrees, families left out.  [default: none]",
)
@click.option(
    "--design",
    type=click.Path(path_type=Path),
    help="File design.parquet of epivi design: hypotheses that nothing separates are one.  [default: none]",
)
@click.option(
    "--relatives",
    type=click.Path(path_type=Path),
    help="findings.parquet of epivi relatives, which may forbid calls.  [default: none]",
)
@click.option("--config", "config_source", required=True, help="Configuration file, or inline JSON.")
def command(
    evidence: Path,
    output: Path,
    controls: Path | None,
    design: Path | None,
    relatives: Path | None,
    config_source: str,
) -> None:
    """Estimate the weights of the hypotheses over all loci, and the false discovery rate at every lfdr.

    Writes weights.parquet, weights.json, weight_draws.parquet and qvalue.parquet. The evidence must be whole: all
    parts, of one run. Where fewer than two families have sampled relatives, nothing is learned or called; where the
    controls say that the pedigree does not matter, or a factor of all loci coincides with families, nothing is called.
    The controls go to control_tests.parquet. Hypotheses that the design cannot separate are counted together, and with
    a null hypothesis as null.
    """
    import numpy as np
    import pyarrow as pa

    from epivi.base.code_version import code_version
    from epivi.base.files import content_hash, write_json
    from epivi.config.load import load_config
    from epivi.discovery.columns import DISCOVERY_TABLES
    from epivi.discovery.control_file import check_same_evidence, read_controls
    from epivi.discovery.controls import control_qvalues, judge
    from epivi.discovery.merged import each_alone, group_name, merged_nulls, read_groups, why_nothing_is_separate
    from epivi.discovery.probabilities import nothing_called, qvalue_table
    from epivi.discovery.replicates import (
        CANNOT_TELL_METADATA,
        FAMILIES_METADATA,
        warning_of_few_families,
        why_nothing_is_called,
    )
    from epivi.discovery.weights import prior_weights, weight_posterior, weight_prior
    from epivi.loci.store import read_provenance
    from epivi.tables.columns import arrow_schema
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
    identity = read_provenance(parts[0].path).pedigree_hash
    groups = each_alone(len(names)) if design is None else read_groups(design, names, identity)
    declared_null = np.isin(names, config.null_hypotheses)
    prior, is_null = weight_prior(section, declared_null), merged_nulls(declared_null, groups)
    families = _families(parts[0])
    cannot_tell = why_nothing_is_called(families)
    if cannot_tell:
        weights = prior_weights(prior, section["draws"], seed, n_loci)
    else:
        weights = weight_posterior(evidence_pass, n_loci, prior, section["blocks"], section["draws"], seed)
    table = qvalue_table(evidence_pass, weights.tilted, is_null)
    found: tuple[ControlEvidence, ...] = ()
    if controls is not None:
        sampled = read_controls(controls, names)
        check_same_evidence(sampled, evidence_pass())
        found = sampled.evidences
        table = table._replace(control_qvalue=control_qvalues(table, found, prior, weights.tilted, is_null))
    verdict = judge(found, prior, weights.tilted, is_null, table.largest_lfdr(section["fdr"]), groups)
    cannot_tell = cannot_tell or why_nothing_is_separate(declared_null, groups) or verdict.cannot_tell
    cannot_tell = cannot_tell or _coinciding_factor(relatives)
    if cannot_tell:
        table = nothing_called(table)

    def provenance(kind: str) -> Provenance:
        return Provenance(kind, seed, config.hash("model", "compare"), identity)

    stamp = content_hash([code_version("compare"), provenance("weights").metadata(), parts[0].stamp])
    replicates = {} if families is None else {FAMILIES_METADATA: str(families)}
    metadata = {STAMP: stamp, MADE_FROM: parts[0].stamp, CANNOT_TELL_METADATA: cannot_tell} | replicates
    write_table(
        pa.table(table._asdict()),
        output / "qvalue.parquet",
        DISCOVERY_TABLES["qvalue"],
        provenance("qvalue"),
        metadata=metadata,
    )
    write_table(
        _draws(weights, names),
        output / "weight_draws.parquet",
        DISCOVERY_TABLES["weight_draws"],
        provenance("weight_draws"),
        metadata=metadata,
    )
    rows = {
        "hypothesis": names,
        "weight": weights.weight.tolist(),
        "lower": weights.lower.tolist(),
        "upper": weights.upper.tolist(),
        **{
            name: getattr(verdict, name).tolist()
            for name in ("family_lower", "family_upper", "prior_lower", "prior_upper")
        },
        "n_loci": [weights.n_loci] * len(names),
        **_merged(weights, groups, names),
        **{name: getattr(verdict, name).tolist() for name in ("merged_family_lower", "merged_family_upper")},
    }
    write_json(output / "weights.json", [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)])
    write_table(
        pa.table(rows),
        output / "weights.parquet",
        DISCOVERY_TABLES["weights"],
        provenance("weights"),
        metadata=metadata,
    )
    write_table(
        pa.Table.from_pylist(
            [test._asdict() for test in verdict.tests], arrow_schema(DISCOVERY_TABLES["control_tests"])
        ),
        output / "control_tests.parquet",
        DISCOVERY_TABLES["control_tests"],
        provenance("control_tests"),
        metadata=metadata,
    )
    warning = cannot_tell or warning_of_few_families(families)
    if warning:
        log.warning("%s", warning)
    for group in groups:
        row = [rows[column][group[0]] for column in ("merged_weight", "merged_lower", "merged_upper")]
        log.info("%-20s %.4f (%.4f to %.4f)", group_name(group, names), *row)


def _merged(weights: Weights, groups: Groups, names: list[str]) -> dict[str, list]:
    """Of each hypothesis the group that it is one with, and the group's weight with its 95 % interval."""
    import numpy as np

    from epivi.discovery.merged import group_name, summed

    of_group = summed(weights.draws, groups)
    lower, upper = np.quantile(of_group, [0.025, 0.975], axis=0)
    position = {h: g for g, group in enumerate(groups) for h in group}
    of_hypothesis = [position[h] for h in range(len(names))]
    return {
        "merged": [group_name(groups[g], names) for g in of_hypothesis],
        "merged_weight": of_group.mean(0)[of_hypothesis].tolist(),
        "merged_lower": lower[of_hypothesis].tolist(),
        "merged_upper": upper[of_hypothesis].tolist(),
    }


def _draws(weights: Weights, names: list[str]) -> pa.Table:
    """Rows of the table weight_draws: the hypotheses of a draw follow one another."""
    import numpy as np
    import pyarrow as pa

    draws = len(weights.draws)
    columns = {
        "draw": np.repeat(np.arange(draws, dtype=np.int32), len(names)),
        "hypothesis": names * draws,
        "weight": weights.draws.ravel(),
        "tilted": weights.tilted.ravel(),
    }
    return pa.table(columns)


def _families(part: Part) -> int | None:
    """Independent families of the cohort that a part of the evidence is of; None where they do not matter."""
    from epivi.discovery.replicates import FAMILIES_METADATA
    from epivi.tables.parquet import open_parquet

    text = open_parquet(part.path, "evidence")[0].schema_arrow.metadata.get(FAMILIES_METADATA.encode())
    return None if text is None else int(text)


def _coinciding_factor(findings: Path | None) -> str:
    """Why nothing is called where a factor of all loci coincides with families; empty where none does."""
    from epivi.discovery.replicates import why_family_is_not_told
    from epivi.tables.parquet import read_table

    if findings is None:
        return ""
    return why_family_is_not_told(read_table(findings, "findings", ["check", "text"]).to_pylist())


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
