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
        Column("weight", pa.float64(), "fraction", "0..1", "share of the loci for which the hypothesis holds: mean"),
        Column("lower", pa.float64(), "fraction", "0..1", "2.5 % quantile of its posterior"),
        Column("upper", pa.float64(), "fraction", "0..1", "97.5 % quantile of its posterior"),
        Column("family_lower", pa.float64(), "fraction", "0..1, nan", "lower end of the 95 % jackknife over families"),
        Column("family_upper", pa.float64(), "fraction", "0..1, nan", "upper end of the 95 % jackknife over families"),
        Column("prior_lower", pa.float64(), "fraction", "0..1, nan", "least weight over priors of the heritable share"),
        Column("prior_upper", pa.float64(), "fraction", "0..1, nan", "largest weight over the same priors"),
        Column("n_loci", pa.int64(), "loci", ">= 1", "loci that the weight was estimated from"),
        Column(
            "merged",
            LABEL,
            "",
            "names joined by |",
            "hypotheses, this one among them, that the samples cannot separate: only their sum is known",
        ),
        Column("merged_weight", pa.float64(), "fraction", "0..1", "weight of all of `merged` together: mean"),
        Column("merged_lower", pa.float64(), "fraction", "0..1", "2.5 % quantile of its posterior"),
        Column("merged_upper", pa.float64(), "fraction", "0..1", "97.5 % quantile of its posterior"),
        Column("merged_family_lower", pa.float64(), "fraction", "0..1, nan", "`family_lower` of all of `merged`"),
        Column("merged_family_upper", pa.float64(), "fraction", "0..1, nan", "`family_upper` of all of `merged`"),
    ),
    "weight_draws": (
        Column("draw", pa.int32(), "number", ">= 0", "number of the draw"),
        HYPOTHESIS,
        Column("weight", pa.float64(), "fraction", "0..1", "weight of the hypothesis in a draw of the posterior"),
        Column(
            "tilted",
            pa.float64(),
            "fraction",
            "0..1",
            "what log evidences are combined with: the weight times the draw's common tilt of the evidence, normalized",
        ),
    ),
    "control_evidence": (
        Column("control", LABEL, "", "true across within sibships without_family prior", "what was changed"),
        Column("number", pa.int32(), "number", ">= 0", "number of the control among those of its kind"),
        Column("detail", LABEL, "", "any", "the family left out, the prior, or the level of the true evidence"),
        Column("locus", pa.int64(), "number", ">= 0", "number of the locus among all in genome order"),
        HYPOTHESIS,
        Column("log_evidence", pa.float64(), "nats", "any", "log marginal likelihood of the locus's counts"),
    ),
    "usual_evidence": (
        Column("draw", pa.int64(), "number", ">= 0", "number of a locus drawn from the fitted model"),
        HYPOTHESIS,
        Column("log_evidence", pa.float64(), "nats", "any", "log marginal likelihood of the drawn counts"),
        Column("reads", pa.int64(), "reads", ">= 0", "reads over all samples, those of a real locus"),
        Column("methylated_reads", pa.int64(), "reads", ">= 0", "methylated reads, drawn"),
        Column("covered_samples", pa.int64(), "samples", ">= 0", "samples with at least one read"),
        Column("saturated_nats", pa.float64(), "nats", "<= 0", "log likelihood at each sample's own proportion"),
    ),
    "misfit": (
        Column("lower", pa.float64(), "probability", "0..1", "lower end of a bin of misfit_pvalue"),
        Column("upper", pa.float64(), "probability", "0..1", "upper end"),
        Column("n_loci", pa.int64(), "loci", ">= 0", "loci in the bin"),
        Column(
            "expected", pa.float64(), "loci", ">= 0", "loci that counts drawn from the fitted model would have there"
        ),
    ),
    "control_tests": (
        Column("control", LABEL, "", "across within sibships", "which individuals were exchanged"),
        Column("exchanges", pa.int32(), "exchanges", ">= 1", "exchanges that the true pedigree is compared with"),
        Column("gain_nats", pa.float64(), "nats", ">= 0", "gain of the true pedigree over no transmission, all loci"),
        Column("median_exchanged_nats", pa.float64(), "nats", ">= 0", "the same of exchanged ones, median"),
        Column("largest_exchanged_nats", pa.float64(), "nats", ">= 0", "the same of exchanged ones, largest"),
        Column("p_value", pa.float64(), "probability", "0..1", "share of gains as large as that of the true pedigree"),
        Column("called", pa.int64(), "loci", ">= 0", "sampled loci that are called"),
        Column("called_exchanged", pa.float64(), "loci", ">= 0", "the same with individuals exchanged, mean"),
    ),
    "qvalue": (
        Column("lfdr", pa.float64(), "probability", "0..1", "upper end of a step of local false discovery rates"),
        Column("qvalue", pa.float64(), "probability", "0..1", "mean lfdr of all loci up to this step"),
        Column("control_qvalue", pa.float64(), "probability", "0..1, nan", "rate of calls with individuals exchanged"),
        Column("n_loci", pa.int64(), "loci", ">= 1", "loci up to this step"),
    ),
}


def shared_posterior_columns(hypotheses: Sequence[str], merged: Sequence[str] = ()) -> dict[str, Column]:
    """Columns by name that the posterior of every family has, for hypotheses in the order of the configuration.

    merged: names of groups of hypotheses that the samples cannot separate. Raises ValueError if two hypotheses differ
    only in case, because SQL could not distinguish their columns.
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
        *(
            Column(
                f"prob_{name}",
                pa.float64(),
                "probability",
                "0..1",
                f"posterior probability of {name.replace('|', ' or ')}, which the samples cannot separate",
            )
            for name in merged
        ),
        Column("qvalue", pa.float64(), "probability", "0..1", "false discovery rate among loci with this lfdr or less"),
        Column(
            "control_qvalue",
            pa.float64(),
            "probability",
            "0..1, nan",
            "the same from individuals exchanged across families: a lower bound; nan without controls",
        ),
        Column(
            "called",
            pa.bool_(),
            "",
            "true false",
            "whether qvalue and control_qvalue are at most compare.fdr, and the cohort allows calls",
        ),
        Column("transmitted", pa.float64(), "probability", "0..1", "posterior probability that something is: 1 - lfdr"),
        Column(
            "kind_set",
            LABEL,
            "",
            "names joined by |",
            "the smallest set of hypotheses other than the null ones with 90 % of their probability; with each those "
            "that the samples cannot separate from it",
        ),
        Column(
            "best",
            LABEL,
            "",
            "names joined by |, or empty",
            "the most probable hypothesis, where it is a null one or the only member of kind_set, with those that the "
            "samples cannot separate from it",
        ),
        Column("flag_evidence", pa.bool_(), "", "true false", "an evidence missed its accuracy goal"),
        Column(
            "misfit_pvalue",
            pa.float64(),
            "probability",
            "0..1, nan",
            "share of loci of the fitted model, at this coverage, whose evidence is as low; nan without controls",
        ),
        Column("flag_misfit", pa.bool_(), "", "true false", "counts that the fitted model hardly ever gives"),
        Column("flag_cannot_tell", pa.bool_(), "", "true false", "the cohort does not allow any call: qvalue is 1"),
        Column("flag_low_coverage", pa.bool_(), "", "true false", "few reads: the prior decides much of the posterior"),
    )
    return {column.name: column for column in columns}


def averaged_columns(parameters: Mapping[str, tuple[str, str, str]]) -> Iterator[Column]:
    """Statistics of parameters averaged over hypotheses; parameters: name -> (unit, range, meaning)."""
    for name, (unit, values, doc) in parameters.items():
        for statistic, words in AVERAGED_STATISTICS.items():
            text = f"{words}, averaged over hypotheses: {doc}"
            yield Column(f"{name}_{statistic}", pa.float32(), unit, values, text)
