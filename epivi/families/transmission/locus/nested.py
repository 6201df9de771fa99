"""Posteriors with the outer integral over nodes and a method for a fixed field inside: Laplace, EP and the reference.

At every node of theta and component k of the baseline's prior the field and the effects have a FieldProblem, of which a
method gives evidence, mean and covariance; the posterior is the mixture of these, weighted by

    exp(log_weight_j) pi_k p(D | theta_j, k).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from epivi.families.transmission.locus.problem import LocusPosterior, LocusProblem, MeasuredPosterior, field_problem_at
from epivi.field.dense.expectation_propagation import ep as field_ep
from epivi.field.dense.importance import exact_field
from epivi.field.dense.laplace import laplace as field_laplace
from epivi.field.dense.problem import Array, FieldPosterior, FieldProblem

FieldMethod = Callable[[FieldProblem], FieldPosterior]

# As in the compiled kernel: what lies this far below the best point of its locus is left out.
IRRELEVANT_NATS = 14.0
LARGEST_BATCH = 2**22  # matrix entries of the points evaluated at once
SAMPLED_POINTS = 8  # of a locus, drawn by their weights, at which the reference samples the field
DRAWS = 4000


class Points(NamedTuple):
    """Q points, sorted by locus, with their normalized weights and what a method says of effects and field there."""

    locus: NDArray[np.intp]  # [Q]
    node: NDArray[np.intp]  # [Q]
    component: NDArray[np.intp]  # [Q], of the baseline's prior
    log_evidence: Array  # [Q], nats, of the counts at this point
    weight: Array  # [Q], adds up to one over the points of a locus
    mean: Array  # [Q, M]
    covariance: Array  # [Q, M, M]
    converged: NDArray[np.bool_]  # [Q]


def nested_laplace(problem: LocusProblem) -> LocusPosterior:
    """Laplace with its second-order correction inside."""
    return _mixture(problem, evaluate_points(problem, field_laplace))


def nested_ep(problem: LocusProblem) -> LocusPosterior:
    """Expectation propagation inside."""
    return _mixture(problem, evaluate_points(problem, field_ep))


def reference(problem: LocusProblem) -> MeasuredPosterior:
    """High-precision integration: EP at all nodes, and importance sampling for what EP is off by.

    At SAMPLED_POINTS points of each locus, drawn systematically by their weights, the field is sampled; the mean
    differences from EP correct evidence, means and variances. EP being nearly right, they vary little between points.
    The errors are those of the sampling; what the nodes leave is not in them.
    """
    points = evaluate_points(problem, field_ep)
    base = _mixture(problem, points)
    loci, theta_size = len(base.mean), problem.nodes.theta.shape[2]
    chosen = _systematic(points, loci).ravel()
    picked = field_problem_at(problem, points.locus[chosen], points.node[chosen], points.component[chosen])
    exact = exact_field(picked, DRAWS, problem.seed)
    shape = (loci, SAMPLED_POINTS)
    ratio = (exact.log_evidence - points.log_evidence[chosen]).reshape(shape)
    at = points.mean[chosen]
    mean_step = (exact.mean - at).reshape(*shape, -1)
    # Around the point's EP mean: the variance, and the square of what the mean is off by.
    variance = np.diagonal(points.covariance[chosen], axis1=1, axis2=2)
    variance_step = (exact.sd**2 - variance).reshape(*shape, -1)
    shift = mean_step.mean(1)
    corrected = np.diagonal(base.covariance, axis1=1, axis2=2).copy()
    scatter, mean = np.arange(problem.effects + problem.latents), base.mean.copy()
    scatter[problem.effects :] += theta_size  # theta stands between effects and field
    mean[:, scatter] += shift
    between = 2.0 * _covariance_of_steps(points, base.mean[:, scatter], chosen, mean_step)
    corrected[:, scatter] += variance_step.mean(1) + between
    scale = np.sqrt(corrected / np.diagonal(base.covariance, axis1=1, axis2=2))
    covariance = base.covariance * scale[:, :, None] * scale[:, None, :]
    mean_se, sd_se = np.zeros_like(mean), np.zeros_like(mean)
    mean_se[:, scatter] = _error(mean_step, exact.mean_se.reshape(mean_step.shape))
    variance_error = _error(variance_step, (2.0 * exact.sd * exact.sd_se).reshape(variance_step.shape))
    sd_se[:, scatter] = 0.5 * variance_error / np.sqrt(corrected[:, scatter])
    return MeasuredPosterior(
        posterior=base._replace(
            mean=mean,
            covariance=covariance,
            log_evidence=base.log_evidence + logsumexp(ratio, axis=1) - np.log(SAMPLED_POINTS),
        ),
        log_evidence_se=_error(ratio, exact.log_evidence_se.reshape(shape)),
        mean_se=mean_se,
        sd_se=sd_se,
    )


def evaluate_points(problem: LocusProblem, method: FieldMethod) -> Points:
    """`method` at all points of every locus that Laplace's method finds within IRRELEVANT_NATS of the locus' best."""
    loci, nodes, _ = problem.nodes.theta.shape
    components = len(problem.priors.baseline_weights)
    every = [array.ravel() for array in np.indices((loci, nodes, components))]
    first = _run(problem, every, field_laplace)
    log_weight = _log_weight(problem, every, first.log_evidence).reshape(loci, -1)
    with np.errstate(invalid="ignore"):
        relevant = ~(log_weight < np.nanmax(log_weight, axis=1, keepdims=True) - IRRELEVANT_NATS).ravel()
    kept = [array[relevant] for array in every]
    found = _select(first, relevant) if method is field_laplace else _run(problem, kept, method)
    log_weight = _log_weight(problem, kept, found.log_evidence)
    log_weight = np.where(found.converged & np.isfinite(log_weight), log_weight, -np.inf)
    locus, node, component = kept
    return Points(
        locus,
        node,
        component,
        log_evidence=found.log_evidence,
        weight=np.exp(log_weight - _log_total(kept[0], log_weight, loci)[kept[0]]),
        mean=found.mean,
        covariance=found.covariance,
        converged=found.converged,
    )


def _run(problem: LocusProblem, at: list[NDArray[np.intp]], method: FieldMethod) -> FieldPosterior:
    """In batches, so that memory does not grow with the points."""
    size = problem.effects + problem.latents
    batch = max(1, LARGEST_BATCH // size**2)
    parts = []
    for start in range(0, len(at[0]), batch):
        parts.append(method(field_problem_at(problem, *(array[start : start + batch] for array in at))))
    mean, covariance, evidence, converged = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("mean", "covariance", "log_evidence", "converged")
    )
    return FieldPosterior(mean, covariance, evidence, parts[0].is_bound, converged)


def _select(found: FieldPosterior, at: NDArray[np.bool_]) -> FieldPosterior:
    mean, covariance, log_evidence, is_bound, converged = found
    return FieldPosterior(mean[at], covariance[at], log_evidence[at], is_bound, converged[at])


def _log_weight(problem: LocusProblem, at: list[NDArray[np.intp]], log_evidence: Array) -> Array:
    locus, node, component = at
    log_share = np.log(problem.priors.baseline_weights)
    return problem.nodes.log_weight[locus, node] + log_share[component] + log_evidence


def _log_total(locus: NDArray[np.intp], log_weight: Array, loci: int) -> Array:
    """Log of the sum of weights of every locus, [L]."""
    top = np.full(loci, -np.inf)
    np.maximum.at(top, locus, log_weight)
    total = np.zeros(loci)
    np.add.at(total, locus, np.exp(log_weight - top[locus]))
    return top + np.log(total)


def _mixture(problem: LocusProblem, points: Points) -> LocusPosterior:
    """Moments of x over the points; the evidence is the sum that normalized their weights."""
    loci, _, theta_size = problem.nodes.theta.shape
    effects = problem.effects
    theta = problem.nodes.theta[points.locus, points.node]
    at = np.concatenate([points.mean[:, :effects], theta, points.mean[:, effects:]], axis=1)
    size = at.shape[1]
    field = np.r_[0:effects, effects + theta_size : size]
    weight = points.weight[:, None]
    mean = np.zeros((loci, size))
    np.add.at(mean, points.locus, weight * at)
    offset = at - mean[points.locus]
    spread = offset[:, :, None] * offset[:, None, :]
    spread[:, field[:, None], field[None, :]] += points.covariance
    covariance = np.zeros((loci, size, size))
    starts = np.searchsorted(points.locus, np.arange(loci))
    covariance[:] = np.add.reduceat(weight[..., None] * spread, starts, axis=0)
    log_weight = _log_weight(problem, [points.locus, points.node, points.component], points.log_evidence)
    log_weight = np.where(points.converged & np.isfinite(log_weight), log_weight, -np.inf)
    log_evidence = _log_total(points.locus, log_weight, loci)
    failed = np.zeros(loci, dtype=bool)
    np.logical_or.at(failed, points.locus, ~points.converged)
    return LocusPosterior(mean, covariance, log_evidence, False, ~failed)


def _systematic(points: Points, loci: int) -> NDArray[np.intp]:
    """SAMPLED_POINTS points of every locus, each drawn as often as its weight asks for, [L, SAMPLED_POINTS]."""
    starts = np.searchsorted(points.locus, np.arange(loci + 1))
    level = (np.arange(SAMPLED_POINTS) + 0.5) / SAMPLED_POINTS
    chosen = np.empty((loci, SAMPLED_POINTS), dtype=np.intp)
    for locus in range(loci):  # some hundreds of loci
        cumulative = np.cumsum(points.weight[starts[locus] : starts[locus + 1]])
        chosen[locus] = starts[locus] + np.searchsorted(cumulative, level * cumulative[-1])
    return chosen


def _covariance_of_steps(points: Points, mean: Array, chosen: NDArray[np.intp], step: Array) -> Array:
    """Covariance between the points' means and what these are off by, [L, M]: it moves the mixture's variance."""
    offset = points.mean[chosen].reshape(step.shape) - mean[:, None]
    return ((offset - offset.mean(1, keepdims=True)) * (step - step.mean(1, keepdims=True))).mean(1)


def _error(value: Array, standard_error: Array) -> Array:
    """Standard error of the mean over points (axis 1): within them, and between them."""
    size = value.shape[1]
    return np.sqrt((standard_error**2).sum(1) / size**2 + value.var(1, ddof=1) / size)
