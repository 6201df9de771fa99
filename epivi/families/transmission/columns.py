"""Columns of the tables of the family `transmission`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from epivi.tables.columns import CONTIG, END, HYPOTHESIS, LABEL, POS, Column

STATISTICS = ("mean", "q05", "q50", "q95")

# The per-locus quantities of the posterior: name -> (unit, range, meaning).
PARAMETERS: Mapping[str, tuple[str, str, str]] = {
    "baseline": ("fraction", "0..1", "baseline methylation of the cohort, at the average covariates"),
    "spread": ("logit", "> 0", "SD between individuals (sigma)"),
    "heritable_share": ("fraction", "0..1", "share of the variance between individuals that relatives can share (rho)"),
    "transmissibility": (
        "fraction",
        "0..1",
        "share of a parent's deviation that survives transmission (tau), the larger of the two parents'",
    ),
    "slope": (
        "fraction",
        "0..1",
        "parent-offspring slope: heritable share times the mean of maternal and paternal transmissibility",
    ),
}

TRANSMISSION_TABLES: Mapping[str, tuple[Column, ...]] = {
    "evidence": (
        CONTIG,
        POS,
        END,
        HYPOTHESIS,
        Column("log_evidence", pa.float64(), "nats", "any", "log marginal likelihood of the locus's counts"),
        Column("log_evidence_se", pa.float32(), "nats", ">= 0", "Monte Carlo standard error of log_evidence"),
        Column("khat", pa.float32(), "", "any, nan", "Pareto shape of the importance weights; nan if not evaluated"),
        Column("inner_method", LABEL, "", "laplace ep importance", "method of the integral over the latent field"),
        Column(
            "inner_error",
            pa.float32(),
            "nats",
            ">= 0, inf",
            "estimated error that the integral over the latent field leaves against the locus's other hypotheses",
        ),
        Column("laplace_correction", pa.float32(), "nats", ">= 0", "weighted absolute second-order Laplace correction"),
        *(
            Column(f"{name}_{statistic}", pa.float32(), unit, f"{values}, nan", f"posterior {words} of {name}: {doc}")
            for name, (unit, values, doc) in PARAMETERS.items()
            for statistic, words in (
                ("mean", "mean"),
                ("q05", "5 % quantile"),
                ("q50", "median"),
                ("q95", "95 % quantile"),
            )
        ),
    ),
}


def posterior_columns(hypotheses: Sequence[str]) -> tuple[Column, ...]:
    """Columns of the table that users query, for hypotheses in the order of the configuration.

    Raises ValueError if two hypotheses differ only in case, because SQL could not tell their columns apart.
    """
    if len({name.lower() for name in hypotheses}) < len(hypotheses):
        raise ValueError(f"hypotheses must differ in more than case: {', '.join(hypotheses)}")
    statistics = (("mean", "mean"), ("q05", "5 % quantile"), ("q95", "95 % quantile"))
    return (
        CONTIG,
        POS,
        END,
        Column("strand", LABEL, "", "+ - .", "strand; . is both strands together, or unknown"),
        Column("context", LABEL, "", "CG CHG CHH .", "sequence context of the cytosines"),
        Column("covered_samples", pa.int16(), "samples", ">= 1", "samples with at least one read"),
        Column("coverage_reads", pa.int32(), "reads", ">= 1", "reads over all samples"),
        *(
            Column(f"{name}_{statistic}", pa.float32(), unit, values, f"{words}, averaged over hypotheses: {doc}")
            for name, (unit, values, doc) in PARAMETERS.items()
            for statistic, words in statistics
        ),
        *(
            Column(f"log_evidence_{name}", pa.float64(), "nats", "any", f"log marginal likelihood under {name}")
            for name in hypotheses
        ),
        *(
            Column(f"prob_{name}", pa.float64(), "probability", "0..1", f"posterior probability of {name}")
            for name in hypotheses
        ),
        Column("lfdr", pa.float64(), "probability", "0..1", "posterior probability that nothing is transmitted"),
        Column("qvalue", pa.float64(), "probability", "0..1", "false discovery rate among loci with this lfdr or less"),
        Column("best", LABEL, "", "name", "the most probable hypothesis"),
        Column("flag_evidence", pa.bool_(), "", "true false", "an evidence missed its accuracy goal"),
        Column("flag_khat", pa.bool_(), "", "true false", "importance weights too heavy-tailed to be trusted"),
        Column("flag_low_coverage", pa.bool_(), "", "true false", "few reads: the prior decides much of the posterior"),
        Column("flag_mc_error", pa.bool_(), "", "true false", "Monte Carlo error of an evidence too large"),
        *(
            Column(
                f"{name}_{statistic}_{hypothesis}", pa.float32(), unit, f"{values}, nan", f"{words} under {hypothesis}"
            )
            for hypothesis in hypotheses
            for name, (unit, values, _) in PARAMETERS.items()
            for statistic, words in statistics
        ),
    )
