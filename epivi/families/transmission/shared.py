"""What all loci share, by the evidence of some thousand loci: how the fit ends.

A variational bound lies further below the log evidence where standard deviations are larger, so that what maximizes it
makes them too small (Turner and Sahani 2011). Here what is maximized is the log likelihood of the sampled loci,

    sum_l log sum_h pi_h p(D_l | h, phi),

in the weights pi and in phi, the SDs of effects, mean and SD of the log spread and the mixture of the baselines. Each
step takes the evidences at the values at hand and goes to the maximum of the likelihood reweighted around them
(`reweighting`), with the mixture of the baselines by expectation-maximization on the same posteriors. The outer nodes
stay where the guide puts them, so that all steps have the same draws. A handful of steps is enough.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax

from epivi.base.ordered import on_threads
from epivi.families.transmission.density import LearnedPriors
from epivi.families.transmission.locus.empirical_bayes import fit_mixture
from epivi.families.transmission.outer_integral import (
    EvidenceModel,
    OuterProposal,
    baseline_points,
    evaluated_nodes,
    proposals_of,
    weighted_nodes,
    with_learned,
)
from epivi.families.transmission.reweighting import (
    NodePosterior,
    Reweighting,
    Scores,
    is_at_bound,
    learned_at,
    maximum,
    scores,
    standard_errors,
    vector_of,
)
from epivi.loci.source import CountsBatch

log = logging.getLogger(__name__)
Array = NDArray[np.float64]

CHUNK_LOCI = 128
NODES = 32  # half as many as of the evidence: errors of single loci are independent, and average out
# METHOD: expectation propagation at every locus. At 2, 5 and 20 reads in 12 and 21 individuals, steps in the log of an
# effect's SD from its moments are within .016 of those by differences of log evidences; from Laplace's moments up to
# .08, as its variances lack the second-order correction.
METHOD = "ep"
MOST_STEPS = 12
LARGEST_STEP = math.log(2.0)  # of the log of an SD: further away the nodes say little
SETTLED = 0.05  # standard errors that the last step may go
LARGEST_LOSS = 0.5  # nats over all loci by which a step may lower the evidence, for the errors of the reweighting
BLOCKS = 100
MIXTURE_ROUNDS = 5
BASELINE_POINTS = 5  # of a posterior that is far narrower than the components of the mixture
SMALLEST_SHARE = 1e-4  # of a component of the mixture
HARDLY_KNOWN = 0.5  # standard error of the log of an SD, from which on the fit warns


class SharedFit(NamedTuple):
    """What all loci share, as L sampled loci have it.

    effect_errors [C], location_error, scale_error: standard errors of the SDs of effects and of mean and SD of the log
    spread, nan at a bound. log_evidences: mean over the loci, nats, before the first step and at the end.
    """

    learned: LearnedPriors
    effect_errors: Array
    location_error: float
    scale_error: float
    loci: int
    blocks: int
    steps: int
    converged: bool
    log_evidences: tuple[float, float]
    warnings: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """For fit.json, where what is not known is null."""
        before, after = self.log_evidences
        return {
            "standard_errors": {
                "spread_location": _or_null(self.location_error),
                "spread_scale": _or_null(self.scale_error),
                "effect_sds": [_or_null(error) for error in self.effect_errors.tolist()],
            },
            "shared": {
                "loci": self.loci,
                "blocks": self.blocks,
                "steps": self.steps,
                "converged": self.converged,
                "log_evidence_nats_per_locus": {"variational": _or_null(before), "evidence": _or_null(after)},
            },
        }


def _or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None


class Expectation(NamedTuple):
    """Posteriors of the L loci that have an evidence, and of their baselines, at the values at hand."""

    reweighting: Reweighting
    baselines: Sequence[Array]  # of each hypothesis, points [L, Q]
    scores: Scores

    @property
    def total(self) -> float:
        """Log evidence of all loci, nats."""
        return float(self.scores.log_likelihood.sum())

    @property
    def log_evidence(self) -> float:
        """Mean over the loci, nats."""
        return self.total / len(self.scores.log_likelihood)


class _Part(NamedTuple):
    """One hypothesis at the loci of a chunk."""

    posterior: NodePosterior
    baseline: Array


def learn_shared(
    model: EvidenceModel,
    counts: CountsBatch,
    seed: int,
    threads: int = 1,
    advance: Callable[[int], object] = lambda loci: None,
) -> SharedFit:
    """Maximize the likelihood of some loci in what all loci share, from the values of the model.

    advance: called with a number of loci whenever they are done; each locus is, at most MOST_STEPS times. What the loci
    do not say raises nothing: a value then ends at a bound, and `warnings` name it.
    """
    chunks = [_part_of(counts, slice(first, first + CHUNK_LOCI)) for first in range(0, len(counts.locus), CHUNK_LOCI)]
    proposals = [proposals_of(model, chunk) for chunk in chunks]

    def expectation(learned: LearnedPriors) -> Expectation | None:
        at_these = with_learned(model, learned)
        parts = []
        items = zip(chunks, proposals, strict=True)
        for part in on_threads(lambda item: _posteriors(at_these, *item, seed), items, threads, ahead=2 * threads):
            parts.append(part)
            advance(len(part[0].baseline))
        return _joined(parts, learned)

    learned = learned_at(vector_of(model.learned), model.learned)
    best = start = expectation(learned)
    if best is None or start is None:
        return _nothing_learned(model)
    radius, converged, step = LARGEST_STEP, False, 0
    while step < MOST_STEPS - 1 and not converged:
        step += 1
        vector = maximum(best.reweighting, radius)
        learned, gained = _with_mixture(best, learned_at(vector, best.reweighting.at))
        log.info("%s", _progress(step, best.log_evidence, learned))
        converged = _is_settled(best, vector, radius)
        if not converged:
            found = expectation(learned)
            if found is not None and found.total >= best.total - LARGEST_LOSS:
                best = found
            else:
                radius /= 4
    return _result(model, best, vector, learned, gained, (start.log_evidence, step, converged))


def reweighting_of(model: EvidenceModel, counts: CountsBatch, seed: int) -> Reweighting:
    """The likelihood of some loci around the model's values; loci without an evidence are left out."""
    found = _joined([_posteriors(model, counts, proposals_of(model, counts), seed)], model.learned)
    if found is None:
        raise ValueError("no locus has an evidence")
    return found.reweighting


def _part_of(counts: CountsBatch, some: slice) -> CountsBatch:
    return CountsBatch(counts.meth[some], counts.total[some], counts.locus[some])


def _posteriors(
    model: EvidenceModel, counts: CountsBatch, proposals: Sequence[OuterProposal], seed: int
) -> list[_Part]:
    """Every hypothesis at the loci of a chunk."""
    scores_of_points, _ = _normal_points()
    parts = []
    for index, proposal in enumerate(proposals):
        columns = model.cohort.fields[index].design_column
        nodes = evaluated_nodes(model, index, proposal, *counts, NODES, seed, METHOD)
        effects = slice(1, 1 + len(columns))
        log_weight = np.where(np.isfinite(nodes.log_weight), nodes.log_weight, -np.inf)
        weight = softmax(np.where(_has_evidence(log_weight)[:, None], log_weight, 0.0), axis=1)
        posterior = NodePosterior(
            log_weight - math.log(log_weight.shape[1]),
            nodes.theta[:, 1:, 0],
            nodes.inner.effect_mean[:, 1:, effects],
            nodes.inner.effect_variance[:, 1:, effects],
            columns,
        )
        parts.append(_Part(posterior, baseline_points(weighted_nodes(nodes, weight), scores_of_points)))
    return parts


def _has_evidence(log_weight: Array) -> NDArray[np.bool_]:
    """Whether a locus has any outer node at which the inner integral was found, [L]."""
    return np.any(np.isfinite(log_weight), axis=1)


def _normal_points() -> tuple[Array, Array]:
    """Standard normal scores and weights [Q] of a quadrature."""
    scores_of_points, weight = np.polynomial.hermite_e.hermegauss(BASELINE_POINTS)
    return scores_of_points, weight / weight.sum()


def _joined(chunks: Sequence[Sequence[_Part]], at: LearnedPriors) -> Expectation | None:
    """All chunks, without the loci that lack an evidence under some hypothesis; None where no locus is left."""
    usable = np.concatenate(
        [np.all([_has_evidence(part.posterior.log_weight) for part in parts], axis=0) for parts in chunks]
    )
    if not usable.any():
        return None
    posteriors, baselines = [], []
    for parts in zip(*chunks, strict=True):
        of_chunks = [part.posterior for part in parts]
        posterior = NodePosterior(
            np.concatenate([one.log_weight for one in of_chunks])[usable],
            np.concatenate([one.log_spread for one in of_chunks])[usable],
            np.concatenate([one.effect_mean for one in of_chunks])[usable],
            np.concatenate([one.effect_variance for one in of_chunks])[usable],
            of_chunks[0].columns,
        )
        posteriors.append(posterior)
        baselines.append(np.concatenate([part.baseline for part in parts])[usable])
    reweighting = Reweighting(posteriors, at)
    return Expectation(reweighting, baselines, scores(reweighting, vector_of(at)))


def _with_mixture(found: Expectation, learned: LearnedPriors) -> tuple[LearnedPriors, float]:
    """With the mixture of the baselines that is most likely, and what it gains on that at hand, nats a locus.

    By expectation-maximization on the loci's posteriors, which are reweighted by the mixture so far over that at hand.
    """
    _, weight = _normal_points()
    # The posteriors under the hypotheses hardly differ: their quantiles are averaged.
    points = np.einsum("lh,hlq->lq", found.scores.probability, np.stack(found.baselines))
    before = _log_mixture(points, learned)
    for _ in range(MIXTURE_ROUNDS):
        likely = weight * np.exp(_log_mixture(points, learned) - before)
        likely /= likely.sum(1, keepdims=True)
        shares, means, sds = fit_mixture(points.ravel(), likely.ravel(), learned)
        shares = np.maximum(shares, SMALLEST_SHARE)
        learned = learned._replace(baseline_weights=shares / shares.sum(), baseline_means=means, baseline_sds=sds)
    gained = np.log(np.exp(_log_mixture(points, learned) - before) @ weight)
    return learned, float(gained.mean())


def _log_mixture(points: Array, learned: LearnedPriors) -> Array:
    """Log density of the mixture of the baselines, without a constant."""
    z = (points[..., None] - learned.baseline_means) / learned.baseline_sds
    return np.array(logsumexp(np.log(learned.baseline_weights / learned.baseline_sds) - 0.5 * z**2, axis=-1))


def _is_settled(found: Expectation, vector: Array, radius: float) -> bool:
    """Whether a step is small against what the loci say of each parameter, the weights' excepted."""
    shared = len(found.reweighting.at.effect_sds) + 2
    moved = np.abs(vector - vector_of(found.reweighting.at))[:shared]
    precision = np.sqrt((found.scores.derivative[:, :shared] ** 2).sum(0))
    return bool((moved * precision < SETTLED).all() and (moved < 0.99 * radius).all())


def _progress(step: int, log_evidence: float, learned: LearnedPriors) -> str:
    sds = ", ".join(f"{sd:.3f}" for sd in learned.effect_sds)
    return (
        f"shared values, step {step} of at most {MOST_STEPS - 1}: log evidence {log_evidence:.4f} nats per locus, "
        f"spread {math.exp(learned.spread_location):.3f}, SD of its log {learned.spread_scale:.3f}"
        + (f", SDs of effects {sds}" if sds else "")
    )


def _result(
    model: EvidenceModel,
    found: Expectation,
    vector: Array,
    learned: LearnedPriors,
    gained: float,
    course: tuple[float, int, bool],
) -> SharedFit:
    """gained: nats a locus by the mixture; course: the log evidence at the start, how many steps were taken, and
    whether the last was small."""
    effects, loci = len(learned.effect_sds), len(found.scores.log_likelihood)
    before, steps, converged = course
    blocks = min(BLOCKS, loci)
    errors = standard_errors(found.reweighting, vector, blocks)
    scale = np.concatenate([learned.effect_sds, [1.0, learned.spread_scale]])
    natural = errors[: effects + 2] * scale
    after = float(scores(found.reweighting, vector).log_likelihood.mean()) + gained
    return SharedFit(
        learned, natural[:effects], float(natural[effects]), float(natural[effects + 1]), loci, blocks, steps,
        converged, (before, after), tuple(_warnings(model, found.reweighting, vector, errors, loci, converged)),
    )  # fmt: skip


def _warnings(
    model: EvidenceModel, reweighting: Reweighting, vector: Array, errors: Array, loci: int, converged: bool
) -> Iterator[str]:
    """What the loci do not say."""
    names = [
        *(f"SD of the effect of {covariate.name}" for covariate in model.cohort.covariates),
        "typical spread between individuals",
        "SD of the log spread over loci",
    ]
    at_bound, sampled = is_at_bound(reweighting, vector), f"{loci:,} sampled loc{'i' if loci > 1 else 'us'}"
    for k, name in enumerate(names):
        value = math.exp(vector[k])
        if at_bound[k]:
            end, other = ("smallest", "0") if value < 1 else ("largest", "infinity")
            yield (
                f"{name}: ended at the {end} value that is looked for, {value:.3g}, with nothing in {sampled} to "
                f"distinguish it from {other}, and has no standard error"
            )
        elif errors[k] > HARDLY_KNOWN:
            yield (
                f"{name}: {value:.3g} with a standard error of {value * errors[k]:.2g} from {sampled}: "
                "its size is hardly known, and so are intervals that rest on it"
            )
    if not converged:
        yield f"what all loci share had not settled after {MOST_STEPS - 1} steps by the evidence of {sampled}"


def _nothing_learned(model: EvidenceModel) -> SharedFit:
    """The values as the bound has them."""
    effects = len(model.learned.effect_sds)
    warning = "no sampled locus has an evidence: what all loci share is what the variational bound has learned"
    nothing = (math.nan, math.nan)
    return SharedFit(model.learned, np.full(effects, math.nan), *nothing, 0, 0, 0, False, nothing, (warning,))
