"""Columns of the tables of divergence."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from epivi.tables.columns import LABEL, Column

_TIMES = tuple(
    Column(name, pa.int32(), "generations", values, f"generations from the founder to {whom}")
    for name, values, whom in (
        ("time0", ">= 0", "the last common ancestor"),
        ("time1", ">= time0", "the first sample"),
        ("time2", ">= time0", "the second sample"),
    )
)
_MODEL = Column("model", LABEL, "", "neutral null", "neutral: epimutations accumulate; null: they do not")
_RSS = Column(
    "rss", pa.float64(), "fraction^2", ">= 0", "residual sum of squares of the divergences, without the penalty"
)
_PENALTY = Column("penalty", pa.float64(), "fraction^2", ">= 0", "what the equilibrium adds to the sum of squares")

DIVERGENCE_TABLES: Mapping[str, tuple[Column, ...]] = {
    "divergence": (
        Column("sample_1", LABEL, "", "name", "first sample of the pair; . if the input does not say"),
        Column("sample_2", LABEL, "", "name", "second sample of the pair; . if the input does not say"),
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
            LABEL,
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
        Column("resampled", LABEL, "", "blocks residuals nothing", "what the bootstrap redraws"),
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
