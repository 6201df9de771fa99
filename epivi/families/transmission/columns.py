"""Columns of the tables of the family `transmission`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

import pyarrow as pa

from epivi.config.declarations import RESERVED_PREFIX
from epivi.discovery.columns import AVERAGED_STATISTICS, STATISTICS, averaged_columns, shared_posterior_columns
from epivi.field.covariate import Covariate
from epivi.tables.columns import CONTIG, END, HYPOTHESIS, LABEL, POS, Column

EFFECT_PREFIX, EFFECT_UNIT = "effect_", "logit"
Parameters = Mapping[str, tuple[str, str, str]]  # name -> (unit, range, meaning)

# The per-locus quantities of the posterior; shares of a cohort's components and effects of its covariates follow them.
PARAMETERS: Parameters = {
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


def share_parameters(names: Iterable[str]) -> dict[str, tuple[str, str, str]]:
    """The share of each covariance component of a name, as in PARAMETERS."""
    doc = "share of the variance between individuals that the component {} explains"
    return {f"{name}_share": ("fraction", "0..1", doc.format(name)) for name in names}


def effect_name(covariate: Covariate) -> str:
    """What the columns of a covariate's effect begin with: the sheet's column and, of a category, the level."""
    level = "" if covariate.level is None else f"_{covariate.level}"
    return f"{EFFECT_PREFIX}{covariate.column}{level}"


def effect_parameters(covariates: Iterable[Covariate]) -> dict[str, tuple[str, str, str]]:
    """The effects of a cohort's covariates, as in PARAMETERS, in the order of the covariate matrix."""
    return {effect_name(covariate): (EFFECT_UNIT, "any", _effect_meaning(covariate)) for covariate in covariates}


def _effect_meaning(covariate: Covariate) -> str:
    if covariate.level is None:
        return f"change of the logit of methylation with each unit of {covariate.column}"
    return (
        f"logit of methylation where {covariate.column} is {covariate.level}, less that where it is "
        f"{covariate.reference}"
    )


def parameters_of(components: Iterable[str], covariates: Iterable[Covariate] = ()) -> dict[str, tuple[str, str, str]]:
    """PARAMETERS, the shares of further components, and the effects of covariates."""
    return {**PARAMETERS, **share_parameters(components), **effect_parameters(covariates)}


def _words(statistic: str, name: str) -> str:
    return f"posterior {STATISTICS[statistic]} of {name}: "


def _statistics(parameters: Parameters) -> Iterator[Column]:
    for name, (unit, values, doc) in parameters.items():
        for statistic in STATISTICS:
            yield Column(f"{name}_{statistic}", pa.float32(), unit, f"{values}, nan", _words(statistic, name) + doc)


def evidence_columns(components: Iterable[str], covariates: Iterable[Covariate] = ()) -> tuple[Column, ...]:
    """Columns of the evidence of hypotheses with these covariance components, the heritable one left out, and of a
    cohort with these covariates."""
    return (
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
        *_statistics(parameters_of(components, covariates)),
    )


TRANSMISSION_TABLES: Mapping[str, tuple[Column, ...]] = {"evidence": evidence_columns(("COMPONENT",))}


def components_in(evidence: Iterable[Column]) -> tuple[str, ...]:
    """Covariance components, the heritable one left out, whose shares an evidence table has."""
    shares = (column.name for column in evidence if column.unit != EFFECT_UNIT)
    names = (name.removesuffix("_share_mean") for name in shares if name.endswith("_share_mean"))
    return tuple(name for name in names if name != "heritable" and not name.startswith(RESERVED_PREFIX))


def effects_in(evidence: Iterable[Column]) -> Parameters:
    """The effects that an evidence table has."""
    return {
        name: (column.unit, "any", column.doc.removeprefix(_words("mean", name)))
        for column in evidence
        if column.name.startswith(EFFECT_PREFIX) and column.unit == EFFECT_UNIT and column.name.endswith("_mean")
        for name in (column.name.removesuffix("_mean"),)
    }


def posterior_columns(
    hypotheses: Sequence[str],
    components: Sequence[str] = (),
    effects: Parameters = MappingProxyType({}),
    merged: Sequence[str] = (),
) -> tuple[Column, ...]:
    """Columns of the table that users query, for hypotheses in the order of the configuration.

    components: names of the covariance components of any hypothesis, the heritable one left out. effects: averaged over
    the hypotheses only; under single ones they stand in the evidence. merged: names of groups of hypotheses that the
    samples cannot separate.

    Raises ValueError if two hypotheses differ only in case, because SQL could not distinguish their columns.
    """
    shared, parameters = shared_posterior_columns(hypotheses, merged), parameters_of(components)
    return (
        *(shared[name] for name in ("contig", "pos", "end", "strand", "context", "covered_samples", "coverage_reads")),
        *averaged_columns({**parameters, **effects}),
        *(shared[f"log_evidence_{name}"] for name in hypotheses),
        *(shared[f"prob_{name}"] for name in (*hypotheses, *merged)),
        Column("lfdr", pa.float64(), "probability", "0..1", "posterior probability that nothing is transmitted"),
        *(
            shared[name]
            for name in (
                "transmitted",
                "qvalue",
                "control_qvalue",
                "called",
                "kind_set",
                "best",
                "misfit_pvalue",
                "flag_misfit",
                "flag_cannot_tell",
                "flag_evidence",
            )
        ),
        Column("flag_khat", pa.bool_(), "", "true false", "importance weights too heavy-tailed to be trusted"),
        shared["flag_low_coverage"],
        Column("flag_mc_error", pa.bool_(), "", "true false", "Monte Carlo error of an evidence too large"),
        *(
            Column(
                f"{name}_{statistic}_{hypothesis}", pa.float32(), unit, f"{values}, nan", f"{words} under {hypothesis}"
            )
            for hypothesis in hypotheses
            for name, (unit, values, _) in parameters.items()
            for statistic, words in AVERAGED_STATISTICS.items()
        ),
    )
