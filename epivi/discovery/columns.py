"""Columns of the tables of the comparison, and those that the evidence and posterior of every family have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from epivi.tables.columns import CONTIG, END, HYPOTHESIS, LABEL, POS, Column

# Statistics of the posterior of a parameter: in the evidence, and averaged over hypotheses.
STATISTICS = {"mean": "mean", "q05": "5 % quantile", "q50": "median", "q95": "95 % quantile"}
AVERAGED_STATISTICS = {name: STATISTICS[name] for name in ("mean", "q05", "q95")}

DISCOVERY_TABLES: Mapping[str, tuple[Column, ...]] = {
    "weights": (
        HYPOTHESIS,
        Column("weight", pa.float64(), "fraction", "0..1", "share of the loci for which the hypothesis holds"),
        Column("lower", pa.float64(), "fraction", "0..1", "lower end of the 95 % block-bootstrap interval"),
        Column("upper", pa.float64(), "fraction", "0..1", "upper end of the 95 % block-bootstrap interval"),
        Column("n_loci", pa.int64(), "loci", ">= 1", "loci that the weight was estimated from"),
    ),
    "qvalue": (
        Column("lfdr", pa.float64(), "probability", "0..1", "upper end of a step of local false discovery rates"),
        Column("qvalue", pa.float64(), "probability", "0..1", "mean lfdr of all loci up to this step"),
        Column("n_loci", pa.int64(), "loci", ">= 1", "loci up to this step"),
    ),
}


def shared_posterior_columns(hypotheses: Sequence[str]) -> dict[str, Column]:
    """Columns by name that the posterior of every family has, for hypotheses in the order of the configuration.

    Raises ValueError if two hypotheses differ only in case, because SQL could not tell their columns apart.
    """
    if len({name.lower() for name in hypotheses}) < len(hypotheses):
        raise ValueError(f"hypotheses must differ in more than case: {', '.join(hypotheses)}")
    columns = (
        CONTIG,
        POS,
        END,
        Column("strand", LABEL, "", "+ - .", "strand; . is both strands together, or unknown"),
        Column("context", LABEL, "", "CG CHG CHH .", "sequence context of the cytosines"),
        Column("covered_samples", pa.int16(), "samples", ">= 1", "samples with at least one read"),
        Column("coverage_reads", pa.int32(), "reads", ">= 1", "reads over all samples"),
        *(
            Column(f"log_evidence_{name}", pa.float64(), "nats", "any", f"log marginal likelihood under {name}")
            for name in hypotheses
        ),
        *(
            Column(f"prob_{name}", pa.float64(), "probability", "0..1", f"posterior probability of {name}")
            for name in hypotheses
        ),
        Column("qvalue", pa.float64(), "probability", "0..1", "false discovery rate among loci with this lfdr or less"),
        Column("best", LABEL, "", "name", "the most probable hypothesis"),
        Column("flag_evidence", pa.bool_(), "", "true false", "an evidence missed its accuracy goal"),
        Column("flag_cannot_tell", pa.bool_(), "", "true false", "too few families to call anything: qvalue is 1"),
        Column("flag_low_coverage", pa.bool_(), "", "true false", "few reads: the prior decides much of the posterior"),
    )
    return {column.name: column for column in columns}


def averaged_columns(parameters: Mapping[str, tuple[str, str, str]]) -> Iterator[Column]:
    """Statistics of parameters averaged over hypotheses; parameters: name -> (unit, range, meaning)."""
    for name, (unit, values, doc) in parameters.items():
        for statistic, words in AVERAGED_STATISTICS.items():
            text = f"{words}, averaged over hypotheses: {doc}"
            yield Column(f"{name}_{statistic}", pa.float32(), unit, values, text)
