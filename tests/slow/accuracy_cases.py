"""How far epivi's log Bayes factors and field SDs are from the truth: cohorts, gold standard and comparison.

The gold standard shares the density with the code under test and neither of its integrals:

    p(D | h) = int q(D | theta, h) p(theta | h) dtheta  E[p(D | theta, h) / q(D | theta, h)],   theta ~ q(theta | D, h)

The first factor takes a thousand nodes and more, from a wider proposal and with other shifts than production has. In
the second the field is summed by importance sampling from scrambled Sobol points (Owen 1997), with the same points for
all hypotheses, so that much of the error leaves the Bayes factor. The proposal of the field is a Gaussian fitted by
variational inference in the space of the levels, with the tail of a t distribution where the counts skew it; whatever
it is, the estimate of p(D | theta, h) is unbiased. tests/benchmarks/bench_accuracy.py prints the study.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logit, logsumexp, ndtri
from scipy.stats import qmc
from test_calibration import BASELINE, SHARES, _sheet, _trained_encoder

from epivi.cohort.samples import SampleSheet
from epivi.config.load import load_config
from epivi.families.transmission.cohort import build_cohort
from epivi.families.transmission.density import LearnedPriors, to_batch
from epivi.families.transmission.hypotheses import parse_hypotheses
from epivi.families.transmission.outer_integral import (
    EvidenceModel,
    HypothesisEvidence,
    OuterProposal,
    build_evidence_model,
    hypothesis_evidence,
    marginal_proposal,
)
from epivi.families.transmission.posterior import LARGEST_STANDARD_ERROR
from epivi.families.transmission.refinement import LARGEST_KHAT, evaluate_batch
from epivi.families.transmission.simulate import SimulatedCohort, SimulationSettings, simulate_cohort
from epivi.field.compiled.nodes import evaluate_nodes
from epivi.field.dense.importance import exact_field
from epivi.field.dense.methods import FIELD_METHODS
from epivi.field.dense.problem import (
    LARGEST_LOGIT,
    FieldProblem,
    FieldVariances,
    build_field_problem,
    log_binomials,
    observation_derivatives,
    select_loci,
)
from epivi.loci.source import CountsBatch
from epivi.simulate.positions import Contig
from epivi.simulate.templates import choose_unsampled, template_pedigree
from epivi.tables.columns import EVIDENCE_GOAL

Array = NDArray[np.float64]
Counts = NDArray[np.uint16]

HYPOTHESES = parse_hypotheses(load_config("{}").section("model")["hypotheses"])  # the five default ones
WEIGHTS = (0.55, 0.15, 0.12, 0.1, 0.08)
LOG_SPREAD_LOCATION = 0.2
FALSE_METHYLATED, FALSE_UNMETHYLATED = 0.005, 0.002
FAMILIES = {12: 2, 28: 5, 60: 10}  # of six individuals; two of 30 are not sampled
COVERAGES = (5.0, 20.0, 60.0)
PRODUCTION_NODES = 64

GOLD_WIDER = 1.3  # SD of the outer proposal, relative to production's
GOLD_SEEDS = (101, 102)  # of two outer lattices, whose difference tells their error
SWEEPS = 7  # of the Gaussian's sites; nothing depends on their having converged
JITTER = 1e-11  # of covariances that are definite but for rounding
STEP = 0.125
WIDENING = 0.5
TABLE = np.arange(-8.0, 8.0 + STEP / 2, STEP)  # standard normal values at which coordinates are mapped
GRID = np.linspace(-9.0, 9.0, 73)
SLOPE = 1e-3  # least slope of the map
PROBLEMS_AT_ONCE = 64


class Setup(NamedTuple):
    """A cohort with its model; the guide was trained at all COVERAGES together, the hyper-parameters are the truth."""

    model: EvidenceModel
    sheet: SampleSheet
    settings: SimulationSettings
    individuals: int


def setup(individuals: int, seed: int, training_loci: int = 6000) -> Setup:
    pedigree = template_pedigree("three_generations", FAMILIES[individuals])
    left_out = choose_unsampled(pedigree, len(pedigree.individuals) - individuals, seed)
    sampled = tuple(name for name in pedigree.individuals if name not in left_out)
    ages = np.random.default_rng(seed).integers(20, 80, individuals)
    sheet = _sheet(
        sampled,
        false_methylated=np.full(individuals, FALSE_METHYLATED),
        false_unmethylated=np.full(individuals, FALSE_UNMETHYLATED),
        columns={"age": tuple(map(str, ages))},
    )
    settings = SimulationSettings(
        seed=seed,
        hypotheses=HYPOTHESES,
        weights=WEIGHTS,
        contigs=(Contig("chr1", training_loci),),
        share_priors=SHARES,
        baseline=BASELINE,
        log_spread_location=LOG_SPREAD_LOCATION,
    )
    cohort = build_cohort(sheet, pedigree, (), HYPOTHESES)
    weight, mean, sd = (np.array(column) for column in zip(*BASELINE, strict=True))
    learned = LearnedPriors(
        weight, mean, sd, LOG_SPREAD_LOCATION, settings.log_spread_scale, np.zeros(0), np.array(WEIGHTS)
    )
    drawn = [simulate_cohort(replace(settings, coverage_mean=coverage), pedigree, sheet) for coverage in COVERAGES]
    training = replace(
        drawn[0], meth=np.concatenate([d.meth for d in drawn]), total=np.concatenate([d.total for d in drawn])
    )
    state = _trained_encoder(cohort, HYPOTHESES, learned, training)
    model = build_evidence_model(cohort, HYPOTHESES, learned, SHARES, state, 64)
    return Setup(model, sheet, settings, individuals)


def draw_loci(study: Setup, coverage: float, loci: int, seed: int) -> SimulatedCohort:
    """Loci of all hypotheses in the proportions of WEIGHTS."""
    settings = replace(study.settings, seed=seed, contigs=(Contig("chr1", loci),), coverage_mean=coverage)
    return simulate_cohort(settings, template_pedigree("three_generations", FAMILIES[study.individuals]), study.sheet)


# --- the gold standard -----------------------------------------------------------------------------------------------


class Gold(NamedTuple):
    """Gold evidences of L loci and H hypotheses, and what the levels make of the same outer nodes."""

    log_evidence: Array  # [L, H]
    log_ratio: Array  # [L, H, R], gold over EP at every outer node sampled; scrambles r are common to the hypotheses
    outer_difference: Array  # [L, H], between the two lattices
    propagated: Array  # [L, H], log evidence by EP at the same outer nodes
    laplace: Array  # [L, H], by corrected Laplace
    correction: Array  # [L, H], mean size of its second-order correction


def gold_evidence(
    model: EvidenceModel, meth: Counts, total: Counts, outer_nodes: int, scrambles: int, points: int, seed: int
) -> Gold:
    """meth, total: [L, S]. scrambles: R, outer nodes at which the field is sampled with `points` (a power of two)."""
    loci, samples = meth.shape
    scrambled = scrambled_points(samples, scrambles, points, seed)
    random = np.random.default_rng([seed, scrambles])
    start, component_level = random.random((loci, 1)), random.random((loci, scrambles))
    numbers = np.arange(loci)
    columns = []
    for index, proposal in enumerate(_outer_proposals(model, meth, total)):

        def outer(method: str, index: int = index, proposal: OuterProposal = proposal) -> list[HypothesisEvidence]:
            return [
                hypothesis_evidence(model, index, proposal, meth, total, numbers, outer_nodes, seed + lattice, method)
                for lattice in GOLD_SEEDS
            ]

        lattices = outer("ep")
        ends = np.stack([lattice.log_evidence for lattice in lattices])
        by_laplace = outer("laplace")
        chosen = _choose(lattices, ends, (start + np.arange(scrambles)) / scrambles)
        log_p = _node_evidence(model, index, meth, total, chosen.variances, component_level, scrambled)
        columns.append(
            (
                logsumexp(ends, axis=0) - np.log(2),
                log_p - chosen.log_evidence,
                ends[0] - ends[1],
                logsumexp([lattice.log_evidence for lattice in by_laplace], axis=0) - np.log(2),
                np.mean([lattice.laplace_correction for lattice in by_laplace], axis=0),
            )
        )
    propagated, ratio, difference, laplace, correction = (
        np.stack(column, axis=1) for column in zip(*columns, strict=True)
    )
    gold = propagated + logsumexp(ratio, axis=2) - np.log(scrambles)
    return Gold(gold, ratio, difference, propagated, laplace, correction)


def _outer_proposals(model: EvidenceModel, meth: Counts, total: Counts) -> list[OuterProposal]:
    batch = to_batch(CountsBatch(meth, total, np.arange(len(meth))), len(meth), torch.device("cpu"), torch.float64)
    with torch.no_grad():
        gaussians = model.encoder(batch, model.hyper)
    proposals = [
        marginal_proposal(theta.mean.numpy(), theta.scale_tril.numpy(), len(hypothesis.parameters))
        for theta, hypothesis in zip(gaussians, model.hypotheses, strict=True)
    ]
    return [proposal._replace(scale_tril=GOLD_WIDER * proposal.scale_tril) for proposal in proposals]


class _Chosen(NamedTuple):
    log_evidence: Array  # [L, R], by EP
    variances: Array  # [L, R, C + 2]


def _choose(lattices: list[HypothesisEvidence], ends: Array, levels: Array) -> _Chosen:
    """Outer nodes drawn by their weights: levels [L, R] of the cumulative weight of both lattices together."""
    share = np.exp(ends - logsumexp(ends, axis=0))
    weight = np.concatenate([s[:, None] * x.node_weight for s, x in zip(share, lattices, strict=True)], axis=1)
    cumulative = np.cumsum(weight, axis=1)
    rows = np.arange(len(weight))[:, None]
    place = np.stack([np.searchsorted(c, level * c[-1]) for c, level in zip(cumulative, levels, strict=True)])
    log_evidence, variances = (
        np.concatenate([getattr(x, name) for x in lattices], axis=1) for name in ("node_log_evidence", "node_variances")
    )
    return _Chosen(log_evidence[rows, place], variances[rows, place])


def _node_evidence(
    model: EvidenceModel, index: int, meth: Counts, total: Counts, variances: Array, level: Array, points: Points
) -> Array:
    """Unbiased estimates of p(D | theta, h) at theta of variances [L, R, C + 2], as logs [L, R].

    The sum over the components k of the baseline's prior is that of EP's, w_k q_k, times p_k / q_k of one component
    drawn from it by `level` [L, R].
    """
    learned = model.learned
    first = np.concatenate([variances[:, :1], variances], axis=1)  # the kernel keeps Laplace at the first
    log_q = np.stack(
        [
            evaluate_nodes(
                model.arrays[index], meth, total, first[..., :-1], first[..., -1],
                np.ones(1), mean[None], sd[None], model.effect_sds[index], method="ep",
            ).log_evidence[:, 1:] + np.log(weight)
            for weight, mean, sd in zip(
                learned.baseline_weights, learned.baseline_means, learned.baseline_sds, strict=True
            )
        ]
    )  # fmt: skip
    whole = logsumexp(log_q, axis=0)
    component = (np.cumsum(np.exp(log_q - whole), axis=0) < level).sum(0).clip(max=len(log_q) - 1)  # [L, R]
    loci, scrambles = component.shape
    effects = np.zeros((loci * scrambles, len(model.effect_sds[index])))
    at_points = variances.reshape(-1, variances.shape[-1])
    problem = build_field_problem(
        model.cohort.fields[index],
        model.cohort,
        FieldVariances(at_points[:, :-1], at_points[:, -1]),
        np.column_stack([learned.baseline_means[component].ravel(), effects]),
        np.column_stack([learned.baseline_sds[component].ravel(), effects + model.effect_sds[index]]) ** 2,
        np.repeat(meth, scrambles, axis=0),
        np.repeat(total, scrambles, axis=0),
    )
    log_p = field_evidence(problem, points)
    at = np.take_along_axis(log_q - np.log(learned.baseline_weights)[:, None, None], component[None], axis=0)[0]
    return whole + log_p.reshape(loci, scrambles) - at


def field_evidence(problem: FieldProblem, points: Points) -> Array:
    """Log evidence [B] of B fields at fixed variance components by importance sampling; field b by scramble b mod R."""
    log_evidence = log_binomials(problem)
    for begin in range(0, len(log_evidence), PROBLEMS_AT_ONCE):
        part = slice(begin, begin + PROBLEMS_AT_ONCE)
        some = select_loci(problem, part)
        sites = _fit_sites(some)
        tables = _transport(some, sites)
        log_evidence[part] += [
            _sample(some, sites, tables, points, b, (begin + b) % len(points.interval)) for b in range(len(sites.mean))
        ]
    return log_evidence


class Points(NamedTuple):
    """R scrambles of P points of a standard normal in 1 + S dimensions, and their place in the tables of _transport."""

    interval: NDArray[np.int64]  # [R, P, 1 + S]
    offset: Array  # [R, P, 1 + S], from the interval's lower end
    log_density: Array  # [R, P], without (2 pi)^(-(1 + S) / 2)


def scrambled_points(samples: int, scrambles: int, points: int, seed: int) -> Points:
    uniform = np.stack(
        [qmc.Sobol(samples + 1, rng=np.random.default_rng([seed, r])).random(points) for r in range(scrambles)]
    )
    x = ndtri(uniform.clip(1e-11, 1 - 1e-11))
    # A little wider in every direction, for tails that the maps miss; the loss grows with the number of directions.
    scale = 1.0 + WIDENING / np.sqrt(samples)
    log_density = -0.5 * (x**2).sum(2) - (1 + samples) * np.log(scale)
    x *= scale
    interval = np.floor((x - TABLE[0]) / STEP).astype(np.int64)
    return Points(interval, x - TABLE[interval], log_density)


class _Sites(NamedTuple):
    """Prior times Gaussian sites exp(pull xi - precision xi^2 / 2) on the observations, xi = eta - centre; [B, S]."""

    centre: Array  # prior mean of eta
    precision: Array
    pull: Array
    mean: Array  # of xi
    loading: Array  # [B, S, 1 + S], xi = mean + loading z: a direction common to the levels, then one for each
    log_integral: Array  # [B]


def _fit_sites(problem: FieldProblem) -> _Sites:
    """Variational Gaussian: precision -E l'' and pull E l' + precision mean at the fixed point.

    The common direction is that in which the observations together skew the posterior.
    """
    centre = problem.prior_mean @ problem.loading.T
    covariance = problem.loading @ problem.prior_covariance @ problem.loading.T
    identity = np.eye(centre.shape[1])
    root = np.linalg.cholesky(covariance + JITTER * identity).astype(np.float64)
    share = (problem.meth + 0.5) / (problem.total + 1.0)
    precision: Array = problem.total * share * (1.0 - share)
    pull = precision * (logit(share) - centre)
    mean, spread, log_integral = _combine(root, precision, pull)
    for _ in range(SWEEPS):
        first, second, _ = _expected(problem, centre + mean, (spread**2).sum(-1))
        precision = np.maximum(-second, 0.0)
        pull = first + precision * mean
        mean, spread, log_integral = _combine(root, precision, pull)
    variance = (spread**2).sum(-1)
    skew = _expected(problem, centre + mean, variance)[2] * variance
    skew = np.where(skew.any(1, keepdims=True), skew, 1.0)
    posterior = spread @ np.swapaxes(spread, 1, 2)
    common = np.einsum("bst,bt->bs", posterior, skew)
    common /= np.sqrt(np.einsum("bs,bs->b", common, skew))[:, None]
    rest = np.linalg.cholesky(posterior - common[:, :, None] * common[:, None, :] + JITTER * identity)
    return _Sites(centre, precision, pull, mean, np.concatenate([common[:, :, None], rest], axis=2), log_integral)


def _transport(problem: FieldProblem, sites: _Sites) -> Array:
    """Piecewise linear maps of a standard normal coordinate to one that follows what observations make of it, at the
    nodes TABLE, [B, 1 + S, nodes].

    The density of a coordinate is taken as normal times the ratio of observation to site, averaged over the other
    coordinates as if they were normal: for the common direction the product over observations, for another one that of
    its own. This gives the proposal the skewness and the tails that a Gaussian lacks.
    """
    variance = (sites.loading**2).sum(2)
    own = np.diagonal(sites.loading[:, :, 1:], axis1=1, axis2=2)
    log_density = np.concatenate(
        [
            _averaged_ratio(problem, sites, sites.loading[:, :, 0], variance).sum(1, keepdims=True),
            _averaged_ratio(problem, sites, own, variance),
        ],
        axis=1,
    )
    log_density -= 0.5 * GRID**2
    density = np.exp(log_density - log_density.max(2, keepdims=True))
    middle = 0.5 * (density[..., 1:] + density[..., :-1])
    below = np.concatenate([0 * density[..., :1], np.cumsum(middle, axis=2)], axis=2)
    above = np.concatenate([np.cumsum(middle[..., ::-1], axis=2)[..., ::-1], 0 * density[..., :1]], axis=2)
    whole = below[..., -1:]
    smaller = ndtri(np.clip(np.minimum(below, above) / whole, 1e-300, 0.5))
    score = np.where(below < above, smaller, -smaller)
    tables = np.empty((*score.shape[:2], len(TABLE)))
    for place in np.ndindex(score.shape[:2]):
        tables[place] = np.interp(TABLE, score[place], GRID)
    # Beyond the grid, and wherever the map would be flat, it rises all the same.
    return tables + SLOPE * TABLE


def _averaged_ratio(problem: FieldProblem, sites: _Sites, loading: Array, variance: Array) -> Array:
    """Mean log ratio of observation to site at loading times GRID, over N(0, the rest of the variance), [B, S, G]."""
    rest = np.sqrt(np.maximum(variance - loading**2, 0.0))
    node, weight = np.polynomial.hermite_e.hermegauss(3)
    along = sites.mean[:, :, None] + loading[:, :, None] * GRID
    total = np.zeros(along.shape)
    for x, share in zip(node, weight / weight.sum(), strict=True):
        total += share * _log_ratio(problem, sites, along + rest[:, :, None] * x)
    return total


def _log_ratio(problem: FieldProblem, sites: _Sites, xi: Array) -> Array:
    """Log of observation over site, [B, S, G]."""
    e = np.exp(-np.clip(sites.centre[..., None] + xi, -LARGEST_LOGIT, LARGEST_LOGIT))
    share = 1.0 / (1.0 + e)
    eps, delta = problem.false_methylated[:, None], problem.false_unmethylated[:, None]
    gain = 1.0 - eps - delta
    meth, total = problem.meth[..., None], problem.total[..., None]
    observation = meth * np.log(eps + gain * share) + (total - meth) * np.log(delta + gain * e * share)
    return observation + xi * (0.5 * sites.precision[..., None] * xi - sites.pull[..., None])


def _sample(problem: FieldProblem, sites: _Sites, tables: Array, points: Points, b: int, r: int) -> float:
    """Log evidence of problem b by scramble r, without its binomial coefficients."""
    interval, coordinate = points.interval[r], np.arange(tables.shape[1])
    slope = np.diff(tables[b]) / STEP
    z = tables[b][coordinate, interval] + slope[coordinate, interval] * points.offset[r]
    log_weight = np.log(slope)[coordinate, interval].sum(1) - 0.5 * (z**2).sum(1) - points.log_density[r]
    xi = (sites.mean[b] + z @ sites.loading[b].T).T
    only = _Sites(*(array[b : b + 1] for array in sites))
    log_weight += _log_ratio(select_loci(problem, slice(b, b + 1)), only, xi[None])[0].sum(0)
    return float(logsumexp(log_weight) - np.log(len(z)) + sites.log_integral[b])


def _combine(root: Array, precision: Array, pull: Array) -> tuple[Array, Array, Array]:
    """Mean [B, S] and root of the covariance [B, S, S] of xi, and log of the integral of prior times sites."""
    information = np.swapaxes(root, 1, 2) @ (precision[..., None] * root) + np.eye(root.shape[-1])
    lower = np.linalg.cholesky(information)
    spread = root @ np.swapaxes(np.linalg.inv(lower), 1, 2)
    half = np.einsum("bsm,bs->bm", spread, pull)
    log_determinant = np.log(np.diagonal(lower, axis1=1, axis2=2)).sum(1)
    return np.einsum("bsm,bm->bs", spread, half), spread, 0.5 * (half**2).sum(1) - log_determinant


def _expected(problem: FieldProblem, mean: Array, variance: Array) -> tuple[Array, Array, Array]:
    """First to third derivative of the observations, [B, S] each, averaged over N(mean, variance)."""
    node, weight = np.polynomial.hermite_e.hermegauss(9)
    derivatives = observation_derivatives(problem, mean + node[:, None, None] * np.sqrt(variance))
    first, second, third = (np.tensordot(weight / weight.sum(), value, 1) for value in derivatives[:3])
    return first, second, third


# --- comparison ------------------------------------------------------------------------------------------------------


class Comparison(NamedTuple):
    """Log evidences of L loci under H hypotheses against gold, nats. Errors of Bayes factors are against `reset`."""

    production: Array  # [L, H]
    inner_error: Array  # [L, H], as production states it
    inner_method: NDArray[np.int64]  # [L], of INNER_METHODS
    is_flagged: NDArray[np.bool_]  # [L], as epivi.families.transmission.posterior flags
    gold: Array  # [L, H]
    bayes_factor_se: Array  # [L, H - 1], of gold
    against_mean_se: Array  # [L, H], of gold's log evidence against the mean of the hypotheses
    propagated: Array  # [L, H], at gold's outer nodes
    laplace: Array
    correction: Array


def compare(model: EvidenceModel, meth: Counts, total: Counts, loci: NDArray[np.int64], gold: Gold) -> Comparison:
    """`loci` [L]: numbers in the genome, which production's nodes depend on."""
    found = evaluate_batch(model, meth, total, loci, PRODUCTION_NODES, seed=1)
    log_evidence, inner_error, khat, standard_error = (
        np.stack([getattr(evidence, name) for evidence in found], axis=1)
        for name in ("log_evidence", "inner_error", "khat", "log_evidence_se")
    )
    return Comparison(
        production=log_evidence,
        inner_error=inner_error,
        inner_method=found[0].inner_method,
        is_flagged=~(inner_error <= EVIDENCE_GOAL).all(1)
        | (np.nan_to_num(khat) > LARGEST_KHAT).any(1)
        | (standard_error > LARGEST_STANDARD_ERROR).any(1),
        gold=gold.log_evidence,
        bayes_factor_se=_jackknife(gold, against_reset),
        against_mean_se=_jackknife(gold, against_mean),
        propagated=gold.propagated,
        laplace=gold.laplace,
        correction=gold.correction,
    )


def against_reset(log_evidence: Array) -> Array:
    """Log Bayes factors [..., H - 1] of the hypotheses against the first."""
    return log_evidence[..., 1:] - log_evidence[..., :1]


def against_mean(log_evidence: Array) -> Array:
    return log_evidence - log_evidence.mean(-1, keepdims=True)


def _jackknife(gold: Gold, contrast: Callable[[Array], Array]) -> Array:
    """Standard error of a contrast between hypotheses: over scrambles, and between the outer lattices."""
    ratio = np.exp(gold.log_ratio)
    scrambles = ratio.shape[2]
    without = np.log((ratio.sum(2, keepdims=True) - ratio) / (scrambles - 1))
    inner = (scrambles - 1) * contrast(np.moveaxis(without, 2, 0)).var(0)
    return np.sqrt(inner + contrast(gold.outer_difference) ** 2 / 4)


def bayes_factor_error(found: Comparison) -> tuple[Array, Array]:
    """Largest error over the hypotheses at every locus, and the standard error of gold there, [L] each."""
    error = np.abs(against_reset(found.production - found.gold))
    at = error.argmax(1)[:, None]
    return np.take_along_axis(error, at, 1)[:, 0], np.take_along_axis(found.bayes_factor_se, at, 1)[:, 0]


def common_error(found: Comparison) -> tuple[Array, Array]:
    """Mean error of each log Bayes factor against `reset` over the loci, [H - 1], and its standard error."""
    error = against_reset(found.production - found.gold)
    return error.mean(0), error.std(0, ddof=1) / np.sqrt(len(error))


def to_resolve(found: Comparison, hard: int, most: int) -> NDArray[np.int64]:
    """Loci to sample longer: the `hard` ones with the widest corrections, and those that gold leaves in doubt."""
    widest = np.argsort(-np.ptp(found.correction, axis=1))[:hard]
    return np.union1d(in_doubt(found, most), widest)


def in_doubt(found: Comparison, most: int) -> NDArray[np.int64]:
    """At most so many loci of which gold does not say whether they are within .02 nats, the most doubtful ones."""
    error, se = bayes_factor_error(found)
    doubt = np.abs(error - EVIDENCE_GOAL) / np.maximum(se, 1e-6)
    doubtful = np.flatnonzero((doubt < 3.0) | (se > 0.25 * EVIDENCE_GOAL))
    return doubtful[np.argsort(doubt[doubtful])][:most]


def with_rows(found: Comparison, rows: NDArray[np.int64], better: Comparison) -> Comparison:
    columns: list[Any] = []
    for old, new in zip(found, better, strict=True):
        column = old.copy()
        column[rows] = new
        columns.append(column)
    return Comparison(*columns)


def measured_share(error: Array, error_se: Array, estimate: Array) -> tuple[float, float]:
    """Root mean square of errors, less what gold's own adds, over that of what they are estimated from; and its upper
    end with gold's share left in."""
    scale = np.sqrt((estimate**2).mean())
    square = (error**2).mean()
    return float(np.sqrt(max(square - (error_se**2).mean(), 0.0)) / scale), float(np.sqrt(square) / scale)


# --- standard deviations at fixed variance components ---------------------------------------------------------------


class SpreadRatios(NamedTuple):
    """SDs of a method over those of long importance sampling, of L loci."""

    baseline: Array  # [L]
    covariate: Array  # [L]
    field: Array  # [L, N]


def sd_ratios(
    study: Setup, coverage: float, loci: int, draws: int, seed: int, methods: Sequence[str]
) -> tuple[dict[str, SpreadRatios], SpreadRatios]:
    """By method; and the relative standard errors of the reference.

    The epigenetic hypothesis with a numeric covariate, whose effect has an SD of 0.3, and one component of the
    baseline's prior: N(0, 4), wide enough for what is drawn. Variance components are those that the loci were drawn
    with.
    """
    hypotheses = [hypothesis for hypothesis in HYPOTHESES if hypothesis.name == "epigenetic"]
    pedigree = template_pedigree("three_generations", FAMILIES[study.individuals])
    settings = replace(
        study.settings,
        seed=seed,
        hypotheses=tuple(hypotheses),
        weights=(1.0,),
        contigs=(Contig("chr1", loci),),
        coverage_mean=coverage,
        covariates=("age",),
        covariate_scale=0.3,
    )
    drawn = simulate_cohort(settings, pedigree, study.sheet)
    cohort = build_cohort(study.sheet, pedigree, ("age",), hypotheses)
    variance, share = drawn.truth["spread"] ** 2, drawn.truth["heritable_share"]
    parts = np.column_stack([variance * share, variance * (1 - share)])
    variances = FieldVariances(parts, drawn.truth["transmissibility"])
    problem = build_field_problem(cohort.fields[0], cohort, variances, [0.0, 0.0], [4.0, 0.09], drawn.meth, drawn.total)
    reference = exact_field(problem, draws, seed)

    def split(values: Array) -> SpreadRatios:
        return SpreadRatios(values[:, 0], values[:, 1], values[:, 2:])

    ratios = {}
    for method in methods:
        found = FIELD_METHODS[method](problem)
        sd = np.sqrt(np.diagonal(found.covariance, axis1=1, axis2=2))
        ratios[method] = split(np.where(found.converged[:, None], sd, np.nan) / reference.sd)
    return ratios, split(reference.sd_se / reference.sd)
