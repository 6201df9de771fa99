"""Rows of the tables of evidence and posterior of any family: a row a hypothesis and locus, and a row a locus."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from epivi.discovery.average import averaged_effect, averaged_quantile
from epivi.discovery.columns import AVERAGED_STATISTICS, STATISTICS
from epivi.discovery.merged import Groups, group_name
from epivi.discovery.probabilities import LOW_COVERAGE, QvalueTable, kinds, local_fdr, mixture_probabilities, rates
from epivi.loci.store import LocusSpan

Array = NDArray[np.float64]


def labels(codes: NDArray[np.integer[Any]], words: Sequence[str]) -> pa.Array:
    """A column of words from their codes [rows]."""
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), pa.array(list(words)))


def long(values: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Values [L] of each hypothesis as one column [L H], in which the hypotheses of a locus follow one another."""
    return np.stack(values, axis=1).ravel()


def evidence_rows(
    places: Mapping[str, Any],
    hypotheses: Sequence[str],
    parameters: Sequence[str],
    evidences: Sequence[Any],
    numbers: Sequence[str],
) -> dict[str, Any]:
    """Columns of the evidence of L loci in long form, [L H] each.

    places: columns that come first. evidences: of each hypothesis a NamedTuple that holds `numbers`, [L] each, and the
    STATISTICS of the parameters in their order, [L, parameters] each.
    """
    loci, h = len(evidences[0].log_evidence), len(hypotheses)
    columns = {**places, "hypothesis": labels(np.tile(np.arange(h), loci), hypotheses)}
    columns |= {name: long([getattr(evidence, name) for evidence in evidences]) for name in numbers}
    for k, parameter in enumerate(parameters):
        for statistic in STATISTICS:
            values = long([getattr(evidence, statistic)[:, k] for evidence in evidences])
            columns[f"{parameter}_{statistic}"] = values.astype(np.float32)
    return columns


def wide(evidence: pa.RecordBatch, name: str, hypotheses: int) -> Array:
    """A column of rows of evidence as [L, H]."""
    values: Array = evidence[name].to_numpy(zero_copy_only=False).astype(np.float64).reshape(-1, hypotheses)
    return values


def posterior_rows(
    span: LocusSpan,
    log_evidence: Array,
    statistics: Mapping[str, Array],
    hypotheses: Sequence[str],
    is_null: NDArray[np.bool_],
    weights: Array,
    table: QvalueTable,
    fdr: float,
    effects: Collection[str] = (),
    groups: Groups | None = None,
) -> dict[str, Any]:
    """The columns of the posterior table that every family has, for the L loci of a span, [L] each.

    log_evidence: [L, H]. statistics: <parameter>_<mean, q05, q50, q95> -> [L, H]. weights: [R, H], draws over which
    probabilities are averaged. effects: parameters that are effects of covariates, which are averaged over hypotheses
    only. groups: of hypotheses that nothing separates, which `kind_set` and `best` keep together; is_null counts whole
    groups.
    """
    probability = mixture_probabilities(log_evidence, weights)
    lfdr = local_fdr(probability, is_null)
    found_rates, found_kinds = rates(lfdr, table), kinds(probability, hypotheses, is_null, groups)
    covered = np.count_nonzero(span.total, axis=1)
    reads = span.total.sum(1, dtype=np.int64)
    parameters = [name.removesuffix("_q50") for name in statistics if name.endswith("_q50")]
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
        mean, low, middle, high = (statistics[f"{parameter}_{statistic}"] for statistic in STATISTICS)
        columns[f"{parameter}_mean"] = (probability * mean).sum(1)
        for name, level in (("q05", 0.05), ("q95", 0.95)):
            columns[f"{parameter}_{name}"] = (
                averaged_effect(probability, low, middle, high, level)
                if parameter in effects
                else averaged_quantile(parameter, probability, low, middle, high, level)
            )
    columns |= {f"log_evidence_{name}": log_evidence[:, h] for h, name in enumerate(hypotheses)}
    columns |= {f"prob_{name}": probability[:, h] for h, name in enumerate(hypotheses)}
    for group in groups or ():
        if len(group) > 1:
            columns[f"prob_{group_name(group, hypotheses)}"] = probability[:, list(group)].sum(1)
    columns |= {
        "lfdr": lfdr,
        "transmitted": 1.0 - lfdr,
        "qvalue": found_rates.qvalue,
        "control_qvalue": found_rates.control_qvalue,
        "called": found_rates.called(fdr),
        "kind_set": found_kinds.kind_set,
        "best": found_kinds.best,
        "flag_low_coverage": reads < LOW_COVERAGE * covered,
    }
    columns |= {
        f"{parameter}_{statistic}_{name}": statistics[f"{parameter}_{statistic}"][:, h]
        for h, name in enumerate(hypotheses)
        for parameter in parameters
        if parameter not in effects
        for statistic in AVERAGED_STATISTICS
    }
    return columns
