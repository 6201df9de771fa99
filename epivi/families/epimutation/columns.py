"""Columns of the tables of the family `epimutation`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from epivi.discovery.columns import AVERAGED_STATISTICS, STATISTICS, averaged_columns, shared_posterior_columns
from epivi.tables.columns import CONTIG, END, HYPOTHESIS, LABEL, POS, Column

# The per-locus quantities of the posterior: name -> (unit, range, meaning).
EPIMUTATION_PARAMETERS: Mapping[str, tuple[str, str, str]] = {
    "gain_rate": ("per copy and generation", "0..1", "rate of gain of methylation (alpha)"),
    "loss_rate": ("per copy and generation", "0..1", "rate of loss of methylation (beta)"),
    "log_fitness": ("log", "any", "log fitness of one more methylated copy; 0 without selection"),
}
_CLASS = Column("class", LABEL, "", "name", "context, and with `model.classes` the annotation, as in CG:gene")
_GENERATIONS = Column("generations", pa.int32(), "generations", ">= 0", "generations since the founder")

EPIMUTATION_TABLES: Mapping[str, tuple[Column, ...]] = {
    "state_evidence": (
        CONTIG,
        POS,
        END,
        HYPOTHESIS,
        _CLASS,
        Column("log_evidence", pa.float64(), "nats", "any", "log marginal likelihood of the locus's counts"),
        Column("log_evidence_error", pa.float32(), "nats", ">= 0", "estimated error of the quadrature"),
        *(
            Column(f"{name}_{statistic}", pa.float32(), unit, values, f"posterior {words} of {name}: {doc}")
            for name, (unit, values, doc) in EPIMUTATION_PARAMETERS.items()
            for statistic, words in STATISTICS.items()
        ),
    ),
    "states": (
        CONTIG,
        POS,
        Column("node", LABEL, "", "name", "individual of the pedigree, sampled or an ancestor that the model keeps"),
        Column("prob_unmethylated", pa.float32(), "probability", "0..1", "posterior probability of UU"),
        Column("prob_intermediate", pa.float32(), "probability", "0..1", "posterior probability of UM"),
        Column("prob_methylated", pa.float32(), "probability", "0..1", "posterior probability of MM"),
    ),
    "branches": (
        CONTIG,
        POS,
        Column("parent", LABEL, "", "name", "individual at the start of the branch"),
        Column("child", LABEL, "", "name", "individual at its end"),
        Column("prob_gain", pa.float32(), "probability", "0..1", "posterior probability of at least one gain on it"),
        Column("prob_loss", pa.float32(), "probability", "0..1", "posterior probability of at least one loss on it"),
    ),
    "rates": (
        _CLASS,
        Column(
            "parameter",
            LABEL,
            "",
            "name",
            "alpha, beta: gain and loss per copy, site and generation; ratio: beta / alpha; founder_<state>: "
            "proportions in the founder; false_methylated, false_unmethylated: share of wrong reads in UU and in MM; "
            "dispersion: correlation of the reads of a site",
        ),
        Column("median", pa.float64(), "per generation or fraction", ">= 0", "posterior median under shared rates"),
        Column("mean", pa.float64(), "per generation or fraction", ">= 0", "posterior mean"),
        Column("lower", pa.float64(), "per generation or fraction", ">= 0", "2.5 % quantile of the posterior"),
        Column("upper", pa.float64(), "per generation or fraction", ">= 0", "97.5 % quantile of the posterior"),
        Column("n_loci", pa.int64(), "loci", ">= 0", "loci of the class"),
    ),
    "expected_divergence": (
        _CLASS,
        _GENERATIONS,
        Column(
            "divergence",
            pa.float64(),
            "fraction",
            "0..1",
            "posterior median of the expected divergence of two lines that separated that many generations ago",
        ),
        Column("lower", pa.float64(), "fraction", "0..1", "2.5 % quantile of the same"),
        Column("upper", pa.float64(), "fraction", "0..1", "97.5 % quantile of the same"),
    ),
    "ratio_profile": (
        _CLASS,
        Column("estimator", LABEL, "", "likelihood divergence", "likelihood of the counts, or least squares of pairs"),
        Column("ratio", pa.float64(), "ratio", "> 0", "beta / alpha, held fixed"),
        Column("alpha", pa.float64(), "per generation", "> 0", "gain rate of the best fit at this ratio"),
        Column("beta", pa.float64(), "per generation", "> 0", "loss rate of the best fit at this ratio"),
        Column(
            "loss_of_fit",
            pa.float64(),
            "nats",
            ">= 0",
            "log likelihood below that of the best ratio; for `divergence` as if pairs were independent and normal",
        ),
    ),
}


def epimutation_posterior_columns(hypotheses: Sequence[str], merged: Sequence[str] = ()) -> tuple[Column, ...]:
    """Columns of the table that users query; arguments and errors as of `shared_posterior_columns`."""
    shared = shared_posterior_columns(hypotheses, merged)
    return (
        *(shared[name] for name in ("contig", "pos", "end", "strand", "context")),
        _CLASS,
        *(shared[name] for name in ("covered_samples", "coverage_reads")),
        *averaged_columns(EPIMUTATION_PARAMETERS),
        *(shared[f"log_evidence_{name}"] for name in hypotheses),
        *(shared[f"prob_{name}"] for name in (*hypotheses, *merged)),
        Column("lfdr", pa.float64(), "probability", "0..1", "posterior probability of the null hypotheses together"),
        *(
            shared[name]
            for name in (
                "transmitted",
                "qvalue",
                "control_qvalue",
                "called",
                "kind_set",
                "best",
                "flag_cannot_tell",
                "flag_evidence",
                "flag_low_coverage",
            )
        ),
        *(
            Column(f"{name}_{statistic}_{hypothesis}", pa.float32(), unit, values, f"{words} under {hypothesis}")
            for hypothesis in hypotheses
            for name, (unit, values, _) in EPIMUTATION_PARAMETERS.items()
            for statistic, words in AVERAGED_STATISTICS.items()
        ),
    )
