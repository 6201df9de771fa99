"""Linear response: the covariances that a mean-field optimum implies though its own are zero.

Tilt the log density by t' u. The posterior mean moves by the posterior covariance times t; the mean-field mean moves by

    Cov = d m / d t = (H_mm - H_mv H_vv^-1 H_vm)^-1

with H the Hessian of the negated bound in means and variances, the mean parameters of the factorized Gaussian, because
the tilt enters the bound as t' m alone (Giordano, Broderick and Jordan 2018, Journal of Machine Learning Research
19(51)). With an observation for every latent and nothing else, the loading the identity and l the observations'
log-likelihoods, that is

    (Q + diag(-E l'' - (E l''' / 2)^2 / (1 / (2 v^2) - E l'''' / 4)))^-1.
"""

from __future__ import annotations

import numpy as np

from epivi.field.dense.gaussian_vi import MeanFieldDerivatives, mean_field_derivatives, meanfield
from epivi.field.dense.problem import Array, FieldPosterior, FieldProblem, factor, transpose, whiten

GRADIENT_TOLERANCE = (
    1e-5  # nats: change of the bound over one SD of a mean, or a doubling of a variance, to first order
)


def lrvb(problem: FieldProblem) -> FieldPosterior:
    """Mean-field means with linear-response covariances; nan covariances where mean-field found no optimum."""
    point = meanfield(problem)
    mean, variance = point.mean, np.diagonal(point.covariance, axis1=1, axis2=2)
    at = mean_field_derivatives(problem, whiten(problem), mean, variance)
    converged = point.converged & (_slope(at, variance) < GRADIENT_TOLERANCE)
    covariance = np.where(converged[:, None, None], _respond(at), np.nan)
    converged &= np.isfinite(covariance).all((1, 2))
    return FieldPosterior(mean, covariance, np.full(len(mean), np.nan), False, converged)


def linear_response(problem: FieldProblem, mean: Array, variance: Array) -> Array:
    """Covariance of u [L, M, M] at a mean-field optimum with mean and variance [L, M].

    Raises ValueError where the point is no optimum: the response of a point that moves by itself says nothing. nan
    where the bound is stationary without being at a maximum.
    """
    at = mean_field_derivatives(problem, whiten(problem), mean, variance)
    slope = _slope(at, variance)
    bad = np.flatnonzero(~(slope < GRADIENT_TOLERANCE))
    if len(bad):
        raise ValueError(
            f"linear response needs a mean-field optimum: at locus {bad[0]} of the problem the bound still changes by "
            f"{slope[bad[0]]:.2g} nats over one SD, expected below {GRADIENT_TOLERANCE:g}"
        )
    return _respond(at)


def _respond(at: MeanFieldDerivatives) -> Array:
    """The inverse [L, M, M] of the Schur complement of the variances."""
    _, inverse = factor(at.variance_variance)
    through = inverse @ transpose(at.mean_variance)
    _, root = factor(at.mean_mean - transpose(through) @ through)
    return transpose(root) @ root


def _slope(at: MeanFieldDerivatives, variance: Array) -> Array:
    """Steepest change of the bound, in nats over one SD of a mean or one doubling of a variance, [L]."""
    by_mean = np.abs(at.mean_gradient) * np.sqrt(variance)
    return np.maximum(by_mean, np.abs(at.variance_gradient) * variance).max(-1)
