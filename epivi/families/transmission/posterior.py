"""Posterior of the family `transmission`, averaged over its hypotheses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from epivi.discovery.average import Array, averaged_effect, averaged_quantile
from epivi.discovery.columns import STATISTICS
from epivi.discovery.probabilities import LOW_COVERAGE, QvalueTable, kinds, local_fdr, mixture_probabilities, rates
from epivi.families.transmission.columns import components_in, effects_in, parameters_of, posterior_columns
from epivi.loci.store import LocusSpan
from epivi.tables.columns import EVIDENCE_GOAL, Column, schema_columns

LARGEST_KHAT = 0.7
LARGEST_STANDARD_ERROR = 0.1  # nats; an upper estimate of the error, see epivi.families.transmission.outer_integral


def columns(hypotheses: Sequence[str], evidence: Sequence[Column]) -> tuple[Column, ...]:
    """With the shares of the covariance components and the effects of covariates that the evidence has."""
    return posterior_columns(hypotheses, components_in(evidence), effects_in(evidence))


def table(
    span: LocusSpan,
    evidence: pa.RecordBatch,
    hypotheses: Sequence[str],
    is_null: NDArray[np.bool_],
    weights: NDArray[np.float64],
    qvalues: QvalueTable,
    fdr: float,
) -> dict[str, Any]:
    """Columns of the posterior table for the loci of a span from their rows of evidence.

    weights: [R, H], draws over which probabilities are averaged.
    """
    found = schema_columns(evidence.schema)
    parameters, effects = parameters_of(components_in(found)), tuple(effects_in(found))
    statistics = [f"{parameter}_{statistic}" for parameter in (*parameters, *effects) for statistic in STATISTICS]
    wide = {
        name: evidence[name].to_numpy().astype(np.float64).reshape(-1, len(hypotheses))
        for name in ("log_evidence", "log_evidence_se", "khat", "inner_error", *statistics)
    }
    shard = EvidenceColumns(
        wide["log_evidence"],
        wide["log_evidence_se"],
        wide["khat"],
        wide["inner_error"],
        {name: wide[name] for name in statistics},
        effects,
    )
    return posterior_table(span, shard, hypotheses, is_null, weights, qvalues, fdr)


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
) -> dict[str, Any]:
    """The columns `posterior_columns` for the loci of `span`, [L] each."""
    probability = mixture_probabilities(evidence.log_evidence, weights)
    lfdr = local_fdr(probability, is_null)
    found_rates = rates(lfdr, table)
    found = kinds(probability, hypotheses, is_null)
    covered = np.count_nonzero(span.total, axis=1)
    reads = span.total.sum(1, dtype=np.int64)
    parameters = [name.removesuffix("_q50") for name in evidence.statistics if name.endswith("_q50")]
    columns: dict[str, Any] = {
        "contig": span.contig,
        "pos": span.pos0,
        "end": span.end0,
        "strand": span.strand,
        "context": span.context,
        "covered_samples": covered,
        "coverage_reads": reads,
    }
    for parameter in parameters:
        mean, low, middle, high = (evidence.statistics[f"{parameter}_{s}"] for s in ("mean", "q05", "q50", "q95"))
        columns[f"{parameter}_mean"] = (probability * mean).sum(1)
        for name, level in (("q05", 0.05), ("q95", 0.95)):
            quantiles = (probability, low, middle, high, level)
            columns[f"{parameter}_{name}"] = (
                averaged_effect(*quantiles)
                if parameter in evidence.effects
                else averaged_quantile(parameter, *quantiles)
            )
    columns |= {f"log_evidence_{name}": evidence.log_evidence[:, h] for h, name in enumerate(hypotheses)}
    columns |= {f"prob_{name}": probability[:, h] for h, name in enumerate(hypotheses)}
    columns |= {
        "lfdr": lfdr,
        "transmitted": 1.0 - lfdr,
        "qvalue": found_rates.qvalue,
        "control_qvalue": found_rates.control_qvalue,
        "called": found_rates.called(fdr),
        "kind_set": found.kind_set,
        "best": found.best,
        "flag_evidence": ~(evidence.inner_error <= EVIDENCE_GOAL).all(1),
        "flag_khat": (np.nan_to_num(evidence.khat, nan=0.0) > LARGEST_KHAT).any(1),
        "flag_low_coverage": reads < LOW_COVERAGE * covered,
        "flag_mc_error": (evidence.log_evidence_se > LARGEST_STANDARD_ERROR).any(1),
    }
    columns |= {
        f"{parameter}_{statistic}_{name}": evidence.statistics[f"{parameter}_{statistic}"][:, h]
        for h, name in enumerate(hypotheses)
        for parameter in parameters
        if parameter not in evidence.effects
        for statistic in ("mean", "q05", "q95")
    }
    return columns
