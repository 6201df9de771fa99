"""Every table that epivi writes: columns, types, units, ranges and meaning, and the version of the format.

The documentation tables and the field metadata of the files are both made from here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa

# Readers refuse a file whose version is larger. Raise it whenever an old reader would misread a new file.
FORMAT_VERSION = 2

# Codes of the dictionaries in the loci files are positions in these tuples; "." is unknown, or both strands together.
STRANDS = ("+", "-", ".")
CONTEXTS = ("CG", "CHG", "CHH", ".")

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

# The same for the family `epimutation`.
STATE_PARAMETERS: Mapping[str, tuple[str, str, str]] = {
    "gain_rate": ("per copy and generation", "0..1", "rate of gain of methylation (alpha)"),
    "loss_rate": ("per copy and generation", "0..1", "rate of loss of methylation (beta)"),
    "log_fitness": ("log", "any", "log fitness of one more methylated copy; 0 without selection"),
}

EVIDENCE_GOAL = 0.02  # nats: what log Bayes factors are promised to be right to, or flagged
_LABEL = pa.dictionary(pa.int32(), pa.string())


class Column(NamedTuple):
    """One column: `unit` is "" for names, codes and flags; `range` says which values occur, in words or as a..b."""

    name: str
    type: pa.DataType
    unit: str
    range: str
    doc: str


_CONTIG = Column("contig", _LABEL, "", "name", "contig, as named by the inputs")
_POS = Column("pos", pa.int32(), "bp", ">= 0", "0-based start; a strand-merged CpG sits at the C of the + strand")
_END = Column("end", pa.int32(), "bp", "> pos", "end, exclusive")
_HYPOTHESIS = Column("hypothesis", _LABEL, "", "name", "hypothesis, as named by the configuration")
_SAMPLE = Column("sample", _LABEL, "", "name", "sample, as named by the sample sheet")


_METHOD = Column("method", _LABEL, "", "name", "method of the diagnostics")

_SCENARIO = Column("scenario", _LABEL, "", "name", "how the loci were drawn")
_DRAWN_HYPOTHESIS = Column(
    "hypothesis",
    _LABEL,
    "",
    "name, (true) or (averaged)",
    "hypothesis of loci and posterior; (true): every locus under its own; (averaged): the average over hypotheses",
)
_PARAMETER = Column("parameter", _LABEL, "", "name", "parameter of the locus")
_WEIGHTS = Column("weights", _LABEL, "", "given estimated", "weights of the hypotheses: as drawn by, or estimated anew")
_N_LOCI = Column("n_loci", pa.int64(), "loci", ">= 1", "loci that the row is about")


def _share(counted: str) -> tuple[Column, ...]:
    return (
        Column("share", pa.float64(), "fraction", "0..1, nan", f"`{counted}` as a share of `n_loci`; nan without any"),
        Column("lower", pa.float64(), "fraction", "0..1", "lower end of the share's exact 95 % interval"),
        Column("upper", pa.float64(), "fraction", "0..1", "upper end of the share's exact 95 % interval"),
    )


_TIMES = tuple(
    Column(name, pa.int32(), "generations", values, f"generations from the founder to {whom}")
    for name, values, whom in (
        ("time0", ">= 0", "the last common ancestor"),
        ("time1", ">= time0", "the first sample"),
        ("time2", ">= time0", "the second sample"),
    )
)
_MODEL = Column("model", _LABEL, "", "neutral null", "neutral: epimutations accumulate; null: they do not")
_RSS = Column(
    "rss", pa.float64(), "fraction^2", ">= 0", "residual sum of squares of the divergences, without the penalty"
)
_PENALTY = Column("penalty", pa.float64(), "fraction^2", ">= 0", "what the equilibrium adds to the sum of squares")


_STATISTICS = (("mean", "mean"), ("q05", "5 % quantile"), ("q50", "median"), ("q95", "95 % quantile"))
_CLASS = Column("class", _LABEL, "", "name", "context, and with `model.classes` the annotation, as in CG:gene")
_GENERATIONS = Column("generations", pa.int32(), "generations", ">= 0", "generations since the founder")


_CODE = pa.dictionary(pa.int8(), pa.string())
_LOCUS = (
    _POS,
    _END,
    Column("strand", _CODE, "", "+ - .", "strand; . is both strands together, or unknown"),
    Column("context", _CODE, "", "CG CHG CHH .", "sequence context of the cytosines"),
)


def _wide(item: pa.DataType, dimension: str, width: int) -> pa.DataType:
    return pa.list_(pa.field(dimension, item, nullable=False), width)


def panel_columns(n_samples: int) -> tuple[Column, ...]:
    """Columns of the memory-mapped counts of a panel of `n_samples` samples."""
    counts = _wide(pa.uint16(), "samples", n_samples)
    return (
        *_LOCUS,
        Column("meth", counts, "reads", "0..total", "methylated reads of each sample"),
        Column("total", counts, "reads", "0..65535", "reads of each sample; 0 is missing"),
    )


def index_columns(n_panels: int) -> tuple[Column, ...]:
    """Columns of the memory-mapped index of a cohort's loci in `n_panels` panels."""
    return (
        *_LOCUS,
        Column(
            "row",
            _wide(pa.int32(), "panels", n_panels),
            "",
            ">= -1",
            "row of each panel; -1: none, its samples have no reads",
        ),
    )


INGEST_TABLES: Mapping[str, tuple[Column, ...]] = {
    "counts": (
        _CONTIG,
        _POS,
        Column(
            "strand",
            _LABEL,
            "",
            "+ - .",
            "strand of the cytosine; a CpG merged by a reader that knows the strands carries +; . is unknown",
        ),
        Column("context", _LABEL, "", "CG CHG CHH", "sequence context of the cytosine"),
        Column("meth", pa.int32(), "reads", "0..total", "methylated reads"),
        Column("total", pa.int32(), "reads", ">= 1", "methylated and unmethylated reads"),
    ),
}

LOCI_TABLES: Mapping[str, tuple[Column, ...]] = {
    "contigs": (
        _CONTIG,
        _SAMPLE,
        Column("loci", pa.int64(), "loci", ">= 1", "rows of the sample's counts on this contig"),
        Column("first_pos", pa.int32(), "bp", ">= 0", "0-based position of the first of them"),
        Column("last_pos", pa.int32(), "bp", ">= first_pos", "0-based position of the last"),
    ),
    "positions": (
        _SAMPLE,
        Column("relation", _LABEL, "", "before after build doubtful unknown", "what the other columns say"),
        Column("cpgs", pa.int64(), "CpGs", ">= 0", "CpGs looked at, some that are the same in every sample"),
        Column("same", pa.int64(), "CpGs", ">= 0", "of them, those at the same base as in the other samples"),
        Column("before", pa.int64(), "CpGs", ">= 0", "those one base before one of theirs"),
        Column("after", pa.int64(), "CpGs", ">= 0", "those one base after"),
        Column("by_chance", pa.float64(), "CpGs", ">= 0", "those that unrelated positions would have in common"),
    ),
}

QUALITY_TABLES: Mapping[str, tuple[Column, ...]] = {
    "error_rates": (
        _SAMPLE,
        Column("parameter", _LABEL, "", "false_methylated false_unmethylated", "error probability, as in the sheet"),
        Column("estimate", pa.float64(), "probability", "0..1, nan", "share of wrong calls of controls; nan without"),
        Column("lower", pa.float64(), "probability", "0..1, nan", "lower end of its 95 % interval"),
        Column("upper", pa.float64(), "probability", "0..1, nan", "upper end of its 95 % interval"),
        Column("reads", pa.int64(), "reads", ">= 0", "reads of controls"),
        Column("positions", pa.int64(), "positions", ">= 0", "positions and strands of controls with reads"),
        Column("given", pa.float64(), "probability", "0..0.5, nan", "value of the sample sheet; nan where left open"),
        Column("used", pa.float64(), "probability", "0..0.5", "what the likelihood uses"),
        Column(
            "source",
            _LABEL,
            "",
            "words",
            "where that is from: sheet, controls; or why 0: no controls, few reads, implausible rate",
        ),
    ),
    "sample_quality": (
        _SAMPLE,
        Column("individual", _LABEL, "", "name", "individual, as named by the pedigree"),
        Column("coverage", pa.float64(), "reads", ">= 0", "mean reads of a locus, over loci spread over the genome"),
        Column("covered", pa.float64(), "fraction", "0..1", "share of these loci with reads"),
        Column("methylation", pa.float64(), "fraction", "0..1, nan", "mean level of those; nan without any"),
        Column("sex", _LABEL, "", "female male unknown", "sex that the pedigree declares"),
        Column(
            "x_coverage",
            pa.float64(),
            "ratio",
            ">= 0, nan",
            "coverage of X against the autosomes, in that of two copies; nan where not asked for or of haplotypes",
        ),
        Column("y_coverage", pa.float64(), "ratio", ">= 0, nan", "the same of Y, in that of one copy"),
        Column("x_methylation", pa.float64(), "fraction", "0..1, nan", "methylated share of the reads on X"),
    ),
    "relatedness": (
        _SAMPLE,
        Column(
            "other", _LABEL, "", "name", "second sample of the pair; of one file's samples the first stands for all"
        ),
        Column("source", _LABEL, "", "methylation genotypes", "what the samples are compared by"),
        Column("expected", pa.float64(), "fraction", "0..1", "relatedness by the pedigree"),
        Column(
            "observed",
            pa.float64(),
            "fraction",
            "any, nan",
            "likeness, scaled so that it follows the pedigree's; nan where relatives are no more alike than others",
        ),
        Column("standard_error", pa.float64(), "fraction", ">= 0, nan", "block-jackknife error of `observed`"),
        Column(
            "swap_score",
            pa.float64(),
            "ratio",
            "any, nan",
            "-1 is expected as declared, 1 of a swapped pair; nan if unseen",
        ),
        Column("swap_z", pa.float64(), "SD", "any, nan", "`swap_score` by its block-jackknife error"),
        Column(
            "swap_can_be_seen",
            pa.bool_(),
            "",
            "true false",
            "whether the two places in the pedigree differ to the other samples",
        ),
    ),
    "findings": (
        Column("check", _LABEL, "", "name", "what was looked at"),
        _SAMPLE,
        Column("other", _LABEL, "", "name", "second sample, empty where there is none"),
        Column("value", pa.float64(), "of the check", "any, nan", "the number behind the warning; nan of `file`"),
        Column("limit", pa.float64(), "of the check", "any, nan", "what it was compared with"),
        Column("text", pa.string(), "", "text", "both in a sentence, as in the log"),
    ),
}

FIT_TABLES: Mapping[str, tuple[Column, ...]] = {
    "loss": (
        Column("step", pa.int64(), "steps", ">= 0", "optimizer step"),
        Column("elapsed_s", pa.float64(), "s", ">= 0", "time since the fit began, without pauses between resumed runs"),
        Column("batch_elbo", pa.float64(), "nats/locus", "any", "mean evidence lower bound of the step's minibatch"),
        Column(
            "holdout_elbo", pa.float64(), "nats/locus", "any, nan", "the same on held-out loci; nan if not evaluated"
        ),
    ),
}

DISCOVERY_TABLES: Mapping[str, tuple[Column, ...]] = {
    "weights": (
        _HYPOTHESIS,
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

TRANSMISSION_TABLES: Mapping[str, tuple[Column, ...]] = {
    "evidence": (
        _CONTIG,
        _POS,
        _END,
        _HYPOTHESIS,
        Column("log_evidence", pa.float64(), "nats", "any", "log marginal likelihood of the locus's counts"),
        Column("log_evidence_se", pa.float32(), "nats", ">= 0", "Monte Carlo standard error of log_evidence"),
        Column("khat", pa.float32(), "", "any, nan", "Pareto shape of the importance weights; nan if not evaluated"),
        Column("inner_method", _LABEL, "", "laplace ep importance", "method of the integral over the latent field"),
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

EPIMUTATION_TABLES: Mapping[str, tuple[Column, ...]] = {
    "state_evidence": (
        _CONTIG,
        _POS,
        _END,
        _HYPOTHESIS,
        _CLASS,
        Column("log_evidence", pa.float64(), "nats", "any", "log marginal likelihood of the locus's counts"),
        Column("log_evidence_error", pa.float32(), "nats", ">= 0", "estimated error of the quadrature"),
        *(
            Column(f"{name}_{statistic}", pa.float32(), unit, values, f"posterior {words} of {name}: {doc}")
            for name, (unit, values, doc) in STATE_PARAMETERS.items()
            for statistic, words in _STATISTICS
        ),
    ),
    "states": (
        _CONTIG,
        _POS,
        Column("node", _LABEL, "", "name", "individual of the pedigree, sampled or an ancestor that the model keeps"),
        Column("prob_unmethylated", pa.float32(), "probability", "0..1", "posterior probability of UU"),
        Column("prob_intermediate", pa.float32(), "probability", "0..1", "posterior probability of UM"),
        Column("prob_methylated", pa.float32(), "probability", "0..1", "posterior probability of MM"),
    ),
    "branches": (
        _CONTIG,
        _POS,
        Column("parent", _LABEL, "", "name", "individual at the start of the branch"),
        Column("child", _LABEL, "", "name", "individual at its end"),
        Column("prob_gain", pa.float32(), "probability", "0..1", "posterior probability of at least one gain on it"),
        Column("prob_loss", pa.float32(), "probability", "0..1", "posterior probability of at least one loss on it"),
    ),
    "rates": (
        _CLASS,
        Column(
            "parameter",
            _LABEL,
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
        Column("estimator", _LABEL, "", "likelihood divergence", "likelihood of the counts, or least squares of pairs"),
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

CALIBRATE_TABLES: Mapping[str, tuple[Column, ...]] = {
    "calibration_sbc": (
        _SCENARIO,
        _DRAWN_HYPOTHESIS,
        _PARAMETER,
        Column("point", pa.float64(), "fraction", "0..1", "value of the probability integral transform"),
        Column("ecdf", pa.float64(), "fraction", "0..1", "share of the loci whose transform is at most `point`"),
        Column("lower", pa.float64(), "fraction", "0..1", "lower end of the simultaneous 95 % band of uniform values"),
        Column("upper", pa.float64(), "fraction", "0..1", "upper end of the simultaneous 95 % band of uniform values"),
        _N_LOCI,
    ),
    "calibration_coverage": (
        _SCENARIO,
        _DRAWN_HYPOTHESIS,
        _PARAMETER,
        Column("level", pa.float64(), "fraction", "0..1", "nominal coverage of the central interval"),
        Column("stratum", _LABEL, "", "overall depth baseline", "what the loci are selected by"),
        Column(
            "stratum_low",
            pa.float64(),
            "reads or fraction",
            ">= 0",
            "lower end: mean reads of the covered samples, or methylated share of the reads",
        ),
        Column("stratum_high", pa.float64(), "reads or fraction", ">= 0", "upper end of the same"),
        _N_LOCI,
        Column("covered", pa.int64(), "loci", ">= 0", "loci whose interval holds the truth"),
        *_share("covered"),
    ),
    "calibration_lfdr": (
        _SCENARIO,
        _WEIGHTS,
        Column("bin_low", pa.float64(), "probability", "0..1", "lower end of the bin of lfdr"),
        Column("bin_high", pa.float64(), "probability", "0..1", "upper end of the bin of lfdr"),
        Column("mean_lfdr", pa.float64(), "probability", "0..1", "mean lfdr of the bin's loci"),
        _N_LOCI,
        Column("null", pa.int64(), "loci", ">= 0", "loci of the bin that transmit nothing in truth"),
        *_share("null"),
    ),
    "calibration_fdr": (
        _SCENARIO,
        _WEIGHTS,
        Column("nominal", pa.float64(), "probability", "0..1", "largest q-value called"),
        Column("announced", pa.float64(), "probability", "0..1, nan", "mean lfdr of the calls; nan without any"),
        Column(
            "power", pa.float64(), "fraction", "0..1, nan", "called share of the loci that transmit; nan without any"
        ),
        Column("n_loci", pa.int64(), "loci", ">= 0", "calls"),
        Column("false_calls", pa.int64(), "loci", ">= 0", "calls that transmit nothing in truth"),
        *_share("false_calls"),
    ),
    "calibration_bayes_factors": (
        _SCENARIO,
        _HYPOTHESIS,
        Column("null", _LABEL, "", "name", "hypothesis without transmission that it is compared with"),
        Column("drawn_from", _LABEL, "", "name", "which of the two the loci come from"),
        _N_LOCI,
        Column(
            "mean",
            pa.float64(),
            "ratio",
            "> 0",
            "mean Bayes factor against the one that the loci come from: 1 if right",
        ),
        Column("standard_error", pa.float64(), "ratio", ">= 0", "standard error of the mean"),
        Column("largest_share", pa.float64(), "fraction", "0..1", "share of the largest factor in the sum"),
    ),
    "calibration_weights": (
        _SCENARIO,
        _HYPOTHESIS,
        Column(
            "given", pa.float64(), "fraction", "0..1", "weight that loci are drawn with where they follow the model"
        ),
        Column("drawn", pa.float64(), "fraction", "0..1", "share of the loci that were drawn from the hypothesis"),
        Column("weight", pa.float64(), "fraction", "0..1", "weight estimated from the drawn loci"),
        Column("lower", pa.float64(), "fraction", "0..1", "lower end of its 95 % block-bootstrap interval"),
        Column("upper", pa.float64(), "fraction", "0..1", "upper end of its 95 % block-bootstrap interval"),
        _N_LOCI,
    ),
}

DIAGNOSE_TABLES: Mapping[str, tuple[Column, ...]] = {
    "diagnose_posteriors": (
        _CONTIG,
        _POS,
        _HYPOTHESIS,
        _METHOD,
        Column("kind", _LABEL, "", "effect theta field", "effects of the mean, variance parameters, or latent field"),
        Column("coordinate", _LABEL, "", "name", "column of the mean, parameter on its free scale, or individual"),
        Column("mean", pa.float64(), "logit or log", "any", "posterior mean"),
        Column("sd", pa.float64(), "logit or log", ">= 0, nan", "posterior SD; nan where the method found none"),
        Column("mean_se", pa.float64(), "logit or log", ">= 0", "Monte Carlo standard error of `mean`; 0 without one"),
        Column("sd_se", pa.float64(), "logit or log", ">= 0", "Monte Carlo standard error of `sd`; 0 without one"),
    ),
    "diagnose_evidences": (
        _CONTIG,
        _POS,
        _HYPOTHESIS,
        _METHOD,
        Column(
            "log_evidence", pa.float64(), "nats", "any", "log marginal likelihood, or the bound of a bounding method"
        ),
        Column("log_evidence_se", pa.float64(), "nats", ">= 0", "Monte Carlo standard error; 0 without one"),
        Column("is_bound", pa.bool_(), "", "true false", "whether the method bounds the evidence from below"),
        Column("converged", pa.bool_(), "", "true false", "whether the method converged"),
        Column("error", pa.float64(), "nats", "any", "`log_evidence` less that of the reference"),
        Column("log_bayes_factor", pa.float64(), "nats", "any", "log Bayes factor against the first null hypothesis"),
        Column("log_bayes_factor_error", pa.float64(), "nats", "any", "the same less that of the reference"),
    ),
    "diagnose_bounds": (
        _CONTIG,
        _POS,
        _HYPOTHESIS,
        _METHOD,
        Column("elbo", pa.float64(), "nats", "any", "evidence lower bound: accuracy less complexity"),
        Column("elbo_se", pa.float64(), "nats", ">= 0", "Monte Carlo standard error of `elbo`"),
        Column("accuracy", pa.float64(), "nats", "any", "expected log-likelihood under the approximation"),
        Column("complexity", pa.float64(), "nats", ">= 0", "divergence of the approximation from the prior"),
        Column("divergence", pa.float64(), "nats", ">= 0", "divergence from the posterior, by importance weights"),
        Column("divergence_se", pa.float64(), "nats", ">= 0", "Monte Carlo standard error of `divergence` + `elbo`"),
        Column("log_evidence", pa.float64(), "nats", "any", "log evidence of the reference"),
        Column("log_evidence_se", pa.float64(), "nats", ">= 0", "its Monte Carlo standard error"),
        Column("identity_gap", pa.float64(), "nats", "any", "`elbo` + `divergence` - `log_evidence`: 0 but for errors"),
        Column("khat", pa.float64(), "", "any", "Pareto shape of the importance weights of the approximation"),
        Column("amortization_gap", pa.float64(), "nats", "any, nan", "what refining the guide at the locus gains"),
        Column(
            "mutual_information", pa.float64(), "nats", ">= 0, nan", "between effects and field, lost to mean-field"
        ),
        Column(
            "variance_lost", pa.float64(), "fraction", "<= 1", "mean share of their posterior variance that is lost"
        ),
    ),
    "diagnose_summary": (
        _METHOD,
        Column("reference", _LABEL, "", "reference nuts", "what the method is compared with"),
        _HYPOTHESIS,
        Column("group", _LABEL, "", "name", "effect, field, or a variance parameter on its free scale"),
        Column("n", pa.int64(), "values", ">= 0", "loci times coordinates"),
        Column("bias_mean", pa.float64(), "SD", "any, nan", "mean difference of posterior means, in reference SDs"),
        Column("bias_rms", pa.float64(), "SD", ">= 0, nan", "root mean square of the same"),
        Column("monte_carlo_error", pa.float64(), "SD", ">= 0, nan", "what of `bias_rms` sampling would explain"),
        Column("sd_ratio_median", pa.float64(), "ratio", "> 0, nan", "median ratio of the SD to the reference's"),
        Column("sd_ratio_q05", pa.float64(), "ratio", "> 0, nan", "5 % quantile of the ratios"),
        Column("sd_ratio_q95", pa.float64(), "ratio", "> 0, nan", "95 % quantile of the ratios"),
    ),
}

DIVERGENCE_TABLES: Mapping[str, tuple[Column, ...]] = {
    "divergence": (
        Column("sample_1", _LABEL, "", "name", "first sample of the pair; . if the input does not say"),
        Column("sample_2", _LABEL, "", "name", "second sample of the pair; . if the input does not say"),
        *_TIMES,
        Column("n_sites", pa.int64(), "sites", ">= 0", "sites that both samples have; 0 if the input does not say"),
        Column(
            "divergence",
            pa.float64(),
            "fraction",
            "0..1",
            "mean over sites of half the difference in methylated alleles; from counts an unbiased estimate, which can "
            "lie outside the range",
        ),
        Column("standard_error", pa.float64(), "fraction", ">= 0, nan", "block-jackknife error; nan without sites"),
        Column("predicted", pa.float64(), "fraction", "any", "divergence under the neutral model, intercept included"),
    ),
    "divergence_fit": (
        _MODEL,
        Column(
            "parameter",
            _LABEL,
            "",
            "name",
            "alpha, beta: gain and loss per haploid genome, site and generation; ratio: beta / alpha; "
            "founder_intermediate: share of UM among the founder's sites that are not UU; intercept: divergence by "
            "errors of measurement; equilibrium_unmethylated: share of UU in the long run",
        ),
        Column("estimate", pa.float64(), "per generation or fraction", "any", "least-squares estimate"),
        Column(
            "standard_error",
            pa.float64(),
            "per generation or fraction",
            ">= 0, nan",
            "SD over bootstrap replicates; nan without bootstrap",
        ),
        Column(
            "lower",
            pa.float64(),
            "per generation or fraction",
            "any, nan",
            "2.5 % quantile of the bootstrap replicates",
        ),
        Column(
            "upper",
            pa.float64(),
            "per generation or fraction",
            "any, nan",
            "97.5 % quantile of the bootstrap replicates",
        ),
        Column("resampled", _LABEL, "", "blocks residuals nothing", "what the bootstrap redraws"),
    ),
    "divergence_models": (
        _MODEL,
        Column("n_pairs", pa.int64(), "pairs", ">= 1", "pairs of samples"),
        Column("n_parameters", pa.int64(), "parameters", ">= 1", "free parameters, without the residual variance"),
        _RSS,
        _PENALTY,
        Column("aic", pa.float64(), "deviance", "any", "Akaike's criterion, as if pairs were independent"),
        Column("f_statistic", pa.float64(), "ratio", ">= 0, nan", "F-test of the neutral against the null model"),
        Column("p_value", pa.float64(), "probability", "0..1, nan", "of that test, as if pairs were independent"),
        Column("starts", pa.int64(), "starts", ">= 1", "random starts of the search"),
        Column("agreeing_starts", pa.int64(), "starts", ">= 1", "of them, those that found the reported optimum"),
    ),
    "divergence_profile": (
        Column("equilibrium_weight", pa.float64(), "ratio", ">= 0", "weight of the equilibrium penalty; 0 is without"),
        Column("ratio", pa.float64(), "ratio", "> 0", "beta / alpha, held fixed"),
        Column("alpha", pa.float64(), "per generation", "> 0", "gain rate of the best fit at this ratio"),
        Column("beta", pa.float64(), "per generation", "> 0", "loss rate of the best fit at this ratio"),
        Column("founder_intermediate", pa.float64(), "fraction", "0..1", "likewise, as in the table of the fit"),
        Column("intercept", pa.float64(), "fraction", "any", "likewise, as in the table of the fit"),
        _RSS,
        _PENALTY,
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
        _CONTIG,
        _POS,
        _END,
        Column("strand", _LABEL, "", "+ - .", "strand; . is both strands together, or unknown"),
        Column("context", _LABEL, "", "CG CHG CHH .", "sequence context of the cytosines"),
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
        Column("best", _LABEL, "", "name", "the most probable hypothesis"),
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


def state_posterior_columns(hypotheses: Sequence[str]) -> tuple[Column, ...]:
    """The same of the family `epimutation`; raises as `posterior_columns`."""
    shared = {column.name: column for column in posterior_columns(hypotheses)}
    statistics = (("mean", "mean"), ("q05", "5 % quantile"), ("q95", "95 % quantile"))
    return (
        *(shared[name] for name in ("contig", "pos", "end", "strand", "context")),
        _CLASS,
        *(shared[name] for name in ("covered_samples", "coverage_reads")),
        *(
            Column(f"{name}_{statistic}", pa.float32(), unit, values, f"{words}, averaged over hypotheses: {doc}")
            for name, (unit, values, doc) in STATE_PARAMETERS.items()
            for statistic, words in statistics
        ),
        *(shared[f"log_evidence_{name}"] for name in hypotheses),
        *(shared[f"prob_{name}"] for name in hypotheses),
        Column("lfdr", pa.float64(), "probability", "0..1", "posterior probability of the null hypotheses together"),
        *(shared[name] for name in ("qvalue", "best", "flag_evidence", "flag_low_coverage")),
        *(
            Column(f"{name}_{statistic}_{hypothesis}", pa.float32(), unit, values, f"{words} under {hypothesis}")
            for hypothesis in hypotheses
            for name, (unit, values, _) in STATE_PARAMETERS.items()
            for statistic, words in statistics
        ),
    )


def arrow_schema(columns: Sequence[Column], metadata: Mapping[str, str] | None = None) -> pa.Schema:
    """Arrow schema of `columns`: no nulls; each field's metadata holds its doc, unit and range."""
    fields = [
        pa.field(column.name, column.type, False, {"doc": column.doc, "unit": column.unit, "range": column.range})
        for column in columns
    ]
    return pa.schema(fields, dict(metadata or {}))


def schema_columns(schema: pa.Schema) -> tuple[Column, ...]:
    """The columns that `schema` was made from, read back from its field metadata."""
    return tuple(_field_column(field) for field in schema)


def _field_column(field: pa.Field) -> Column:
    notes = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
    return Column(field.name, field.type, notes.get("unit", ""), notes.get("range", ""), notes.get("doc", ""))


def markdown_table(columns: Sequence[Column]) -> str:
    """The documentation table of `columns`, in Markdown."""
    rows = [("column", "type", "unit", "range", "meaning"), ("---",) * 5]
    rows += [(f"`{column.name}`", type_name(column.type), column.unit, column.range, column.doc) for column in columns]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in rows)


def type_name(kind: pa.DataType) -> str:
    """A short name of an Arrow type: dictionaries are called by their values, lists by item and dimension."""
    if pa.types.is_dictionary(kind):
        return type_name(kind.value_type)
    if pa.types.is_fixed_size_list(kind):
        return f"{kind.value_type}[{kind.value_field.name}]"
    return str(kind)
