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

EM_STEPS = 5
MOST_STEPS = 50
OPTIMALITY = 1e-7  # largest gain per locus, in nats, that a unit step of any weight could still bring
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
    """Mean log-likelihood at some weights and its derivatives, the latter by block of loci."""

    value: float
    gradient: Array  # [blocks, H]
    curvature: Array  # [blocks, H, H], negated second derivative
    n_loci: int


def posterior_probabilities(log_evidence: Array, weight: Array) -> Array:
    """Posterior probability of every hypothesis, [L, H]."""
    with np.errstate(divide="ignore"):
        joint = log_evidence + np.log(weight)
    probability = np.exp(joint - joint.max(1, keepdims=True))
    return probability / probability.sum(1, keepdims=True)


def estimate_weights(evidence: EvidencePass, n_loci: int, blocks: int, bootstrap: int, seed: int) -> Weights:
    """Maximum-likelihood weights with block-bootstrap intervals.

    Each bootstrap replicate redraws the blocks and takes one constrained Newton step from the estimate, with the
    derivatives that the last pass left by block, so that it costs no pass over the files.
    """
    blocks = min(blocks, n_loci)
    weight = _em_start(evidence, n_loci)
    expansion = _expand(evidence, weight, n_loci, blocks)
    for _ in range(MOST_STEPS):
        gradient, curvature = expansion.gradient.sum(0) / n_loci, expansion.curvature.sum(0) / n_loci
        if (gradient - 1.0).max() < OPTIMALITY and np.abs((gradient - 1.0) * weight).max() < OPTIMALITY:
            break
        target = _constrained_newton(weight, gradient, curvature)
        weight, expansion = _line_search(evidence, weight, target, expansion, n_loci, blocks)
    random = np.random.default_rng([seed, 3])
    replicates = np.empty((bootstrap, len(weight)))
    for r in range(bootstrap):
        count = random.multinomial(blocks, np.full(blocks, 1.0 / blocks)).astype(float)
        gradient = np.einsum("b,bh->h", count, expansion.gradient)
        curvature = np.einsum("b,bhk->hk", count, expansion.curvature)
        size = gradient @ weight  # a block's gradient times the weights is its number of loci
        replicates[r] = _constrained_newton(weight, gradient / size, curvature / size)
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


def _expand(evidence: EvidencePass, weight: Array, n_loci: int, blocks: int) -> _Expansion:
    h = len(weight)
    value, seen = 0.0, 0
    gradient, curvature = np.zeros((blocks, h)), np.zeros((blocks, h, h))
    for log_evidence in evidence():
        top = log_evidence.max(1, keepdims=True)
        likelihood = np.exp(log_evidence - top)
        mixture = likelihood @ weight
        value += float((np.log(mixture) + top[:, 0]).sum())
        ratio = likelihood / mixture[:, None]
        block = (seen + np.arange(len(ratio))) * blocks // n_loci
        seen += len(ratio)
        starts = np.flatnonzero(np.diff(block, prepend=-1))
        gradient[block[starts]] += np.add.reduceat(ratio, starts)
        for a in range(h):
            for b in range(h):
                curvature[block[starts], a, b] += np.add.reduceat(ratio[:, a] * ratio[:, b], starts)
    return _Expansion(value / n_loci, gradient, curvature, seen)


def _constrained_newton(weight: Array, gradient: Array, curvature: Array) -> Array:
    """Maximum over weights >= 0 of the quadratic expansion of mean log-likelihood - sum of weights, rescaled to sum 1.

    The term - sum(weights) makes the maximum of the unexpanded function sum to one by itself.
    """
    curvature = curvature + RIDGE * np.eye(len(weight)) * np.trace(curvature)
    factor = cholesky(curvature)
    target = solve_triangular(factor, curvature @ weight + gradient - 1.0, trans="T")
    solution, _ = nnls(factor, target)
    return solution / solution.sum()


def _line_search(
    evidence: EvidencePass, weight: Array, target: Array, start: _Expansion, n_loci: int, blocks: int
) -> tuple[Array, _Expansion]:
    """Move from `weight` to `target`, halving the step until the likelihood does not fall."""
    step = 1.0
    while True:
        trial = weight + step * (target - weight)
        expansion = _expand(evidence, trial, n_loci, blocks)
        if expansion.value >= start.value - 1e-13 * abs(start.value):
            return trial, expansion
        step *= 0.5


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


def local_fdr(probability: Array, is_null: NDArray[np.bool_]) -> Array:
    """Posterior probability that nothing is transmitted, [L]."""
    return np.minimum(probability[:, is_null].sum(1), 1.0)


def qvalues(lfdr: Array, table: QvalueTable) -> Array:
    """q-value of each locus from the step that its lfdr lies in."""
    step = np.searchsorted(table.lfdr, lfdr, side="left")
    return table.qvalue[np.minimum(step, len(table.qvalue) - 1)]
