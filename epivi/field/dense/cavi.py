"""Coordinate ascent in closed form, with one Polya-Gamma variable for every observation.

    sigmoid(y)^m sigmoid(-y)^(n - m) = 2^-n exp((m - n/2) y) E exp(-omega y^2 / 2),      omega ~ PG(n, 0)

(Polson, Scott and Windle 2013, Journal of the American Statistical Association 108:1339). Under q(u) q(omega) the best
q(omega_s) is PG(n_s, c_s) with c_s^2 = E eta_s^2 and mean n_s tanh(c_s / 2) / (2 c_s), and the best q(u) is Gaussian
with that mean as the precision of a site on every observation. The bound at any c is

    sum_s [(m_s - n_s/2) E eta_s - n_s log(2 cosh(c_s / 2)) - E omega_s (E eta_s^2 - c_s^2) / 2] - KL(q(u) || prior)

which is that of Jaakkola and Jordan 2000 (Statistics and Computing 10:25). It needs observations without conversion
error.
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
    apply,
    apply_transposed,
    combine_sites,
    has_conversion_error,
    log_binomials,
    log_determinant,
    multiply,
    select_loci,
    unwhiten,
    whiten,
)

MAX_ITERATIONS = 5000
TOLERANCE = 1e-8  # change of c, relative to one logit, in one iteration


class CoordinateAscent(NamedTuple):
    """The posterior, and the bound after every half of every iteration."""

    posterior: FieldPosterior
    bound_trace: Array  # [T, L]; a locus that has converged repeats its last value


class GaussianFactor(NamedTuple):
    """q(u), what the observations see of it and its divergence from the prior."""

    mean: Array  # [L, M]
    covariance: Array  # [L, M, M]
    level_mean: Array  # [L, S]
    level_variance: Array  # [L, S]
    divergence: Array  # [L]


def cavi(problem: FieldProblem) -> FieldPosterior:
    """Coordinate ascent with a full Gaussian q(u)."""
    return coordinate_ascent(problem).posterior


def coordinate_ascent(problem: FieldProblem, factorized: bool = False) -> CoordinateAscent:
    """Coordinate ascent; with `factorized` also the latents are independent of each other under q.

    Raises ValueError for a problem with conversion error.
    """
    if has_conversion_error(problem):
        raise ValueError(
            "cavi needs false_methylated and false_unmethylated to be 0: the augmentation is exact only there"
        )
    loci, latents = problem.prior_mean.shape
    mean, covariance = np.empty((loci, latents)), np.empty((loci, latents, latents))
    bound, converged = np.full(loci, -np.inf), np.zeros(loci, dtype=bool)
    trace: list[Array] = []
    at = np.arange(loci)
    part, white = problem, whiten(problem)
    c = np.zeros(problem.meth.shape)
    for _ in range(MAX_ITERATIONS):
        q = update_latents(part, white, c, factorized)
        bound[at] = field_bound(part, q, c)
        trace.append(bound.copy())
        new_c = np.sqrt(q.level_mean**2 + q.level_variance)
        bound[at] = field_bound(part, q, new_c)
        trace.append(bound.copy())
        mean[at], covariance[at] = q.mean, q.covariance
        moving = ~(np.where(part.total > 0, np.abs(new_c - c), 0.0).max(-1) < TOLERANCE)
        converged[at] = ~moving
        if not moving.any():
            break
        c = new_c[moving]
        if not moving.all():
            at, part, white = at[moving], select_loci(part, moving), _select(white, moving)
    return CoordinateAscent(FieldPosterior(mean, covariance, bound, True, converged), np.array(trace))


def _select(white: Whitened, loci: NDArray[np.bool_]) -> Whitened:
    return Whitened(*(array[loci] for array in white))


def _expected_omega(total: Array, c: Array) -> Array:
    """Mean of PG(n, c): n tanh(c / 2) / (2 c)."""
    small = c < 1e-4  # where the quotient is 1/4 - c^2 / 48 to sixteen digits
    safe = np.where(small, 1.0, c)
    return total * np.where(small, 0.25 - c**2 / 48.0, np.tanh(0.5 * safe) / (2.0 * safe))


def update_latents(problem: FieldProblem, white: Whitened, c: Array, factorized: bool) -> GaussianFactor:
    """The best q(u) given q(omega).

    Among factorized Gaussians the best means are those of the full one, and the best variances the inverse diagonal of
    its precision, so that both come in one step and no sweep over latents is needed.
    """
    omega = _expected_omega(problem.total, c)
    pull = problem.meth - 0.5 * problem.total - omega * white.offset
    sites = combine_sites(white, omega, pull)
    if not factorized:
        mean, covariance = unwhiten(problem, white, sites.mean, sites.inverse_factor)
        divergence = (sites.inverse_factor**2).sum((1, 2)) - log_determinant(sites.inverse_factor)
        variance = sites.level_variance
    else:
        mean = problem.prior_mean + multiply(white.root, sites.mean)
        own = (white.inverse_root**2).sum(1)
        variances = 1.0 / (own + apply_transposed(problem.loading**2, omega))
        covariance = variances[..., None] * np.eye(mean.shape[1])
        divergence = (own * variances - np.log(variances)).sum(-1) + log_determinant(white.root)
        variance = apply(problem.loading**2, variances)
    divergence = 0.5 * (divergence + (sites.mean**2).sum(-1) - mean.shape[1])
    return GaussianFactor(mean, covariance, white.offset + sites.level_mean, variance, divergence)


def field_bound(problem: FieldProblem, q: GaussianFactor, c: Array) -> Array:
    """The bound of q(u) and q(omega_s) = PG(n_s, c_s), [L]."""
    m, n = problem.meth, problem.total
    square = q.level_mean**2 + q.level_variance
    observations = (m - 0.5 * n) * q.level_mean - n * (0.5 * c + np.log1p(np.exp(-c)))
    observations -= 0.5 * _expected_omega(n, c) * (square - c**2)
    return observations.sum(-1) + log_binomials(problem) - q.divergence
