"""Columns of the tables of `epivi calibrate`, `epivi diagnose` and `epivi design`."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from epivi.tables.columns import CONTIG, HYPOTHESIS, LABEL, POS, Column

METHOD = Column("method", LABEL, "", "name", "method of the diagnostics")

_SCENARIO = Column("scenario", LABEL, "", "name", "how the loci were drawn")
_DRAWN_HYPOTHESIS = Column(
    "hypothesis",
    LABEL,
    "",
    "name, (true) or (averaged)",
    "hypothesis of loci and posterior; (true): every locus under its own; (averaged): the average over hypotheses",
)
_PARAMETER = Column("parameter", LABEL, "", "name", "parameter of the locus")
_WEIGHTS = Column("weights", LABEL, "", "given estimated", "weights of the hypotheses: as drawn by, or estimated anew")
_N_LOCI = Column("n_loci", pa.int64(), "loci", ">= 1", "loci that the row is about")

DIAGNOSE_TABLES: Mapping[str, tuple[Column, ...]] = {
    "diagnose_posteriors": (
        CONTIG,
        POS,
        HYPOTHESIS,
        METHOD,
        Column("kind", LABEL, "", "effect theta field", "effects of the mean, variance parameters, or latent field"),
        Column("coordinate", LABEL, "", "name", "column of the mean, parameter on its free scale, or individual"),
        Column("mean", pa.float64(), "logit or log", "any", "posterior mean"),
        Column("sd", pa.float64(), "logit or log", ">= 0, nan", "posterior SD; nan where the method found none"),
        Column("mean_se", pa.float64(), "logit or log", ">= 0", "Monte Carlo standard error of `mean`; 0 without one"),
        Column("sd_se", pa.float64(), "logit or log", ">= 0", "Monte Carlo standard error of `sd`; 0 without one"),
    ),
    "diagnose_evidences": (
        CONTIG,
        POS,
        HYPOTHESIS,
        METHOD,
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
        CONTIG,
        POS,
        HYPOTHESIS,
        METHOD,
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
        METHOD,
        Column("reference", LABEL, "", "reference nuts", "what the method is compared with"),
        HYPOTHESIS,
        Column("group", LABEL, "", "name", "effect, field, or a variance parameter on its free scale"),
        Column("n", pa.int64(), "values", ">= 0", "loci times coordinates"),
        Column("bias_mean", pa.float64(), "SD", "any, nan", "mean difference of posterior means, in reference SDs"),
        Column("bias_rms", pa.float64(), "SD", ">= 0, nan", "root mean square of the same"),
        Column("monte_carlo_error", pa.float64(), "SD", ">= 0, nan", "what of `bias_rms` sampling would explain"),
        Column("sd_ratio_median", pa.float64(), "ratio", "> 0, nan", "median ratio of the SD to the reference's"),
        Column("sd_ratio_q05", pa.float64(), "ratio", "> 0, nan", "5 % quantile of the ratios"),
        Column("sd_ratio_q95", pa.float64(), "ratio", "> 0, nan", "95 % quantile of the ratios"),
    ),
}


def _share(counted: str) -> tuple[Column, ...]:
    return (
        Column("share", pa.float64(), "fraction", "0..1, nan", f"`{counted}` as a share of `n_loci`; nan without any"),
        Column("lower", pa.float64(), "fraction", "0..1", "lower end of the share's exact 95 % interval"),
        Column("upper", pa.float64(), "fraction", "0..1", "upper end of the share's exact 95 % interval"),
    )


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
        Column("stratum", LABEL, "", "overall depth baseline", "what the loci are selected by"),
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
        HYPOTHESIS,
        Column("null", LABEL, "", "name", "hypothesis without transmission that it is compared with"),
        Column("drawn_from", LABEL, "", "name", "which of the two the loci come from"),
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
        HYPOTHESIS,
        Column(
            "given", pa.float64(), "fraction", "0..1", "weight that loci are drawn with where they follow the model"
        ),
        Column("drawn", pa.float64(), "fraction", "0..1", "share of the loci that were drawn from the hypothesis"),
        Column("weight", pa.float64(), "fraction", "0..1", "weight estimated from the drawn loci"),
        Column("lower", pa.float64(), "fraction", "0..1", "2.5 % quantile of its posterior"),
        Column("upper", pa.float64(), "fraction", "0..1", "97.5 % quantile of its posterior"),
        _N_LOCI,
    ),
}


def _bayes_factors(prefix: str, unit: str, words: str, values: str) -> tuple[Column, ...]:
    of = f"of {words} of the hypothesis against the alternative"
    return (
        Column(f"{prefix}{unit}_expected_log_bf", pa.float64(), "nats", values, f"mean log Bayes factor {of}"),
        Column(f"{prefix}{unit}_p_right", pa.float64(), "probability", values, f"Bayes factor {of} is above 10"),
        Column(f"{prefix}{unit}_p_misleading", pa.float64(), "probability", values, f"Bayes factor {of} is below 1/10"),
        Column(f"{prefix}{unit}_p_weak", pa.float64(), "probability", values, f"Bayes factor {of} is between the two"),
    )


_TRUE = Column("hypothesis", LABEL, "", "name", "hypothesis that is true, at its typical parameters")
_ALTERNATIVE = Column("alternative", LABEL, "", "name", "hypothesis that it is compared with")

DESIGN_TABLES: Mapping[str, tuple[Column, ...]] = {
    "design": (
        _TRUE,
        _ALTERNATIVE,
        Column(
            "merged",
            LABEL,
            "",
            "names joined by |, empty",
            "hypotheses, both among them, that no data of these samples can separate; empty where the two can be",
        ),
        Column(
            "is_mimicked",
            pa.bool_(),
            "",
            "true false",
            "whatever the samples share under the hypothesis they can share under the alternative",
        ),
        Column(
            "least_nats",
            pa.float64(),
            "nats",
            ">= 0",
            "least Kullback-Leibler divergence from the alternative over its parameters, of a locus of the cohort",
        ),
        Column(
            "least_nats_family",
            pa.float64(),
            "nats",
            ">= 0, nan",
            "the same of a family and locus, where the baseline is known; nan without families",
        ),
        Column("loci", pa.float64(), "loci", "> 0, inf", "loci of the cohort for 5 nats; inf for never"),
        Column("families_times_loci", pa.float64(), "families x loci", "> 0, inf", "the same of families times loci"),
        *_bayes_factors("", "locus", "a locus", "any"),
        *_bayes_factors("", "region", "a region", "any"),
        *_bayes_factors("realized_", "locus", "a simulated locus", "any, nan"),
        *_bayes_factors("realized_", "region", "a simulated region", "any, nan"),
    ),
    "design_confusion": (
        Column("unit", LABEL, "", "locus region", "what is evaluated: a locus, or a region of design.region_loci"),
        _TRUE,
        Column("best", LABEL, "", "names joined by |", "hypothesis, or those that nothing separates, of most evidence"),
        Column("share", pa.float64(), "fraction", "0..1", "share of the loci or regions, on the Gaussian scale"),
        Column("realized_share", pa.float64(), "fraction", "0..1, nan", "the same of simulated ones; nan without"),
        Column("n", pa.int64(), "loci or regions", ">= 0", "simulated ones"),
    ),
    "design_next": (
        Column("hypothesis", LABEL, "", "name", "hypothesis of a pair"),
        Column("alternative", LABEL, "", "name", "the other one"),
        Column("option", LABEL, "", "words", "what to sequence next"),
        Column("samples", pa.int64(), "samples", ">= 1", "samples that it adds, or reads of as many"),
        Column(
            "least_nats",
            pa.float64(),
            "nats",
            ">= 0",
            "least divergence of the pair of a locus, the larger of both directions, as the cohort is",
        ),
        Column("least_nats_then", pa.float64(), "nats", ">= 0", "the same with the option"),
        Column("gain_per_sample", pa.float64(), "nats", "any", "what it adds, divided by `samples`"),
        Column("rank", pa.int32(), "number", ">= 1", "by gain_per_sample, within the pair"),
    ),
}
