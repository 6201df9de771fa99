"""Posterior of the family `transmission`, averaged over its hypotheses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from epivi.discovery.average import Array
from epivi.discovery.columns import STATISTICS
from epivi.discovery.merged import Groups
from epivi.discovery.probabilities import QvalueTable
from epivi.discovery.rows import posterior_rows, wide
from epivi.families.transmission.columns import components_in, effects_in, parameters_of, posterior_columns
from epivi.loci.store import LocusSpan
from epivi.tables.columns import EVIDENCE_GOAL, Column, schema_columns

LARGEST_KHAT = 0.7
LARGEST_STANDARD_ERROR = 0.1  # nats; an upper estimate of the error, see epivi.families.transmission.outer_integral


def columns(hypotheses: Sequence[str], evidence: Sequence[Column], merged: Sequence[str] = ()) -> tuple[Column, ...]:
    """With the shares of the covariance components and the effects of covariates that the evidence has.

    merged: names of groups of hypotheses that the samples cannot separate.
    """
    return posterior_columns(hypotheses, components_in(evidence), effects_in(evidence), merged)


def table(
    span: LocusSpan,
    evidence: pa.RecordBatch,
    hypotheses: Sequence[str],
    is_null: NDArray[np.bool_],
    weights: NDArray[np.float64],
    qvalues: QvalueTable,
    fdr: float,
    groups: Groups | None = None,
) -> dict[str, Any]:
    """Columns of the posterior table for the loci of a span from their rows of evidence.

    weights: [R, H], draws over which probabilities are averaged. groups: as of `posterior_rows`.
    """
    found = schema_columns(evidence.schema)
    parameters, effects = parameters_of(components_in(found)), tuple(effects_in(found))
    statistics = [f"{parameter}_{statistic}" for parameter in (*parameters, *effects) for statistic in STATISTICS]
    h = len(hypotheses)
    log_evidence, error, khat, inner_error = (
        wide(evidence, name, h) for name in ("log_evidence", "log_evidence_se", "khat", "inner_error")
    )
    found_statistics = {name: wide(evidence, name, h) for name in statistics}
    shard = EvidenceColumns(log_evidence, error, khat, inner_error, found_statistics, effects)
    return posterior_table(span, shard, hypotheses, is_null, weights, qvalues, fdr, groups)


class EvidenceColumns(NamedTuple):
    """One shard of the evidence table as arrays, L loci by H hypotheses."""

    log_evidence: Array  # [L, H]
    log_evidence_se: Array  # [L, H]
    khat: Array  # [L, H]
    inner_error: Array  # [L, H]
    statistics: Mapping[str, Array]  # <parameter>_<mean, q05, q50, q95> -> [L, H]
    effects: tuple[str, ...] = ()  # those of the parameters that are effects of covariates


def posterior_table(
    span: LocusSpan,
    evidence: EvidenceColumns,
    hypotheses: Sequence[str],
    is_null: NDArray[np.bool_],
    weights: Array,
    table: QvalueTable,
    fdr: float,
    groups: Groups | None = None,
) -> dict[str, Any]:
    """The columns `posterior_columns` for the loci of `span`, [L] each."""
    common = posterior_rows(
        span,
        evidence.log_evidence,
        evidence.statistics,
        hypotheses,
        is_null,
        weights,
        table,
        fdr,
        evidence.effects,
        groups,
    )
    return common | {
        "flag_evidence": ~(evidence.inner_error <= EVIDENCE_GOAL).all(1),
        "flag_khat": (np.nan_to_num(evidence.khat, nan=0.0) > LARGEST_KHAT).any(1),
        "flag_mc_error": (evidence.log_evidence_se > LARGEST_STANDARD_ERROR).any(1),
    }
