"""The per-locus table: hypothesis probabilities, model-averaged and conditional posteriors, and flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtr, ndtri

from epivi.compare import QvalueTable, local_fdr, posterior_probabilities, qvalues
from epivi.schema import PARAMETERS
from epivi.store import LocusBlock

Array = NDArray[np.float64]

# METHOD: hypotheses are compared, and what their Laplace approximations miss is mostly common to them, so that the
# inner integral is in doubt where its corrections differ between hypotheses, not where they are large. The part of a
# correction that the next order would change was measured at 2 to 10 %.
LARGEST_CORRECTION_DIFFERENCE = 0.2  # nats
LARGEST_CORRECTION = 10.0  # nats; far beyond what the series can bear, also the mark of an integral without a mode
LARGEST_KHAT = 0.7
LARGEST_STANDARD_ERROR = 0.1  # nats; an upper estimate of the error, see epivi.evidence
LOW_COVERAGE = 5.0  # reads per covered sample
BISECTIONS = 28  # of a range of 52: to 2e-7
UNCONSTRAINED_BOUND = 25.0  # of logits and logs that a quantile may take


class EvidenceColumns(NamedTuple):
    """One shard of the evidence table as arrays, L loci by H hypotheses."""

    log_evidence: Array  # [L, H]
    log_evidence_se: Array  # [L, H]
    khat: Array  # [L, H]
    laplace_correction: Array  # [L, H]
    statistics: Mapping[str, Array]  # <parameter>_<mean, q05, q50, q95> -> [L, H]


def posterior_table(
    block: LocusBlock,
    evidence: EvidenceColumns,
    hypotheses: Sequence[str],
    is_null: NDArray[np.bool_],
    weight: Array,
    table: QvalueTable,
) -> dict[str, Any]:
    """Columns of schema.posterior_columns for the loci of `block`, [L] each."""
    probability = posterior_probabilities(evidence.log_evidence, weight)
    lfdr = local_fdr(probability, is_null)
    covered = np.count_nonzero(block.total, axis=1)
    reads = block.total.sum(1, dtype=np.int64)
    columns: dict[str, Any] = {
        "pos": block.pos0,
        "end": block.end0,
        "strand": block.strand,
        "context": block.context,
        "covered_samples": covered,
        "coverage_reads": reads,
    }
    for parameter in PARAMETERS:
        mean, low, middle, high = (evidence.statistics[f"{parameter}_{s}"] for s in ("mean", "q05", "q50", "q95"))
        columns[f"{parameter}_mean"] = (probability * mean).sum(1)
        for name, level in (("q05", 0.05), ("q95", 0.95)):
            columns[f"{parameter}_{name}"] = averaged_quantile(parameter, probability, low, middle, high, level)
    columns |= {f"log_evidence_{name}": evidence.log_evidence[:, h] for h, name in enumerate(hypotheses)}
    columns |= {f"prob_{name}": probability[:, h] for h, name in enumerate(hypotheses)}
    columns |= {
        "lfdr": lfdr,
        "qvalue": qvalues(lfdr, table),
        "best": np.array(hypotheses)[probability.argmax(1)],
        "flag_evidence": (np.ptp(evidence.laplace_correction, axis=1) > LARGEST_CORRECTION_DIFFERENCE)
        | (evidence.laplace_correction.max(1) > LARGEST_CORRECTION),
        "flag_khat": (np.nan_to_num(evidence.khat, nan=0.0) > LARGEST_KHAT).any(1),
        "flag_low_coverage": reads < LOW_COVERAGE * covered,
        "flag_mc_error": (evidence.log_evidence_se > LARGEST_STANDARD_ERROR).any(1),
    }
    columns |= {
        f"{parameter}_{statistic}_{name}": evidence.statistics[f"{parameter}_{statistic}"][:, h]
        for h, name in enumerate(hypotheses)
        for parameter in PARAMETERS
        for statistic in ("mean", "q05", "q95")
    }
    return columns


def averaged_quantile(
    parameter: str, probability: Array, low: Array, middle: Array, high: Array, level: float
) -> Array:
    """Quantile [L] of the mixture over hypotheses of a parameter, from each one's 5, 50 and 95 % quantiles [L, H].

    On the unconstrained scale (log of the spread, else logit) a hypothesis's posterior is taken as two half-normals
    that meet at the median and fit the outer quantiles; a fixed or absent parameter is an atom.
    """
    forward, backward = (np.log, np.exp) if parameter == "spread" else (logit, expit)
    with np.errstate(divide="ignore"):
        low, middle, high = (
            np.clip(forward(x), -UNCONSTRAINED_BOUND, UNCONSTRAINED_BOUND) for x in (low, middle, high)
        )
    z95 = float(ndtri(0.95))
    below, above = np.maximum(middle - low, 1e-9) / z95, np.maximum(high - middle, 1e-9) / z95
    lower = np.full(len(probability), -UNCONSTRAINED_BOUND - 1.0)
    upper = -lower
    for _ in range(BISECTIONS):
        x = 0.5 * (lower + upper)
        offset = x[:, None] - middle
        score = offset / np.where(offset < 0, below, above)
        is_below = (probability * ndtr(score)).sum(1) < level
        lower, upper = np.where(is_below, x, lower), np.where(is_below, upper, x)
    quantile = backward(upper)
    # An atom at 0 or 1 lies at the bound of the unconstrained scale.
    if parameter != "spread":
        quantile = np.where(upper <= -UNCONSTRAINED_BOUND + 1e-6, 0.0, quantile)
        quantile = np.where(upper >= UNCONSTRAINED_BOUND - 1e-6, 1.0, quantile)
    return quantile
