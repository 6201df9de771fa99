"""All methods on the same loci, against high-precision integration and against NUTS.

For every locus and hypothesis: what each method says of every coordinate and of the evidence; how the bound of a
variational method divides; what a factorization discards; what amortization costs. `summarize` condenses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from epivi.families.transmission.locus.amortized import DRAWS, BoundSplit, draw_guide, refine, split_bound
from epivi.families.transmission.locus.meanfield import draw_meanfield
from epivi.families.transmission.locus.methods import LOCUS_METHODS, build_locus_problems, measured_nuts
from epivi.families.transmission.locus.nested import reference
from epivi.families.transmission.locus.problem import LocusPosterior, LocusProblem, MeasuredPosterior, coordinates
from epivi.families.transmission.outer_integral import EvidenceModel
from epivi.families.transmission.refinement import evaluate_batch
from epivi.fit.bound import Guide
from epivi.loci.source import LocusSample

Array = NDArray[np.float64]
Columns = dict[str, NDArray[Any]]

REFERENCE, EVIDENCE, REFINED, NUTS = "reference", "evidence", "refined", "nuts"
REFERENCE_NODES = 2  # times as many outer nodes as the evidence has
CHUNK_LOCI = 32  # at once: their dense matrices at all nodes stay below a gigabyte at some tens of individuals


class Settings(NamedTuple):
    """methods: keys of LOCUS_METHODS. nodes: of the evidence. nuts_loci: how many of the loci NUTS gets."""

    methods: tuple[str, ...]
    nodes: int
    nuts_loci: int
    seed: int


class BoundRow(NamedTuple):
    """Of one variational method and hypothesis at L loci."""

    split: BoundSplit
    mutual_information: Array  # nats that a factorization of effects and field discards, nan for another method
    variance_lost: Array  # mean share of the coordinates' variance that the method lacks
    amortization_gap: Array  # nats that refining the guide at the locus gains; nan for another method


class Study(NamedTuple):
    """Everything that was found, by (hypothesis, method); loci in the order of `loci`, for NUTS the first of them."""

    loci: LocusSample
    hypotheses: tuple[str, ...]
    coordinates: dict[str, list[tuple[str, str]]]
    posteriors: dict[tuple[str, str], MeasuredPosterior]
    evidences: dict[tuple[str, str], Array]  # of methods without a posterior of all coordinates, [L]
    bounds: dict[tuple[str, str], BoundRow]


def study(
    model: EvidenceModel, guide: Guide, loci: LocusSample, settings: Settings, advance: Callable[[int], object]
) -> Study:
    """Run the reference, every method and the evidence on all loci; `advance` is called for each locus."""
    size = len(loci.number)
    parts = []
    for start in range(0, size, CHUNK_LOCI):
        some = loci.part(slice(start, start + CHUNK_LOCI))
        parts.append(_study_part(model, guide, some, settings))
        advance(len(some.number))
    whole = reduce(_join, parts)._replace(loci=loci)
    if NUTS in settings.methods:
        whole.posteriors.update(_nuts(model, guide, loci.part(slice(settings.nuts_loci)), settings))
    return whole


def _nuts(
    model: EvidenceModel, guide: Guide, loci: LocusSample, settings: Settings
) -> dict[tuple[str, str], MeasuredPosterior]:
    """All loci of a hypothesis in one chain: a gradient costs much the same for one and for many."""
    problems = build_locus_problems(model, guide, loci.meth, loci.total, loci.number, settings.nodes, settings.seed)
    return {(problem.hypothesis.name, NUTS): measured_nuts(problem) for problem in problems}


def _study_part(model: EvidenceModel, guide: Guide, loci: LocusSample, settings: Settings) -> Study:
    nodes, seed = settings.nodes, settings.seed
    problems = build_locus_problems(model, guide, loci.meth, loci.total, loci.number, nodes, seed)
    # Other nodes than the methods have: errors of the outer integral are not common to both.
    fine = build_locus_problems(model, guide, loci.meth, loci.total, loci.number, REFERENCE_NODES * nodes, seed + 1)
    found = Study(loci, tuple(h.name for h in model.hypotheses), {}, {}, {}, {})
    evidences = evaluate_batch(model, loci.meth, loci.total, loci.number, nodes, seed)
    for problem, precise, evidence in zip(problems, fine, evidences, strict=True):
        name = problem.hypothesis.name
        exact = reference(precise)
        found.coordinates[name] = coordinates(problem)
        found.posteriors[name, REFERENCE] = exact
        found.evidences[name, EVIDENCE] = evidence.log_evidence
        for method in (method for method in settings.methods if method != NUTS):
            found.posteriors[name, method] = _unmeasured(LOCUS_METHODS[method](problem))
        found.bounds.update({(name, row): bound for row, bound in _bounds(problem, exact.posterior, settings)})
    return found


def _unmeasured(posterior: LocusPosterior) -> MeasuredPosterior:
    none = np.zeros_like(posterior.mean)
    return MeasuredPosterior(posterior, np.zeros(len(none)), none, none)


def _bounds(problem: LocusProblem, exact: LocusPosterior, settings: Settings) -> Iterator[tuple[str, BoundRow]]:
    """The bounds of the guide, of the guide refined at every locus, and of mean-field."""
    nan = np.full(len(exact.mean), np.nan)
    if "svi" in settings.methods:
        refined = refine(problem)
        amortized, better = (draw_guide(problem, gaussian, DRAWS) for gaussian in (problem.pyro.gaussian, refined))
        splits = [split_bound(draws.log_weight, draws.log_likelihood) for draws in (amortized, better)]
        lost = [_variance_lost(problem, exact, draws.x.var(0)) for draws in (amortized, better)]
        yield "svi", BoundRow(splits[0], nan, lost[0], splits[1].elbo - splits[0].elbo)
        yield REFINED, BoundRow(splits[1], nan, lost[1], nan)
    if "meanfield" in settings.methods:
        variance = np.diagonal(LOCUS_METHODS["meanfield"](problem).covariance, axis1=1, axis2=2)
        split = split_bound(*draw_meanfield(problem, DRAWS))
        yield (
            "meanfield",
            BoundRow(split, _mutual_information(problem, exact), _variance_lost(problem, exact, variance), nan),
        )


def _latent_coordinates(problem: LocusProblem) -> NDArray[np.intp]:
    """Effects and field: the coordinates that mean-field makes independent of each other."""
    return np.array([number for number, (kind, _) in enumerate(coordinates(problem)) if kind != "theta"])


def _mutual_information(problem: LocusProblem, exact: LocusPosterior) -> Array:
    """Total correlation of a Gaussian with the posterior covariance of effects and field: the divergence of it from
    the product of its marginals, (sum log variances - log-determinant) / 2, [L]."""
    at = _latent_coordinates(problem)
    covariance = exact.covariance[:, at[:, None], at]
    variance = np.diagonal(covariance, axis1=1, axis2=2)
    return 0.5 * (np.log(variance).sum(1) - np.linalg.slogdet(covariance)[1])


def _variance_lost(problem: LocusProblem, exact: LocusPosterior, variance: Array) -> Array:
    at = _latent_coordinates(problem)
    return 1.0 - (variance[:, at] / np.diagonal(exact.covariance, axis1=1, axis2=2)[:, at]).mean(1)


def _join(one: Study, other: Study) -> Study:
    """The same for more loci."""

    def concatenate(a: Any, b: Any) -> Any:
        if isinstance(a, np.ndarray):
            return np.concatenate([a, b])
        if isinstance(a, tuple):
            return type(a)(*(concatenate(x, y) for x, y in zip(a, b, strict=True)))
        return a and b if isinstance(a, bool) else a

    def join(of_one: dict, of_other: dict) -> dict:
        return {key: concatenate(value, of_other[key]) for key, value in of_one.items()}

    return one._replace(
        posteriors=join(one.posteriors, other.posteriors),
        evidences=join(one.evidences, other.evidences),
        bounds=join(one.bounds, other.bounds),
    )


# --- tables ----------------------------------------------------------------------------------------------------------


def sds(posterior: LocusPosterior) -> Array:
    """[L, C]."""
    with np.errstate(invalid="ignore"):
        return np.sqrt(np.diagonal(posterior.covariance, axis1=1, axis2=2))


def posterior_rows(study: Study) -> Columns:
    """One row for each locus, hypothesis, method and coordinate."""
    parts = []
    for (hypothesis, method), measured in study.posteriors.items():
        loci, size = measured.posterior.mean.shape
        kinds, names = zip(*study.coordinates[hypothesis], strict=True)
        part = {
            **_places(study.loci, np.repeat(np.arange(loci), size)),
            "hypothesis": np.full(loci * size, hypothesis),
            "method": np.full(loci * size, method),
            "kind": np.tile(kinds, loci),
            "coordinate": np.tile(names, loci),
        }
        values = {
            "mean": measured.posterior.mean,
            "sd": sds(measured.posterior),
            "mean_se": measured.mean_se,
            "sd_se": measured.sd_se,
        }
        parts.append(part | {name: value.ravel() for name, value in values.items()})
    return _stack(parts)


def evidence_rows(study: Study, null: str) -> Columns:
    """One row for each locus, hypothesis and method that has an evidence; null: the hypothesis of Bayes factors."""
    log_evidence = {key: measured.posterior.log_evidence for key, measured in study.posteriors.items()}
    log_evidence |= study.evidences
    parts = []
    for (hypothesis, method), value in log_evidence.items():
        if np.isnan(value).all():
            continue
        exact = log_evidence[hypothesis, REFERENCE]
        bayes_factor = value - log_evidence[null, method]
        measured = study.posteriors.get((hypothesis, method))
        size = len(value)
        parts.append(
            {
                **_places(study.loci, np.arange(size)),
                "hypothesis": np.full(size, hypothesis),
                "method": np.full(size, method),
                "log_evidence": value,
                "log_evidence_se": np.zeros(size) if measured is None else measured.log_evidence_se,
                "is_bound": np.full(size, measured is not None and measured.posterior.is_bound),
                "converged": np.ones(size, dtype=bool) if measured is None else measured.posterior.converged,
                "error": value - exact,
                "log_bayes_factor": bayes_factor,
                "log_bayes_factor_error": bayes_factor - (exact - log_evidence[null, REFERENCE]),
            }
        )
    return _stack(parts)


def bound_rows(study: Study) -> Columns:
    """One row for each locus, hypothesis and variational method: ELBO = accuracy - complexity = log p(D) - KL."""
    parts = []
    for (hypothesis, method), row in study.bounds.items():
        exact = study.posteriors[hypothesis, REFERENCE]
        size = len(row.split.elbo)
        parts.append(
            {
                **_places(study.loci, np.arange(size)),
                "hypothesis": np.full(size, hypothesis),
                "method": np.full(size, method),
                **{name: getattr(row.split, name) for name in ("elbo", "elbo_se", "accuracy", "complexity")},
                "divergence": row.split.divergence,
                "divergence_se": row.split.log_evidence_se,
                "log_evidence": exact.posterior.log_evidence,
                "log_evidence_se": exact.log_evidence_se,
                "identity_gap": row.split.elbo + row.split.divergence - exact.posterior.log_evidence,
                "khat": row.split.khat,
                "amortization_gap": row.amortization_gap,
                "mutual_information": row.mutual_information,
                "variance_lost": row.variance_lost,
            }
        )
    return _stack(parts)


def summary_rows(study: Study) -> Columns:
    """Bias and SD ratio of every method, by hypothesis and group of coordinates, against both references.

    Bias is in posterior standard deviations of the reference. A group is the effects, the field, or one coordinate of
    theta.
    """
    rows = []
    for (hypothesis, method), measured in study.posteriors.items():
        for against in (REFERENCE, NUTS):
            other = study.posteriors.get((hypothesis, against))
            if other is None or against == method:
                continue
            common = min(len(measured.mean_se), len(other.mean_se))
            for group, at in _groups(study.coordinates[hypothesis]):
                rows.append(
                    {"method": method, "reference": against, "hypothesis": hypothesis, "group": group}
                    | _compare(measured, other, slice(common), at)
                )
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _groups(named: Sequence[tuple[str, str]]) -> list[tuple[str, NDArray[np.intp]]]:
    """Name and coordinates of every group."""
    labels = np.array([name if kind == "theta" else kind for kind, name in named])
    return [(str(label), np.flatnonzero(labels == label)) for label in dict.fromkeys(labels.tolist())]


def _compare(
    measured: MeasuredPosterior, other: MeasuredPosterior, loci: slice, at: NDArray[np.intp]
) -> dict[str, Any]:
    mean, sd = measured.posterior.mean[loci][:, at], sds(measured.posterior)[loci][:, at]
    other_mean, other_sd = other.posterior.mean[loci][:, at], sds(other.posterior)[loci][:, at]
    bias, ratio = (mean - other_mean) / other_sd, sd / other_sd
    known = np.isfinite(bias) & np.isfinite(ratio)
    bias, ratio = bias[known], ratio[known]
    error = np.hypot(measured.mean_se[loci][:, at], other.mean_se[loci][:, at])
    quantiles = np.quantile(ratio, (0.5, 0.05, 0.95)) if len(ratio) else np.full(3, np.nan)
    return {
        "n": int(known.sum()),
        "bias_mean": bias.mean() if len(bias) else np.nan,
        "bias_rms": np.sqrt((bias**2).mean()) if len(bias) else np.nan,
        "monte_carlo_error": np.sqrt(((error / other_sd)[known] ** 2).mean()) if len(bias) else np.nan,
        "sd_ratio_median": quantiles[0],
        "sd_ratio_q05": quantiles[1],
        "sd_ratio_q95": quantiles[2],
    }


def _places(loci: LocusSample, at: NDArray[np.intp]) -> Columns:
    return {"contig": loci.contig[at], "pos": loci.pos[at]}


def _stack(parts: list[Columns]) -> Columns:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
