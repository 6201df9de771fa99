"""Weights of the hypotheses over all loci, with a posterior.

The posterior of the weights pi, given log evidences of all loci and a Dirichlet prior, is drawn by the weighted
likelihood bootstrap (Newton and Raftery 1994) with a weighted prior: every draw maximizes

    sum_b c_b sum_(l in b) log sum_h pi_h exp(t_h) p(D_l | h)  +  sum_h a_h log pi_h

with weights c of the blocks of consecutive loci, Dirichlet(1, ..., 1) times their number, and a_h ~ Gamma(alpha_h, 1).
That is exact where loci show their hypothesis (Dirichlet), where they show nothing (the prior), and where a hypothesis
is only ruled out (a gamma distribution at the corner); inside the simplex it is the Gaussian with the sandwich
covariance of blocks, so that neighbours may resemble one another.

The tilt t is common to all loci and is not learned: what all loci share cannot be replicated by loci, and evidences are
only right to so many nats.

The maximum is found by sequential quadratic programming (Kim, Carbonetto, Stephens and Anitescu 2020), all draws in the
same passes over the evidence, so that memory does not grow with the genome.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from epivi.discovery.probabilities import EvidencePass, mixture_probabilities

Array = NDArray[np.float64]

EM_STEPS = 5
MOST_STEPS = 60
# Gain of the next step, in nats over all loci, below which a maximum is reached; a draw's is far below the
# posterior's own width of half a nat.
TOLERANCE_NATS = 1e-9
DRAW_TOLERANCE_NATS = 1e-3
CHUNK_LOCI = 4096  # taken at once: six megabytes for 200 draws
RIDGE = 1e-10
SMALLEST_BARRIER = 1e-15  # of a weight without prior, relative to the loci
INTERIOR_STEPS = 60
INTERIOR_TOLERANCE = 1e-10


class WeightPrior(NamedTuple):
    """What is known before any locus: alpha [H] of a Dirichlet distribution, and the SD in nats of the common tilt."""

    alpha: Array
    tilt_nats: float


class Weights(NamedTuple):
    """Weights of H hypotheses: mean and 95 % interval of R posterior draws.

    A locus's probabilities rest on `tilted` and not on `draws`: these are what its log evidences are combined with.
    """

    weight: Array  # [H]
    lower: Array  # [H]
    upper: Array  # [H]
    n_loci: int
    draws: Array  # [R, H]
    tilted: Array  # [R, H], each draw times exp(tilt), normalized


class _Problems(NamedTuple):
    """R maxima to be found: counts [R, blocks] of the blocks, prior terms [R, H], tilts [R, H] as factors."""

    counts: Array
    prior: Array
    tilt: Array

    def of(self, which: NDArray[np.int64]) -> _Problems:
        return _Problems(self.counts[which], self.prior[which], self.tilt[which])


class _Expansion(NamedTuple):
    """Objective of R problems, each at weights of its own, and the derivatives of its part from the data.

    Divided by the sum of all counts and prior terms, so that the weights at the maximum of value - sum(weights) sum to
    one by themselves.
    """

    value: Array  # [R]
    gradient: Array  # [R, H], of the data
    curvature: Array  # [R, H, H], negated second derivative, of the data
    prior: Array  # [R, H], terms of the logarithms of the weights
    total: Array  # [R], what all was divided by


def weight_prior(settings: Mapping[str, Any], is_null: NDArray[np.bool_]) -> WeightPrior:
    """The prior of H hypotheses from the section `compare` of the configuration.

    # METHOD: the prior counts loci, as if `untransmitted` of each null hypothesis and `transmitted` of each other one
    # had been seen. It leans to the null hypotheses, and matters where loci say next to nothing. The tilt allows for
    # what evidences are off by at all loci alike, several times: mean log Bayes factors are within .0007 nats of a gold
    # standard at 100 loci in 12 individuals (tests/slow/accuracy_cases.py, `common_error`), and single ones within .02.
    """
    counts = settings["prior"]
    alpha = np.where(is_null, counts["untransmitted"], counts["transmitted"]).astype(float)
    return WeightPrior(alpha, float(settings["tilt_nats"]))


def weight_posterior(
    evidence: EvidencePass, n_loci: int, prior: WeightPrior, blocks: int, draws: int, seed: int
) -> Weights:
    """Posterior of the weights: see the module's formula.

    blocks: of consecutive loci that count together; draws: how many.
    """
    blocks = min(blocks, n_loci)
    hypotheses = len(prior.alpha)
    random = np.random.default_rng([seed, 3])
    # A gamma variable below 1e-300 is as good as that.
    terms = np.maximum(random.gamma(prior.alpha, size=(draws, hypotheses)), 1e-300)
    tilt = np.exp(prior.tilt_nats * random.standard_normal((draws, hypotheses)))
    counts = blocks * random.dirichlet(np.ones(blocks), size=draws)
    start = np.tile(_em_start(evidence, n_loci, hypotheses), (draws, 1))
    found = _maximize(evidence, start, _Problems(counts, terms, tilt), n_loci, DRAW_TOLERANCE_NATS)
    return summarized(found, found * tilt, n_loci)


def summarized(draws: Array, tilted: Array, n_loci: int) -> Weights:
    """Mean and interval of draws [R, H] of the weights."""
    lower, upper = np.quantile(draws, [0.025, 0.975], axis=0)
    return Weights(draws.mean(0), lower, upper, n_loci, draws, tilted / tilted.sum(1, keepdims=True))


def prior_weights(prior: WeightPrior, draws: int, seed: int, n_loci: int) -> Weights:
    """The weights where no locus may say anything about them: draws of the prior."""
    drawn = np.maximum(np.random.default_rng([seed, 3]).dirichlet(prior.alpha, size=draws), 1e-300)
    return summarized(drawn, drawn, n_loci)


def maximum_likelihood(evidence: EvidencePass, n_loci: int, hypotheses: int) -> tuple[Array, float]:
    """Weights [H] that maximize the likelihood without any prior, and its logarithm, nats over all loci."""
    start = _em_start(evidence, n_loci, hypotheses)[None]
    problem = _Problems(np.ones((1, 1)), np.zeros((1, hypotheses)), np.ones((1, hypotheses)))
    weight = _maximize(evidence, start, problem, n_loci, TOLERANCE_NATS)
    weight = weight / weight.sum()
    expansion = _expand(evidence, weight, problem, n_loci)
    return weight[0], float(expansion.value[0] * expansion.total[0])


def most_probable_weights(evidence: EvidencePass, n_loci: int, prior: WeightPrior) -> Array:
    """The weights [H] that draws of the posterior are scattered around, without a tilt."""
    start = _em_start(evidence, n_loci, len(prior.alpha))[None]
    problem = _Problems(np.ones((1, 1)), prior.alpha[None], np.ones((1, len(prior.alpha))))
    return _maximize(evidence, start, problem, n_loci, TOLERANCE_NATS)[0]


def _em_start(evidence: EvidencePass, n_loci: int, hypotheses: int) -> Array:
    weight = np.full(hypotheses, 1.0 / hypotheses)
    for _ in range(EM_STEPS):
        total = np.zeros(hypotheses)
        for log_evidence in evidence():
            total += mixture_probabilities(log_evidence, weight[None]).sum(0)
        weight = total / n_loci
    return weight


def _maximize(evidence: EvidencePass, weight: Array, problems: _Problems, n_loci: int, tolerance_nats: float) -> Array:
    """Weights [R, H] that maximize R problems.

    Every pass evaluates a trial point of each problem that is not yet at its maximum: a point at which the objective
    fell is halved towards the last, from any other the maximum of the next quadratic expansion is tried.
    """
    weight, trial = weight.copy(), weight.copy()
    value = np.full(len(weight), -np.inf)
    active = np.arange(len(weight))
    for _ in range(MOST_STEPS):
        expansion = _expand(evidence, trial[active], problems.of(active), n_loci)
        fell = expansion.value < value[active] - 1e-13 * np.abs(value[active])
        trial[active[fell]] = 0.5 * (weight[active[fell]] + trial[active[fell]])
        rose = active[~fell]
        weight[rose], value[rose] = trial[rose], expansion.value[~fell]
        risen = _Expansion(*(part[~fell] for part in expansion))
        trial[rose] = _expansion_maximum(weight[rose], risen)
        slope = risen.gradient - 1.0 + risen.prior / np.maximum(weight[rose], 1e-300)
        gain = risen.total * (slope * (trial[rose] - weight[rose])).sum(1)
        active = np.sort(np.concatenate([active[fell], rose[gain >= tolerance_nats]]))
        if not len(active):
            break
    return weight


def _expand(evidence: EvidencePass, weight: Array, problems: _Problems, n_loci: int) -> _Expansion:
    r, h = weight.shape
    blocks = problems.counts.shape[1]
    value, gradient, curvature = np.zeros(r), np.zeros((r, h)), np.zeros((r, h * h))
    total = problems.prior.sum(1)
    seen = 0
    tilted = weight * problems.tilt
    for log_evidence in evidence():
        for first in range(0, len(log_evidence), CHUNK_LOCI):
            chunk = log_evidence[first : first + CHUNK_LOCI]
            top = chunk.max(1, keepdims=True)
            likelihood = np.exp(chunk - top)
            count = problems.counts[:, (seen + np.arange(len(chunk))) * blocks // n_loci]  # [R, chunk]
            seen += len(chunk)
            mixture = tilted @ likelihood.T
            value += (count * (np.log(mixture) + top[:, 0])).sum(1)
            share = count / mixture
            gradient += share @ likelihood
            products = (likelihood[:, :, None] * likelihood[:, None, :]).reshape(-1, h * h)
            curvature += (share / mixture) @ products
            total = total + count.sum(1)
    with np.errstate(divide="ignore"):
        value += np.where(problems.prior > 0, problems.prior * np.log(weight), 0.0).sum(1)
    both = problems.tilt[:, :, None] * problems.tilt[:, None, :]
    return _Expansion(
        value / total,
        problems.tilt * gradient / total[:, None],
        both * curvature.reshape(-1, h, h) / total[:, None, None],
        problems.prior / total[:, None],
        total,
    )


def _expansion_maximum(weight: Array, expansion: _Expansion) -> Array:
    """Maxima [R, H] of the quadratic expansion of the data's part, the prior's logarithms and - sum(weights)."""
    h = weight.shape[1]
    trace = np.trace(expansion.curvature, axis1=1, axis2=2)
    curvature = expansion.curvature + RIDGE * trace[:, None, None] * np.eye(h)
    linear = expansion.gradient - 1.0 + (curvature @ weight[:, :, None])[:, :, 0]
    solution = _barrier_maximum(linear, curvature, np.maximum(expansion.prior, SMALLEST_BARRIER))
    return solution / solution.sum(1, keepdims=True)


def _barrier_maximum(linear: Array, curvature: Array, barrier: Array) -> Array:
    """x > 0 that maximizes linear.x - x'curvature x / 2 + sum barrier log x, [R, H].

    A primal-dual interior point method: the multipliers s = barrier / x are unknowns of their own, which small barriers
    do not slow down.
    """
    r, h = linear.shape
    x, s = np.full((r, h), 1.0 / h), np.maximum(barrier * h, 1.0)
    for _ in range(INTERIOR_STEPS):
        target = np.maximum(barrier, 0.1 * (x * s).mean(1, keepdims=True))
        dual = (curvature @ x[:, :, None])[:, :, 0] - linear - s
        if (
            np.abs(dual).max(initial=0.0) < INTERIOR_TOLERANCE
            and (np.abs(x * s - barrier) <= 1e-6 * barrier + 1e-14).all()
        ):
            break
        # Near the end the barrier itself is the target.
        target = np.where(target < 10 * barrier, barrier, target)
        gap = x * s - target
        system = curvature + (s / x)[:, :, None] * np.eye(h)
        dx = np.linalg.solve(system, (-dual - gap / x)[:, :, None])[:, :, 0]
        ds = (-gap - s * dx) / x
        step = np.minimum(1.0, 0.95 / np.maximum(np.maximum(-dx / x, -ds / s).max(1), 1e-12))[:, None]
        x, s = x + step * dx, s + step * ds
    return x
