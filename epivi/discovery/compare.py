"""From evidences to discoveries: weights of the hypotheses over all loci, local false discovery rates and q-values.

The weights pi maximize sum_l log sum_h pi_h p(D_l | h), which is concave: a few EM steps, then sequential quadratic
programming on the simplex (Kim, Carbonetto, Stephens and Anitescu 2020). Every quantity is a sum over loci, gathered in
passes over the evidence files, so that memory does not grow with the genome.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import nnls
from scipy.special import expit

Array = NDArray[np.float64]
# Yields log evidences [n, H] of consecutive loci, in genome order, anew at every call.
EvidencePass = Callable[[], Iterable[Array]]

LOW_COVERAGE = 5.0  # reads per covered sample, below which a posterior is flagged
EM_STEPS = 5
MOST_STEPS = 50
OPTIMALITY = 1e-7  # largest gain per locus, in nats, that a unit step of any weight could still bring
REPLICATE_OPTIMALITY = 1e-4  # the same for bootstrap replicates, which differ from one another by far more
CHUNK_LOCI = 4096  # taken at once: six megabytes for 200 replicates
RIDGE = 1e-10
LFDR_EDGES = np.concatenate([[0.0], expit(np.linspace(-20.0, 20.0, 4001)), [1.0]])  # 1 % apart in odds


class Weights(NamedTuple):
    """Weights of H hypotheses with 95 % intervals from a bootstrap over blocks of consecutive loci."""

    weight: Array  # [H]
    lower: Array  # [H]
    upper: Array  # [H]
    n_loci: int


class QvalueTable(NamedTuple):
    """Steps of lfdr: `qvalue` is the mean lfdr of all loci whose lfdr is at most `lfdr`."""

    lfdr: Array  # [T], upper ends of the steps that hold loci
    qvalue: Array  # [T]
    n_loci: NDArray[np.int64]  # [T], cumulative


class _Expansion(NamedTuple):
    """Log-likelihood per locus of R problems, each at weights of its own, and its derivatives."""

    value: Array  # [R]
    gradient: Array  # [R, H]
    curvature: Array  # [R, H, H], negated second derivative


def posterior_probabilities(log_evidence: Array, weight: Array) -> Array:
    """Posterior probability of every hypothesis, [L, H]."""
    with np.errstate(divide="ignore"):
        joint = log_evidence + np.log(weight)
    probability = np.exp(joint - joint.max(1, keepdims=True))
    return probability / probability.sum(1, keepdims=True)


def estimate_weights(evidence: EvidencePass, n_loci: int, blocks: int, bootstrap: int, seed: int) -> Weights:
    """Maximum-likelihood weights with block-bootstrap intervals.

    Each bootstrap replicate redraws the blocks and is maximized anew, from the estimate; all share the passes.
    """
    blocks = min(blocks, n_loci)
    start = _em_start(evidence, n_loci)
    weight = _maximize(evidence, start[None], np.ones((1, blocks)), n_loci, OPTIMALITY)[0]
    random = np.random.default_rng([seed, 3])
    counts = random.multinomial(blocks, np.full(blocks, 1.0 / blocks), size=bootstrap).astype(float)
    replicates = _maximize(evidence, np.tile(weight, (bootstrap, 1)), counts, n_loci, REPLICATE_OPTIMALITY)
    lower, upper = np.quantile(replicates, [0.025, 0.975], axis=0)
    return Weights(weight, np.minimum(lower, weight), np.maximum(upper, weight), n_loci)


def _em_start(evidence: EvidencePass, n_loci: int) -> Array:
    hypotheses = next(iter(evidence())).shape[1]
    weight = np.full(hypotheses, 1.0 / hypotheses)
    for _ in range(EM_STEPS):
        total = np.zeros(hypotheses)
        for log_evidence in evidence():
            total += posterior_probabilities(log_evidence, weight).sum(0)
        weight = total / n_loci
    return weight


def _maximize(evidence: EvidencePass, weight: Array, counts: Array, n_loci: int, tolerance: float) -> Array:
    """Weights [R, H] that maximize R problems, in which block b of the loci counts counts[r, b] times.

    Every pass evaluates a trial point of each problem that is not yet at its maximum: a point at which the likelihood
    fell is halved towards the last, from any other the next Newton step is tried.
    """
    weight, trial = weight.copy(), weight.copy()
    value = np.full(len(weight), -np.inf)
    active = np.arange(len(weight))
    for _ in range(MOST_STEPS):
        expansion = _expand(evidence, trial[active], counts[active], n_loci)
        unfinished = []
        for i, r in enumerate(active):
            if expansion.value[i] < value[r] - 1e-13 * abs(value[r]):
                trial[r] = 0.5 * (weight[r] + trial[r])
                unfinished.append(r)
                continue
            weight[r], value[r] = trial[r], expansion.value[i]
            slope = expansion.gradient[i] - 1.0
            if max(slope.max(), np.abs(slope * weight[r]).max()) >= tolerance:
                trial[r] = _constrained_newton(weight[r], expansion.gradient[i], expansion.curvature[i])
                unfinished.append(r)
        active = np.array(unfinished, dtype=int)
        if not len(active):
            break
    return weight


def _expand(evidence: EvidencePass, weight: Array, counts: Array, n_loci: int) -> _Expansion:
    problems, h = weight.shape
    blocks = counts.shape[1]
    value, gradient, curvature = np.zeros(problems), np.zeros((problems, h)), np.zeros((problems, h * h))
    total = np.zeros(problems)
    seen = 0
    for log_evidence in evidence():
        for first in range(0, len(log_evidence), CHUNK_LOCI):
            chunk = log_evidence[first : first + CHUNK_LOCI]
            top = chunk.max(1, keepdims=True)
            likelihood = np.exp(chunk - top)
            count = counts[:, (seen + np.arange(len(chunk))) * blocks // n_loci]  # [R, chunk]
            seen += len(chunk)
            mixture = weight @ likelihood.T
            value += (count * (np.log(mixture) + top[:, 0])).sum(1)
            share = count / mixture
            gradient += share @ likelihood
            products = (likelihood[:, :, None] * likelihood[:, None, :]).reshape(-1, h * h)
            curvature += (share / mixture) @ products
            total += count.sum(1)
    return _Expansion(value / total, gradient / total[:, None], curvature.reshape(-1, h, h) / total[:, None, None])


def _constrained_newton(weight: Array, gradient: Array, curvature: Array) -> Array:
    """Maximum over weights >= 0 of the quadratic expansion of mean log-likelihood - sum of weights, rescaled to sum 1.

    The term - sum(weights) makes the maximum of the unexpanded function sum to one by itself.
    """
    curvature = curvature + RIDGE * np.eye(len(weight)) * np.trace(curvature)
    factor = cholesky(curvature)
    target = solve_triangular(factor, curvature @ weight + gradient - 1.0, trans="T")
    solution, _ = nnls(factor, target)
    return solution / solution.sum()


def qvalue_table(evidence: EvidencePass, weight: Array, is_null: NDArray[np.bool_]) -> QvalueTable:
    """Bayesian false discovery rate of calling all loci up to a given lfdr, in steps of 1 % in odds."""
    count = np.zeros(len(LFDR_EDGES) - 1, dtype=np.int64)
    total = np.zeros(len(count))
    for log_evidence in evidence():
        lfdr = local_fdr(posterior_probabilities(log_evidence, weight), is_null)
        step = np.clip(np.searchsorted(LFDR_EDGES, lfdr, side="left") - 1, 0, len(count) - 1)
        count += np.bincount(step, minlength=len(count))
        total += np.bincount(step, weights=lfdr, minlength=len(count))
    occupied = count > 0
    cumulative = np.cumsum(count)[occupied]
    return QvalueTable(LFDR_EDGES[1:][occupied], np.cumsum(total)[occupied] / cumulative, cumulative)


def unlearned_weights(n_hypotheses: int, n_loci: int) -> Weights:
    """The same weight for every hypothesis, of which nothing is known: intervals from 0 to 1."""
    return Weights(np.full(n_hypotheses, 1 / n_hypotheses), np.zeros(n_hypotheses), np.ones(n_hypotheses), n_loci)


def nothing_called(table: QvalueTable) -> QvalueTable:
    """The same steps with q-values of 1."""
    return table._replace(qvalue=np.ones_like(table.qvalue))


def local_fdr(probability: Array, is_null: NDArray[np.bool_]) -> Array:
    """Posterior probability that nothing is transmitted, [L]."""
    return np.minimum(probability[:, is_null].sum(1), 1.0)


def qvalues(lfdr: Array, table: QvalueTable) -> Array:
    """q-value of each locus from the step that its lfdr lies in."""
    step = np.searchsorted(table.lfdr, lfdr, side="left")
    return table.qvalue[np.minimum(step, len(table.qvalue) - 1)]
