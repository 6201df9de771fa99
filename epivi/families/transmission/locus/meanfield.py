"""Mean-field variational inference with nothing fixed, and the linear response of its optimum.

    q(x) = q(theta) q(k) prod_i N(u_i; m_i, v_i),       u = (effects, b)

q(theta) is free on the nodes and q(k), of the baseline's component, free on the components, so that both have their
optimum in closed form. With them put in, what is maximized over means and variances is

    B(m, v) = E log p(D | u) + sum_i log(2 pi e v_i) / 2 + log sum_j exp(log_weight_j + h_j) + log sum_k pi_k exp(g_k)
    h_j = E log N(b; 0, S_j) = -(log|2 pi S_j| + m' Q_j m + v' diag Q_j) / 2,    Q_j = S_j^-1
    g_k = E log N(baseline; mean_k, sd_k^2)

where the derivatives of a log-sum-exp are the mean of those of its terms, and to the second order their covariance.

Linear response (Giordano, Broderick and Jordan 2018): a tilt exp(t' f(x)) of the posterior moves the optimum, and
d E_q f / d t estimates the covariance of f. With H the negated Hessian of B and C the covariance under q(theta) of
theta with the gradient of h,

    Cov(u) = [H^-1]_mm,     Cov(u, theta) = [H^-1 C]_m,     Cov(theta) = Cov_q(theta) + C' H^-1 C.
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
from epivi.field.dense.gaussian_vi import feasible_length, search
from epivi.field.dense.gaussian_vi import meanfield as field_meanfield
from epivi.field.dense.problem import (
    Array,
    FieldProblem,
    apply,
    apply_transposed,
    expected_curvature,
    expected_observation,
    factor,
    is_definite,
    log_binomials,
    log_observation,
    multiply,
    transpose,
)

MAX_ITERATIONS = 300
QUADRATIC_DECREMENT = 1e-9  # nats; the whole Newton step from here is the last one: it squares the distance


class _Bound(NamedTuple):
    """The negated bound at (m, v), its gradient in both, and its Hessian without and with what log-sum-exp adds."""

    value: Array  # [L]
    gradient: Array  # [L, 2 M]
    hessian: Array  # [L, 2 M, 2 M], with q(theta) and q(k) held: an upper bound of the curvature of B
    profile: Array  # [L, 2 M, 2 M], H
    share: Array  # [L, J], q(theta)
    node_gradient: Array  # [L, J, 2 N], of h_j in the means and the variances of b


class _Optimum(NamedTuple):
    mean: Array  # [L, M]
    sd: Array  # [L, M]
    bound: _Bound
    converged: NDArray[np.bool_]


def locus_meanfield(problem: LocusProblem) -> LocusPosterior:
    """The best factorized posterior: no covariance but that of theta's coordinates among each other."""
    optimum = _maximize(problem)
    theta_mean, theta_covariance = theta_moments(problem, optimum.bound.share)
    size = len(optimum.mean[0])
    covariance = (optimum.sd**2)[..., None] * np.eye(size)
    none = np.zeros((len(optimum.mean), size, theta_mean.shape[1]))
    moments = with_theta(problem, optimum.mean, covariance, theta_mean, none, theta_covariance)
    return LocusPosterior(*moments, -optimum.bound.value, True, optimum.converged)


def locus_lrvb(problem: LocusProblem) -> LocusPosterior:
    """Mean-field means with linear-response covariances; nan where there is no mean-field optimum to respond."""
    optimum = _maximize(problem)
    bound, size = optimum.bound, optimum.mean.shape[1]
    theta_mean, theta_covariance = theta_moments(problem, bound.share)
    offset = problem.nodes.theta - theta_mean[:, None]
    coupling = np.zeros((len(optimum.mean), 2 * size, theta_mean.shape[1]))
    rows = _field_rows(problem, size)
    coupling[:, rows] = np.einsum("lj,lja,ljd->lad", bound.share, bound.node_gradient, offset)
    _, inverse = factor(bound.profile)
    half = inverse @ coupling
    response = transpose(inverse) @ inverse
    trusted = optimum.converged & is_definite(inverse)
    nan = np.where(trusted, 0.0, np.nan)[:, None, None]
    moments = with_theta(
        problem,
        optimum.mean,
        response[:, :size, :size] + nan,
        theta_mean,
        (transpose(inverse) @ half)[:, :size] + nan,
        theta_covariance + transpose(half) @ half + nan,
    )
    return LocusPosterior(*moments, np.full(len(optimum.mean), np.nan), False, trusted)


def _field_rows(problem: LocusProblem, size: int) -> NDArray[np.intp]:
    """Where the means and the variances of b stand in (m, v)."""
    return np.r_[problem.effects : size, size + problem.effects : 2 * size]


def draw_meanfield(problem: LocusProblem, draws: int) -> tuple[Array, Array]:
    """Log weights log p(D, x) - log q(x) and log-likelihoods of draws of the best factorized posterior, [K, L] each."""
    optimum, prior = _maximize(problem), node_prior(problem)
    field, effects = _start_problem(problem), problem.effects
    rng = np.random.default_rng([problem.seed, 3])
    loci = np.arange(len(optimum.mean))
    log_share = np.log(np.maximum(optimum.bound.share, np.finfo(float).tiny))
    cumulative = np.cumsum(optimum.bound.share, axis=1)
    log_weight, log_likelihood = np.empty((draws, len(loci))), np.empty((draws, len(loci)))
    for k in range(draws):  # each vectorized over loci; all at once would hold a prior precision for every draw
        z = rng.standard_normal(optimum.mean.shape)
        u = optimum.mean + optimum.sd * z
        node = (cumulative < rng.random((len(loci), 1)) * cumulative[:, -1:]).sum(1)
        b = u[:, effects:]
        quadratic = np.einsum("la,lab,lb->l", b, prior.precision[loci, node], b)
        log_prior = prior.log_weight[loci, node] - 0.5 * (prior.log_determinant[loci, node] + quadratic)
        log_prior += logsumexp(
            prior.component_log_weight + _log_normal(u[:, :1], prior.component_mean, prior.component_sd), axis=1
        )
        log_prior += _log_normal(u[:, 1:effects], 0.0, prior.effect_sd).sum(1)
        log_q = log_share[loci, node] + _log_normal(u, optimum.mean, optimum.sd).sum(1)
        log_likelihood[k] = log_observation(field, apply(field.loading, u)).sum(-1) + log_binomials(field)
        log_weight[k] = log_likelihood[k] + log_prior - log_q
    return log_weight, log_likelihood


def _log_normal(x: Array, mean: Array | float, sd: Array) -> Array:
    return -0.5 * (((x - mean) / sd) ** 2 + np.log(2 * np.pi * sd**2))


# --- the maximum -----------------------------------------------------------------------------------------------------


def _maximize(problem: LocusProblem) -> _Optimum:
    """Newton's method in (m, s), s the standard deviations, from mean-field at the locus' best node."""
    prior = node_prior(problem)
    field = _start_problem(problem)
    start = field_meanfield(field)
    mean, sd = start.mean, np.sqrt(np.diagonal(start.covariance, axis1=1, axis2=2))
    done = np.zeros(len(mean), dtype=bool)

    def evaluate(mean: Array, sd: Array) -> _Bound:
        return _negated_bound(problem, field, prior, mean, sd**2)

    at = evaluate(mean, sd)
    for _ in range(MAX_ITERATIONS):
        step, decrement, is_newton = _step(field, problem, mean, sd, at)
        last = ~done & is_newton & (decrement < QUADRATIC_DECREMENT)
        length = feasible_length(sd, step)
        length[done] = 0.0
        searching = ~(last | done)
        mean, sd, at = search(evaluate, mean, sd, at, step, length, decrement, searching)
        done |= last
        if done.all():
            break
    return _Optimum(mean, sd, at, done)


def _start_problem(problem: LocusProblem) -> FieldProblem:
    """The field at the node, and with the baseline's component, that fit the pooled reads of the locus best."""
    pooled = np.log((problem.meth.sum(1) + 0.5) / ((problem.total - problem.meth).sum(1) + 0.5))
    priors = problem.priors
    score = (pooled[:, None] - priors.baseline_means) / priors.baseline_sds
    component = np.argmax(np.log(priors.baseline_weights / priors.baseline_sds) - 0.5 * score**2, axis=1)
    locus = np.arange(len(problem.meth))
    return field_problem_at(problem, locus, np.argmax(problem.nodes.log_weight, axis=1), component)


def _negated_bound(
    problem: LocusProblem, field: FieldProblem, prior: NodePrior, mean: Array, variance: Array
) -> _Bound:
    effects, size = problem.effects, mean.shape[1]
    loading, squared = field.loading, field.loading**2
    expected = expected_observation(field, apply(loading, mean), apply(squared, variance))
    m, v = mean[:, effects:], variance[:, effects:]
    pulled = np.einsum("ljab,lb->lja", prior.precision, m)
    own = np.diagonal(prior.precision, axis1=2, axis2=3)
    h = -0.5 * (prior.log_determinant + np.einsum("lja,la->lj", pulled, m) + np.einsum("lja,la->lj", own, v))
    total = logsumexp(prior.log_weight + h, axis=1)
    share = np.exp(prior.log_weight + h - total[:, None])
    node_gradient = np.concatenate([-pulled, -0.5 * own], axis=2)
    baseline, baseline_gradient, baseline_profile, baseline_precision = _baseline_term(
        prior, mean[:, 0], variance[:, 0]
    )
    others = slice(1, effects)
    square = mean[:, others] ** 2 + variance[:, others]
    log_effects = -0.5 * (square / prior.effect_sd**2 + np.log(2 * np.pi * prior.effect_sd**2)).sum(-1)
    entropy = 0.5 * (np.log(variance) + 1.0 + np.log(2 * np.pi)).sum(-1)
    value = expected[0].sum(-1) + log_binomials(field) + entropy + total + baseline + log_effects

    of_mean, of_variance = apply_transposed(loading, expected[1]), apply_transposed(squared, expected[2])
    gradient = np.concatenate([of_mean, 0.5 * of_variance + 0.5 / variance], axis=1)
    rows = _field_rows(problem, size)
    gradient[:, rows] += np.einsum("lj,lja->la", share, node_gradient)
    gradient[:, [0, size]] += baseline_gradient
    gradient[:, 1:effects] -= mean[:, others] / prior.effect_sd**2
    gradient[:, size + 1 : size + effects] -= 0.5 / prior.effect_sd**2

    hessian = np.empty((len(mean), 2 * size, 2 * size))
    hessian[:, :size, :size] = transpose(loading) @ (expected[2][..., None] * loading)
    hessian[:, :size, size:] = 0.5 * transpose(loading) @ (expected[3][..., None] * squared)
    hessian[:, size:, :size] = transpose(hessian[:, :size, size:])
    hessian[:, size:, size:] = 0.25 * transpose(squared) @ (expected[4][..., None] * squared)
    hessian[:, size:, size:] -= (0.5 / variance**2)[..., None] * np.eye(size)
    hessian[:, effects:size, effects:size] -= np.einsum("lj,ljab->lab", share, prior.precision)
    hessian[:, 0, 0] -= baseline_precision
    diagonal = np.arange(1, effects)
    hessian[:, diagonal, diagonal] -= 1.0 / prior.effect_sd**2
    centred = node_gradient - np.einsum("lj,lja->la", share, node_gradient)[:, None]
    profile = hessian.copy()
    profile[:, rows[:, None], rows] += transpose(centred) @ (share[..., None] * centred)
    profile[:, [[0], [size]], [0, size]] += baseline_profile
    return _Bound(-value, -gradient, -hessian, -profile, share, node_gradient)


def _baseline_term(prior: NodePrior, mean: Array, variance: Array) -> tuple[Array, Array, Array, Array]:
    """log sum_k pi_k exp(g_k) [L], its gradient in (m, v) [L, 2], what it adds to their Hessian beyond the mean of the
    components' own [L, 2, 2], and their mean precision [L]."""
    precision = 1.0 / prior.component_sd**2
    offset = mean[:, None] - prior.component_mean
    g = -0.5 * ((offset**2 + variance[:, None]) * precision - np.log(precision / (2 * np.pi)))
    total = logsumexp(prior.component_log_weight + g, axis=1)
    share = np.exp(prior.component_log_weight + g - total[:, None])
    gradient = np.stack([-offset * precision, np.broadcast_to(-0.5 * precision, offset.shape)], axis=2)
    average = np.einsum("lk,lka->la", share, gradient)
    centred = gradient - average[:, None]
    return total, average, transpose(centred) @ (share[..., None] * centred), share @ precision


def _step(
    field: FieldProblem, problem: LocusProblem, mean: Array, sd: Array, at: _Bound
) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Step in (m, s) [L, 2 M], its decrement [L], and whether it is Newton's own.

    Where H is not positive definite the Hessian with q(theta) and q(k) held stands in, whose steps rise as coordinate
    ascent does; where that is not either, as with conversion error, the expected curvature of the observations.
    """
    size = mean.shape[1]
    gradient = np.concatenate([at.gradient[:, :size], 2.0 * sd * at.gradient[:, size:]], axis=1)
    _, inverse = factor(_in_sd(at.profile, at.gradient, sd))
    is_newton = is_definite(inverse)
    for stand_in in (_in_sd(at.hessian, at.gradient, sd), None):
        failed = ~is_definite(inverse)
        if not failed.any():
            break
        matrix = _safe_hessian(field, problem, mean, sd, at) if stand_in is None else stand_in
        inverse[failed] = factor(matrix[failed])[1]
    half = multiply(inverse, gradient)
    return -multiply(transpose(inverse), half), (half**2).sum(-1), is_newton


def _in_sd(hessian: Array, gradient: Array, sd: Array) -> Array:
    """A Hessian in (m, v) as one in (m, s)."""
    size = sd.shape[1]
    scale = np.concatenate([np.ones_like(sd), 2.0 * sd], axis=1)
    out = scale[:, :, None] * hessian * scale[:, None, :]
    out[:, size:, size:] += (2.0 * gradient[:, size:])[..., None] * np.eye(size)
    return out


def _safe_hessian(field: FieldProblem, problem: LocusProblem, mean: Array, sd: Array, at: _Bound) -> Array:
    """Positive definite and of the Hessian's size in (m, s): means and SDs apart, observations by information."""
    size = mean.shape[1]
    information = expected_curvature(field, apply(field.loading, mean))
    hessian = np.zeros_like(at.hessian)
    prior = _prior_part(field, problem, mean, sd, at)
    hessian[:, :size, :size] = prior + transpose(field.loading) @ (information[..., None] * field.loading)
    own = np.diagonal(hessian[:, :size, :size], axis1=1, axis2=2) + 1.0 / sd**2
    hessian[:, size:, size:] = own[..., None] * np.eye(size)
    return hessian


def _prior_part(field: FieldProblem, problem: LocusProblem, mean: Array, sd: Array, at: _Bound) -> Array:
    """The mean prior precision of u [L, M, M]: the Hessian without the observations."""
    expected = expected_observation(field, apply(field.loading, mean), apply(field.loading**2, sd**2))
    size = mean.shape[1]
    return at.hessian[:, :size, :size] + transpose(field.loading) @ (expected[2][..., None] * field.loading)
