"""Gaussian variational inference: the best Gaussian q(u) in the divergence KL(q || p), factorized or with covariance.

    bound = sum_s E_q log p(m_s | eta_s) - KL(q(u) || N(prior_mean, prior_covariance))  <=  log p(D)

Under q every eta_s is Gaussian, so that E_q of an observation is one-dimensional; its derivatives in the mean and the
variance of eta_s are E l' and E l'' / 2 (Bonnet and Price; Opper and Archambeau 2009, Neural Computation 21:786).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from epivi.field.dense.laplace import find_mode
from epivi.field.dense.problem import (
    Array,
    FieldPosterior,
    FieldProblem,
    SiteGaussian,
    Whitened,
    apply,
    apply_transposed,
    combine_sites,
    expected_curvature,
    expected_observation,
    factor,
    is_definite,
    log_binomials,
    log_determinant,
    multiply,
    select_loci,
    transpose,
    unwhiten,
    whiten,
)

MAX_ITERATIONS = 200
MAX_HALVINGS = 30
QUADRATIC_DECREMENT = 1e-8  # nats; the whole Newton step from here is the last one: it squares the distance
SITE_TOLERANCE = 1e-8  # what a site is off its target, relative to the marginal of its observation
LEAST_LENGTH = 0.05  # of a natural-gradient step before its halving
ROUNDING = 1e-11  # relative to the bound, what a step may lose
LEAST_SHRINKAGE = 0.1  # of an SD by one step


class MeanFieldDerivatives(NamedTuple):
    """Value, gradient and Hessian blocks of the negated bound in mean m and variance v of q(u) = prod N(m_i, v_i)."""

    value: Array  # [L]
    mean_gradient: Array  # [L, M]
    variance_gradient: Array  # [L, M]
    mean_mean: Array  # [L, M, M]
    mean_variance: Array  # [L, M, M]
    variance_variance: Array  # [L, M, M]


def mean_field_derivatives(
    problem: FieldProblem, white: Whitened, mean: Array, variance: Array
) -> MeanFieldDerivatives:
    """Derivatives at mean, variance [L, M].

    With A the loading, B its squared entries, Q the prior precision and E_k the expected k-th derivative of the
    observations' log-likelihood: gradients Q (m - mu) - A' E_1 and Q_ii / 2 - B' E_2 / 2 - 1 / (2 v); Hessian Q - A'
    E_2 A, -A' E_3 B / 2 and diag(1 / (2 v^2)) - B' E_4 B / 4.
    """
    loading, squared = problem.loading, problem.loading**2
    expected = expected_observation(problem, apply(loading, mean), apply(squared, variance))
    precision = transpose(white.inverse_root) @ white.inverse_root
    own = np.diagonal(precision, axis1=1, axis2=2)
    pull = multiply(precision, mean - problem.prior_mean)
    divergence = ((mean - problem.prior_mean) * pull + own * variance - np.log(variance) - 1.0).sum(-1)
    divergence += log_determinant(white.root)
    own_curvature = (0.5 / variance**2)[..., None] * np.eye(mean.shape[1])
    return MeanFieldDerivatives(
        value=0.5 * divergence - expected[0].sum(-1) - log_binomials(problem),
        mean_gradient=pull - apply_transposed(loading, expected[1]),
        variance_gradient=0.5 * (own - apply_transposed(squared, expected[2]) - 1.0 / variance),
        mean_mean=precision - transpose(loading) @ (expected[2][..., None] * loading),
        mean_variance=-0.5 * transpose(loading) @ (expected[3][..., None] * squared),
        variance_variance=own_curvature - 0.25 * transpose(squared) @ (expected[4][..., None] * squared),
    )


def meanfield(problem: FieldProblem) -> FieldPosterior:
    """The best factorized Gaussian, by damped Newton in all means and standard deviations together.

    # METHOD: in the standard deviations, not in their logarithms or squares, because the bound is concave in (m, s)
    # wherever the observations are log-concave (Challis and Barber 2013): the optimum is then the only one.
    """
    white = whiten(problem)
    mean, sd = _mean_field_start(problem, white)
    done = np.zeros(len(mean), dtype=bool)

    def evaluate(mean: Array, sd: Array) -> MeanFieldDerivatives:
        return mean_field_derivatives(problem, white, mean, sd**2)

    at = evaluate(mean, sd)
    for _ in range(MAX_ITERATIONS):
        step, decrement, is_newton = _newton_step(problem, white, mean, sd, at)
        last = ~done & is_newton & (decrement < QUADRATIC_DECREMENT)
        length = feasible_length(sd, step)
        length[done] = 0.0
        searching = ~(last | done)
        mean, sd, at = search(evaluate, mean, sd, at, step, length, decrement, searching)
        done |= last
        if done.all():
            break
    variance = sd**2
    covariance = variance[..., None] * np.eye(mean.shape[1])
    return FieldPosterior(mean, covariance, -at.value, True, done)


def _mean_field_start(problem: FieldProblem, white: Whitened) -> tuple[Array, Array]:
    """The mode, and the SD of every latent given the others there."""
    mode = find_mode(problem, white)
    curvature = apply_transposed(problem.loading**2, expected_curvature(problem, mode.eta))
    own = (white.inverse_root**2).sum(1) + curvature
    return problem.prior_mean + multiply(white.root, mode.w), 1.0 / np.sqrt(own)


def _newton_step(
    problem: FieldProblem, white: Whitened, mean: Array, sd: Array, at: MeanFieldDerivatives
) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Step in (m, s) [L, 2 M], its decrement [L], and whether it is Newton's own [L].

    It is not where the Hessian is not positive definite: there the expected curvature of the observations stands in,
    and the means and the standard deviations are taken apart.
    """
    size = mean.shape[1]
    hessian = np.empty((len(mean), 2 * size, 2 * size))
    hessian[:, :size, :size] = at.mean_mean
    hessian[:, :size, size:] = at.mean_variance * 2.0 * sd[:, None, :]
    hessian[:, size:, :size] = transpose(hessian[:, :size, size:])
    hessian[:, size:, size:] = 4.0 * sd[:, :, None] * at.variance_variance * sd[:, None, :]
    hessian[:, size:, size:] += (2.0 * at.variance_gradient)[..., None] * np.eye(size)
    gradient = np.concatenate([at.mean_gradient, 2.0 * sd * at.variance_gradient], axis=1)
    _, inverse = factor(hessian)
    failed = ~is_definite(inverse)
    if failed.any():
        inverse[failed] = factor(
            _safe_hessian(select_loci(problem, failed), white.inverse_root[failed], mean[failed], sd[failed])
        )[1]
    half = multiply(inverse, gradient)
    return -multiply(transpose(inverse), half), (half**2).sum(-1), ~failed


def _safe_hessian(problem: FieldProblem, inverse_root: Array, mean: Array, sd: Array) -> Array:
    """A positive definite matrix [L, 2 M, 2 M] of the size of the Hessian in (m, s)."""
    size = mean.shape[1]
    loading = problem.loading
    fisher = expected_curvature(problem, apply(loading, mean))
    information = transpose(inverse_root) @ inverse_root + transpose(loading) @ (fisher[..., None] * loading)
    hessian = np.zeros((len(mean), 2 * size, 2 * size))
    hessian[:, :size, :size] = information
    own = np.diagonal(information, axis1=1, axis2=2) + 1.0 / sd**2
    hessian[:, size:, size:] = own[..., None] * np.eye(size)
    return hessian


def feasible_length(sd: Array, step: Array) -> Array:
    """At most 1, and no SD below LEAST_SHRINKAGE of what it was, [L]."""
    relative = (-step[:, sd.shape[1] :] / sd).max(-1)
    return (1.0 - LEAST_SHRINKAGE) / np.maximum(relative, 1.0 - LEAST_SHRINKAGE)


class HasValue(Protocol):
    """Something evaluated at (m, s) with the negated bound [L] among it."""

    @property
    def value(self) -> Array: ...


Evaluated = TypeVar("Evaluated", bound=HasValue)


def search(
    evaluate: Callable[[Array, Array], Evaluated],
    mean: Array,
    sd: Array,
    at: Evaluated,
    step: Array,
    length: Array,
    decrement: Array,
    searching: NDArray[np.bool_],
) -> tuple[Array, Array, Evaluated]:
    """Halve the step in (m, s) of `searching` loci until the bound gains a tenth of what the slope promises."""
    size = sd.shape[1]
    for _ in range(MAX_HALVINGS):
        new_mean, new_sd = mean + length[:, None] * step[:, :size], sd + length[:, None] * step[:, size:]
        new = evaluate(new_mean, new_sd)
        slack = ROUNDING * (1.0 + np.abs(at.value))
        short = searching & ~(new.value <= at.value - 0.1 * length * decrement + slack)
        if not short.any():
            break
        length[short] *= 0.5
    return new_mean, new_sd, new


def full_covariance(problem: FieldProblem) -> FieldPosterior:
    """The best Gaussian with any covariance, which is a site along every row of the loading (Opper and Archambeau).

    Natural-gradient steps (Khan and Lin 2017, AISTATS: conjugate-computation variational inference): the site of
    observation s goes towards precision -E l'' and pull E l' - E l'' E xi. A step that loses bound is halved.
    """
    white = whiten(problem)
    mode = find_mode(problem, white)
    precision = expected_curvature(problem, mode.eta)
    pull = precision * (mode.eta - white.offset)
    current = combine_sites(white, precision, pull)
    bound, expected = _full_bound(problem, white, current)
    length = np.ones(len(pull))
    previous = np.zeros((2, *pull.shape))
    for _ in range(MAX_ITERATIONS):
        change = -expected[2] - precision
        pull_change = expected[1] - expected[2] * current.level_mean - pull
        moves = np.stack([change * current.level_variance, expected[1] - pull + precision * current.level_mean])
        moves[1] *= np.sqrt(current.level_variance)
        done = np.abs(moves).max((0, 2)) < SITE_TOLERANCE
        if done.all():
            break
        length = np.where(done, 0.0, _secant_length(length, moves, previous))
        for _ in range(MAX_HALVINGS):
            sites = precision + length[:, None] * change, pull + length[:, None] * pull_change
            trial = combine_sites(white, *sites)
            new_bound, new_expected = _full_bound(problem, white, trial)
            short = ~(new_bound >= bound - ROUNDING * (1.0 + np.abs(bound)))
            if not short.any():
                break
            length[short] *= 0.5
        (precision, pull), current, bound, expected, previous = sites, trial, new_bound, new_expected, moves
    mean, covariance = unwhiten(problem, white, current.mean, current.inverse_factor)
    return FieldPosterior(mean, covariance, bound, True, done)


def _secant_length(length: Array, moves: Array, previous: Array) -> Array:
    """Length [L] of the next step, from the share r of the last residual [2, L, S] that the last length left over.

    Whole steps swing around the optimum of a skewed observation for long. Were the residual linear, 1 / (1 - r) times
    the last length would end the dominant swing.
    """
    square = (previous**2).sum((0, 2))
    left = np.where(square > 0.0, (moves * previous).sum((0, 2)) / np.where(square > 0.0, square, 1.0), 0.0)
    return np.clip(length / (1.0 - np.clip(left, -3.0, 0.9)), LEAST_LENGTH, 1.0)


def _full_bound(problem: FieldProblem, white: Whitened, q: SiteGaussian) -> tuple[Array, Array]:
    """The bound [L], and the expected observations and derivatives [5, L, S]; nan where q is no Gaussian."""
    expected = expected_observation(problem, white.offset + q.level_mean, q.level_variance)
    divergence = (q.inverse_factor**2).sum((1, 2)) + (q.mean**2).sum(-1) - q.mean.shape[1]
    divergence -= log_determinant(q.inverse_factor)
    return expected[0].sum(-1) + log_binomials(problem) - 0.5 * divergence, expected
