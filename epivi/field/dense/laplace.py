"""Laplace's method with its second-order correction, all loci at once with dense matrices.

The mode is found by damped Newton with the observed curvature W = -l'' of the observations, and with the expected one
where the observed one leaves no positive definite matrix: with conversion error the likelihood is not log-concave
everywhere. With S the covariance of eta in the Gaussian at the mode, f3 and f4 the third and fourth derivatives of the
observations and h_s = f3_s S_ss,

    log p(D) ~= log-joint at the mode - 1/2 log|I + J' W J| + c          (J the loading in whitened coordinates)
    c = sum_s f4_s S_ss^2 / 8 + h' S h / 8 + sum_st f3_s f3_t S_st^3 / 12
    E u ~= mode + 1/2 Cov(u, eta) h

(Tierney and Kadane 1986, Journal of the American Statistical Association 81:82; Shun and McCullagh 1995 for the terms).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from epivi.field.dense.problem import (
    Array,
    FieldPosterior,
    FieldProblem,
    Whitened,
    expected_curvature,
    factor,
    is_definite,
    log_binomials,
    log_determinant,
    log_observation,
    multiply,
    observation_derivatives,
    transpose,
    unwhiten,
    whiten,
)

MAX_ITERATIONS = 100
MAX_HALVINGS = 30
QUADRATIC_DECREMENT = 1e-8  # nats; the whole Newton step from here is the last one: it squares the distance


class Mode(NamedTuple):
    """The maximum of the joint density in whitened coordinates."""

    w: Array  # [L, M]
    eta: Array  # [L, S]
    lower: Array  # [L, M, M], Cholesky factor of the negated Hessian, nan where that is not positive definite
    inverse: Array  # [L, M, M], of `lower`
    log_joint: Array  # [L], without binomial coefficients and without the prior's (2 pi)^(-M/2)
    converged: NDArray[np.bool_]  # [L]


def laplace(problem: FieldProblem, second_order: bool = True) -> FieldPosterior:
    """Gaussian at the mode; with `second_order` evidence and mean are corrected, the covariance is not."""
    white = whiten(problem)
    mode = find_mode(problem, white)
    log_evidence = mode.log_joint - 0.5 * log_determinant(mode.lower) + log_binomials(problem)
    mean, covariance = unwhiten(problem, white, mode.w, mode.inverse)
    if second_order:
        correction, shift = _second_order(problem, mode.eta, covariance)
        log_evidence, mean = log_evidence + correction, mean + shift
    return FieldPosterior(mean, covariance, log_evidence, False, mode.converged)


def find_mode(problem: FieldProblem, white: Whitened) -> Mode:
    """Damped Newton from the prior mean; a step is halved until the density rises."""
    w = np.zeros(problem.prior_mean.shape)
    done = np.zeros(len(w), dtype=bool)
    for _ in range(MAX_ITERATIONS):
        eta = white.offset + multiply(white.projection, w)
        gradient = multiply(transpose(white.projection), observation_derivatives(problem, eta)[0]) - w
        _, inverse, is_newton = _curvature(problem, white, eta, with_fallback=True)
        half = multiply(inverse, gradient)
        step, decrement = multiply(transpose(inverse), half), (half**2).sum(-1)
        last = ~done & is_newton & (decrement < QUADRATIC_DECREMENT)
        length = np.where(last, 1.0, np.where(done, 0.0, _step_length(problem, white, w, step, decrement)))
        w = w + length[:, None] * step
        done |= last
        if done.all():
            break
    eta = white.offset + multiply(white.projection, w)
    lower, inverse, is_maximum = _curvature(problem, white, eta, with_fallback=False)
    return Mode(w, eta, lower, inverse, _log_joint(problem, white, w), done & is_maximum)


def _log_joint(problem: FieldProblem, white: Whitened, w: Array) -> Array:
    eta = white.offset + multiply(white.projection, w)
    return log_observation(problem, eta).sum(-1) - 0.5 * (w**2).sum(-1)


def _curvature(
    problem: FieldProblem, white: Whitened, eta: Array, with_fallback: bool
) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Cholesky factor of I + J' W J, its inverse, and whether the observed W gives one; else by the expected W, if so
    wished."""
    identity = np.eye(white.projection.shape[-1])

    def factored(curvature: Array, at: NDArray[np.bool_]) -> tuple[Array, Array]:
        projection = white.projection[at]
        return factor(identity + transpose(projection) @ (curvature[at, :, None] * projection))

    lower, inverse = factored(-observation_derivatives(problem, eta)[1], np.ones(len(eta), dtype=bool))
    failed = ~is_definite(lower)
    if with_fallback and failed.any():
        lower[failed], inverse[failed] = factored(expected_curvature(problem, eta), failed)
    return lower, inverse, ~failed


def _step_length(problem: FieldProblem, white: Whitened, w: Array, step: Array, decrement: Array) -> Array:
    """The longest of 1, 1/2, 1/4 ... of the step that gains a tenth of what the slope promises, [L]."""
    before = _log_joint(problem, white, w)
    length = np.ones(len(w))
    for _ in range(MAX_HALVINGS):
        short = ~(_log_joint(problem, white, w + length[:, None] * step) >= before + 0.1 * length * decrement)
        if not short.any():
            break
        length[short] *= 0.5
    return length


def _second_order(problem: FieldProblem, eta: Array, covariance: Array) -> tuple[Array, Array]:
    """The correction c of the log evidence [L], and the shift of the mean of u [L, M]."""
    _, _, third, fourth = observation_derivatives(problem, eta)
    with_eta = covariance @ transpose(problem.loading)
    s = problem.loading @ with_eta
    variance = np.diagonal(s, axis1=1, axis2=2)
    h = third * variance
    correction = (fourth * variance**2).sum(-1) / 8.0 + (h * multiply(s, h)).sum(-1) / 8.0
    correction += (third * multiply(s**3, third)).sum(-1) / 12.0
    return correction, 0.5 * multiply(with_eta, h)
