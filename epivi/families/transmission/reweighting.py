"""The likelihood of what all loci share, around values at which the evidence was taken.

Monte Carlo maximum likelihood (Geyer and Thompson 1992). At values phi_0 the evidence of a locus has outer nodes with
weights and, at each, the moments of the effects of covariates. At other values phi

    p(D | h, phi) = sum_j p(D, node_j | h, phi_0)  N(log spread_j; phi) / N(log spread_j; phi_0)
                    prod_c E[N(effect_c; 0, sd_c^2) / N(effect_c; 0, sd_0c^2)],

where the expectation over an effect with a Gaussian posterior has a closed form. At phi_0 the gradient is that of the
log likelihood itself (Fisher's identity).

A vector of parameters holds the logs of the C effects' SDs, the location of the log spread, the log of its scale, and a
logit for each of the H hypotheses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax

from epivi.families.transmission.density import LearnedPriors

Array = NDArray[np.float64]

# What is looked for. Beyond, nothing could be seen: an effect of .02 logits is half a percent of methylation, and the
# log spread of a locus is known to .1 at best; its outer nodes lie .04 apart.
SD_BOUNDS = (0.02, 10.0)
SCALE_BOUNDS = (0.05, 3.0)
LOCATION_BOUNDS = (math.log(0.02), math.log(20.0))
LOGIT_BOUND = 12.0
START_WEIGHT = 0.01  # added to each hypothesis's weight, so that one at 0 can come back
SMALLEST_WEIGHT = 1e-3  # of a hypothesis that takes part in standard errors
DIFFERENCE = 1e-3  # of a parameter, for second derivatives
SMALLEST_INFORMATION = 1e-2  # in any direction: a flat likelihood then has a standard error of 10 or more, and no nan


class NodePosterior(NamedTuple):
    """Of one hypothesis at L loci, at the values phi_0: J outer nodes, its P effects of covariates."""

    log_weight: Array  # [L, J], log p(D, node); the sum over the nodes is the evidence
    log_spread: Array  # [L, J]
    effect_mean: Array  # [L, J, P], logit
    effect_variance: Array  # [L, J, P]
    columns: NDArray[np.int32]  # [P], which of the cohort's covariates the effects are of


class Reweighting(NamedTuple):
    """The posteriors of every hypothesis at the same loci, and the values that they were taken at."""

    posteriors: Sequence[NodePosterior]
    at: LearnedPriors


class Scores(NamedTuple):
    """Log likelihood [L] of single loci, its derivatives in the parameters [L, D], probabilities [L, H]."""

    log_likelihood: Array
    derivative: Array
    probability: Array


def vector_of(learned: LearnedPriors) -> Array:
    """The parameters [D], moved within the bounds."""
    logits = _logits(learned.hypothesis_weights)
    vector = np.concatenate(
        [np.log(learned.effect_sds), [learned.spread_location, math.log(learned.spread_scale)], logits]
    )
    return np.clip(vector, *bounds(len(learned.effect_sds), len(logits)))


def _logits(weights: Array) -> Array:
    with np.errstate(divide="ignore"):
        return np.maximum(np.log(weights / weights.max()), -LOGIT_BOUND)


def bounds(effects: int, hypotheses: int) -> tuple[Array, Array]:
    """Lowest and highest parameters, [D] each."""
    rows = [np.log(SD_BOUNDS)] * effects + [np.array(LOCATION_BOUNDS), np.log(SCALE_BOUNDS)]
    rows += [np.array([-LOGIT_BOUND, LOGIT_BOUND])] * hypotheses
    low, high = np.array(rows).T
    return low, high


def learned_at(vector: Array, learned: LearnedPriors) -> LearnedPriors:
    """The values of a vector, with the mixture of baselines as it was."""
    c = len(learned.effect_sds)
    return learned._replace(
        effect_sds=np.exp(vector[:c]),
        spread_location=float(vector[c]),
        spread_scale=float(np.exp(vector[c + 1])),
        hypothesis_weights=softmax(vector[c + 2 :]),
    )


def scores(reweighting: Reweighting, vector: Array) -> Scores:
    """Of every locus, at a vector of parameters."""
    effects = len(reweighting.at.effect_sds)
    found = [_under_hypothesis(posterior, reweighting.at, vector) for posterior in reweighting.posteriors]
    log_weights = vector[effects + 2 :] - logsumexp(vector[effects + 2 :])
    log_joint = np.stack([log_evidence for log_evidence, _ in found], axis=1) + log_weights
    log_likelihood = logsumexp(log_joint, axis=1)
    probability = np.exp(log_joint - log_likelihood[:, None])
    shared = sum(probability[:, h, None] * derivative for h, (_, derivative) in enumerate(found))
    return Scores(log_likelihood, np.concatenate([shared, probability - np.exp(log_weights)], axis=1), probability)


def _under_hypothesis(posterior: NodePosterior, at: LearnedPriors, vector: Array) -> tuple[Array, Array]:
    """Log evidence [L] of one hypothesis, and its derivatives [L, C + 2]."""
    effects = len(at.effect_sds)
    location, log_scale = vector[effects], vector[effects + 1]
    z = (posterior.log_spread - location) * np.exp(-log_scale)
    z_before = (posterior.log_spread - at.spread_location) / at.spread_scale
    log_weight = posterior.log_weight + 0.5 * (z_before**2 - z**2) - log_scale + math.log(at.spread_scale)
    slopes = np.zeros((*z.shape, effects + 2))
    for p, column in enumerate(posterior.columns.tolist()):
        sd, before = math.exp(vector[column]), float(at.effect_sds[column])
        change = sd**-2 - before**-2  # of the prior's precision
        # A posterior is no wider than its prior, but for the inner integral's error: then the ratio might not exist.
        variance = np.minimum(posterior.effect_variance[..., p], before**2)
        square, narrowed = posterior.effect_mean[..., p] ** 2, 1.0 + variance * change
        log_weight = log_weight - math.log(sd / before) - 0.5 * (np.log(narrowed) + square * change / narrowed)
        slopes[..., column] = (variance / narrowed + square / narrowed**2) / sd**2 - 1.0
    slopes[..., effects] = z * np.exp(-log_scale)
    slopes[..., effects + 1] = z**2 - 1.0
    top = log_weight.max(1, keepdims=True)
    weight = np.exp(log_weight - top)
    total = weight.sum(1, keepdims=True)
    return (top + np.log(total))[:, 0], ((weight / total)[:, None, :] @ slopes)[:, 0]


def maximum(reweighting: Reweighting, radius: float) -> Array:
    """The most likely parameters [D] with all but the weights' within `radius` of those at hand, and within bounds."""
    start = vector_of(reweighting.at)
    c, h = len(reweighting.at.effect_sds), len(reweighting.posteriors)
    low, high = bounds(c, h)
    start[c + 2 :] = _logits(reweighting.at.hypothesis_weights + START_WEIGHT)
    reach = np.where(np.arange(len(start)) < c + 2, radius, np.inf)

    def loss(vector: Array) -> tuple[float, Array]:
        found = scores(reweighting, vector)
        return -float(found.log_likelihood.mean()), -found.derivative.mean(0)

    limits = np.stack([np.maximum(low, start - reach), np.minimum(high, start + reach)], axis=1)
    options = {"maxiter": 200, "ftol": 1e-10, "gtol": 1e-6}
    return np.array(minimize(loss, start, jac=True, method="L-BFGS-B", bounds=limits, options=options).x)


def is_at_bound(reweighting: Reweighting, vector: Array) -> NDArray[np.bool_]:
    """Which parameters [D] ended at a bound of the search."""
    low, high = bounds(len(reweighting.at.effect_sds), len(reweighting.posteriors))
    return (vector <= low + DIFFERENCE) | (vector >= high - DIFFERENCE)


def standard_errors(reweighting: Reweighting, vector: Array, blocks: int) -> Array:
    """Standard errors [D] of the parameters at their maximum; nan for one at a bound, and for the weights' logits.

    The larger of two: by the observed information, and by the sandwich of it and of the scores' variance between
    `blocks` of consecutive loci, so that neighbours may resemble one another. The weights of the hypotheses take part,
    those at 0 excepted; the mixture of baselines, of which every locus says a lot, is taken as given.
    """
    shared = len(reweighting.at.effect_sds) + 2
    weights = softmax(vector[shared:])
    free = ~is_at_bound(reweighting, vector)
    free[shared:] &= (weights > SMALLEST_WEIGHT) & (np.arange(len(weights)) != weights.argmax())
    chosen = np.flatnonzero(free)
    errors = np.full(len(vector), np.nan)
    if not len(chosen):
        return errors
    information = np.empty((len(chosen), len(chosen)))
    for row, parameter in enumerate(chosen.tolist()):
        step = np.where(np.arange(len(vector)) == parameter, DIFFERENCE, 0.0)
        above, below = (scores(reweighting, vector + way * step).derivative.sum(0) for way in (1, -1))
        information[row] = (below - above)[chosen] / (2 * DIFFERENCE)
    derivative = scores(reweighting, vector).derivative[:, chosen]
    of_blocks = np.add.reduceat(derivative, np.arange(blocks) * len(derivative) // blocks)
    between = of_blocks.T @ of_blocks * blocks / max(blocks - 1, 1)
    values, axes = np.linalg.eigh((information + information.T) / 2)
    inverse = (axes / np.maximum(values, SMALLEST_INFORMATION)) @ axes.T
    errors[chosen] = np.sqrt(np.maximum(np.diagonal(inverse @ between @ inverse), np.diagonal(inverse)))
    errors[shared:] = np.nan
    return errors
