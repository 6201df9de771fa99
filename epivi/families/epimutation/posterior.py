"""Posterior of the family `epimutation`, averaged over its hypotheses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from epivi.discovery.average import averaged_quantile
from epivi.discovery.probabilities import LOW_COVERAGE, QvalueTable, kinds, local_fdr, mixture_probabilities, rates
from epivi.families.epimutation.columns import STATE_PARAMETERS, state_posterior_columns
from epivi.loci.store import LocusSpan
from epivi.tables.columns import EVIDENCE_GOAL, Column

Array = NDArray[np.float64]


def columns(hypotheses: Sequence[str], evidence: Sequence[Column]) -> tuple[Column, ...]:
    """The same whatever the columns of the evidence."""
    return state_posterior_columns(hypotheses)


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
    return state_posterior_table(span, evidence, hypotheses, is_null, weights, qvalues, fdr)


def state_posterior_table(
    span: LocusSpan,
    evidence: pa.RecordBatch,
    hypotheses: Sequence[str],
    is_null: NDArray[np.bool_],
    weights: Array,
    table: QvalueTable,
    fdr: float,
) -> dict[str, Any]:
    """Columns of schema.state_posterior_columns for the loci of `span`, [L] each, from their rows of evidence."""
    h = len(hypotheses)

    def wide(name: str) -> Array:
        values: Array = evidence[name].to_numpy(zero_copy_only=False).astype(np.float64).reshape(-1, h)
        return values

    log_evidence = wide("log_evidence")
    probability = mixture_probabilities(log_evidence, weights)
    lfdr = local_fdr(probability, is_null)
    found_rates = rates(lfdr, table)
    found_kinds = kinds(probability, hypotheses, is_null)
    covered = np.count_nonzero(span.total, axis=1)
    reads = span.total.sum(1, dtype=np.int64)
    columns: dict[str, Any] = {
        "contig": span.contig,
        "pos": span.pos0,
        "end": span.end0,
        "strand": span.strand,
        "context": span.context,
        "class": evidence["class"].take(pa.array(np.arange(0, evidence.num_rows, h))),
        "covered_samples": covered,
        "coverage_reads": reads,
    }
    statistics = {
        parameter: {s: wide(f"{parameter}_{s}") for s in ("mean", "q05", "q50", "q95")}
        for parameter in STATE_PARAMETERS
    }
    for parameter, found in statistics.items():
        columns[f"{parameter}_mean"] = (probability * found["mean"]).sum(1)
        for name, level in (("q05", 0.05), ("q95", 0.95)):
            columns[f"{parameter}_{name}"] = averaged_quantile(
                parameter, probability, found["q05"], found["q50"], found["q95"], level
            )
    columns |= {f"log_evidence_{name}": log_evidence[:, k] for k, name in enumerate(hypotheses)}
    columns |= {f"prob_{name}": probability[:, k] for k, name in enumerate(hypotheses)}
    columns |= {
        "lfdr": lfdr,
        "transmitted": 1.0 - lfdr,
        "qvalue": found_rates.qvalue,
        "control_qvalue": found_rates.control_qvalue,
        "called": found_rates.called(fdr),
        "kind_set": found_kinds.kind_set,
        "best": found_kinds.best,
        "flag_evidence": ~(wide("log_evidence_error") <= EVIDENCE_GOAL).all(1),
        "flag_low_coverage": reads < LOW_COVERAGE * covered,
    }
    columns |= {
        f"{parameter}_{statistic}_{name}": found[statistic][:, k]
        for k, name in enumerate(hypotheses)
        for parameter, found in statistics.items()
        for statistic in ("mean", "q05", "q95")
    }
    return columns
