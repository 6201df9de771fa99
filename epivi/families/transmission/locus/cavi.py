"""Coordinate ascent with nothing fixed, every update in closed form: q(omega) q(effects, b) q(k) q(theta).

As epivi.field.dense.cavi at fixed variance components, with two more factors: q(theta) free on the nodes, and q(k) on
the components of the baseline's prior. Given these two, effects and field have the Gaussian prior whose precision is
the mean one; given q(effects, b) = N(m, V), with Q_j the prior precision of b at node j,

    q(theta_j) prop. to exp(log_weight_j + (log|Q_j / (2 pi)| - tr Q_j (V_bb + m_b m_b')) / 2)

and likewise q(k). Every update maximizes one and the same bound.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from epivi.families.transmission.locus.problem import (
    LocusPosterior,
    LocusProblem,
    NodePrior,
    field_problem_at,
    node_prior,
    theta_moments,
    with_theta,
)
from epivi.field.dense.cavi import GaussianFactor, field_bound, update_latents
from epivi.field.dense.problem import (
    Array,
    FieldProblem,
    factor,
    has_conversion_error,
    log_determinant,
    select_loci,
    transpose,
    whiten,
)

MAX_ITERATIONS = 5000
TOLERANCE = 1e-9  # nats that one iteration still gains


class LocusCoordinateAscent(NamedTuple):
    """The posterior, and the bound after every update; a locus that has converged repeats its last value."""

    posterior: LocusPosterior
    bound_trace: Array  # [T, L]


class _Discrete(NamedTuple):
    """Logs of q(theta) [L, J] and q(k) [L, K]."""

    node: Array
    component: Array


class _Moments(NamedTuple):
    """E h_j [L, J] and E g_k [L, K]: the log prior densities of b and of the baseline under q(effects, b)."""

    node: Array
    component: Array


def locus_cavi(problem: LocusProblem) -> LocusPosterior:
    """Coordinate ascent. Raises ValueError for a problem with conversion error."""
    return locus_coordinate_ascent(problem).posterior


def locus_coordinate_ascent(problem: LocusProblem) -> LocusCoordinateAscent:
    """Coordinate ascent, from q(theta) and q(k) as the priors are.

    Raises ValueError for a problem with conversion error.
    """
    loci = len(problem.meth)
    everywhere = np.arange(loci)
    whole = field_problem_at(problem, everywhere, 0 * everywhere, 0 * everywhere)
    if has_conversion_error(whole):
        raise ValueError(
            "cavi needs false_methylated and false_unmethylated to be 0: the augmentation is exact only there"
        )
    every = node_prior(problem)
    size = whole.prior_mean.shape[1]
    mean, covariance = np.empty((loci, size)), np.empty((loci, size, size))
    log_node = every.log_weight - logsumexp(every.log_weight, axis=1, keepdims=True)
    log_component = np.broadcast_to(every.component_log_weight, (loci, len(every.component_mean))).copy()
    bound, converged = np.full(loci, -np.inf), np.zeros(loci, dtype=bool)
    trace: list[Array] = []
    at, c = everywhere, np.zeros(whole.meth.shape)
    for _ in range(MAX_ITERATIONS):
        prior, discrete = _select(every, at), _Discrete(log_node[at], log_component[at])
        part, constant = _with_mean_prior(select_loci(whole, at), prior, discrete)
        q = update_latents(part, whiten(part), c[at], factorized=False)
        before = bound[at]
        bound[at] = field_bound(part, q, c[at]) + constant
        trace.append(bound.copy())
        c[at] = np.sqrt(q.level_mean**2 + q.level_variance)
        likelihood = field_bound(part, q, c[at]) + constant
        bound[at] = likelihood
        trace.append(bound.copy())
        moments = _log_priors(prior, q)
        likelihood -= _discrete_part(prior, discrete, moments)
        discrete = _update_discrete(prior, moments)
        log_node[at], log_component[at] = discrete
        bound[at] = likelihood + _discrete_part(prior, discrete, moments)
        trace.append(bound.copy())
        mean[at], covariance[at] = q.mean, q.covariance
        converged[at] = bound[at] - before < TOLERANCE
        at = at[~converged[at]]
        if not len(at):
            break
    posterior = _posterior(problem, mean, covariance, np.exp(log_node), bound, converged)
    return LocusCoordinateAscent(posterior, np.array(trace))


def _select(prior: NodePrior, at: NDArray[np.intp]) -> NodePrior:
    return prior._replace(
        precision=prior.precision[at], log_determinant=prior.log_determinant[at], log_weight=prior.log_weight[at]
    )


def _with_mean_prior(field: FieldProblem, prior: NodePrior, q: _Discrete) -> tuple[FieldProblem, Array]:
    """The field under the Gaussian prior of the mean precision; and what the whole bound has beyond that of this
    problem, [L]: the log-normalizers under q against this Gaussian's, and the divergences of q(theta) and q(k)."""
    node, component = np.exp(q.node), np.exp(q.component)
    effects = len(prior.effect_sd) + 1
    precision = component @ prior.component_sd**-2.0
    centre = component @ (prior.component_mean / prior.component_sd**2) / precision
    lower, inverse = factor(np.einsum("lj,ljab->lab", node, prior.precision))
    covariance, mean = np.zeros_like(field.prior_covariance), np.zeros_like(field.prior_mean)
    covariance[:, 0, 0], mean[:, 0] = 1.0 / precision, centre
    diagonal = np.arange(1, effects)
    covariance[:, diagonal, diagonal] = prior.effect_sd**2
    covariance[:, effects:, effects:] = transpose(inverse) @ inverse
    square = prior.component_mean**2 / prior.component_sd**2 + 2.0 * np.log(prior.component_sd)
    constant = -0.5 * (component @ square - precision * centre**2 + np.log(precision))
    constant -= 0.5 * ((node * prior.log_determinant).sum(1) - len(lower[0]) * np.log(2 * np.pi))
    constant -= 0.5 * log_determinant(lower)
    constant -= (node * (q.node - prior.log_weight)).sum(1) + (
        component * (q.component - prior.component_log_weight)
    ).sum(1)
    return field._replace(prior_mean=mean, prior_covariance=covariance), constant


def _log_priors(prior: NodePrior, q: GaussianFactor) -> _Moments:
    effects = len(prior.effect_sd) + 1
    second = q.covariance[:, effects:, effects:] + q.mean[:, effects:, None] * q.mean[:, None, effects:]
    node = -0.5 * (prior.log_determinant + np.einsum("ljab,lab->lj", prior.precision, second))
    square = (q.mean[:, :1] - prior.component_mean) ** 2 + q.covariance[:, 0, :1]
    component = -0.5 * (square / prior.component_sd**2 + np.log(2 * np.pi * prior.component_sd**2))
    return _Moments(node, component)


def _update_discrete(prior: NodePrior, moments: _Moments) -> _Discrete:
    node, component = prior.log_weight + moments.node, prior.component_log_weight + moments.component
    return _Discrete(
        node - logsumexp(node, axis=1, keepdims=True), component - logsumexp(component, axis=1, keepdims=True)
    )


def _discrete_part(prior: NodePrior, q: _Discrete, moments: _Moments) -> Array:
    """The terms of the bound that q(theta) and q(k) enter, [L]."""
    node = np.exp(q.node) * (prior.log_weight + moments.node - q.node)
    component = np.exp(q.component) * (prior.component_log_weight + moments.component - q.component)
    return node.sum(1) + component.sum(1)


def _posterior(
    problem: LocusProblem, mean: Array, covariance: Array, node: Array, bound: Array, converged: NDArray[np.bool_]
) -> LocusPosterior:
    """theta is independent of effects and field under q."""
    theta_mean, theta_covariance = theta_moments(problem, node)
    none = np.zeros((len(mean), mean.shape[1], theta_mean.shape[1]))
    moments = with_theta(problem, mean, covariance, theta_mean, none, theta_covariance)
    return LocusPosterior(*moments, bound, True, converged)
