"""Expectation propagation: every observation replaced by a Gaussian site along its row of the loading.

Minka 2001 (Uncertainty in Artificial Intelligence 17:362); all sites are updated at once, with damping, from the
observed curvature at the mode (Rasmussen and Williams 2006, Gaussian Processes for Machine Learning, section 3.6).
With cavity N(mu, v) and marginal N(m, V) of an observation's eta, site exp(nu eta - t eta^2 / 2), tilted normalizer Z,

    log p(D) ~= log of the prior times all sites, integrated + sum_s [log Z - 1/2 log(V/v) - 1/2 (m^2/V - mu^2/v)].
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from epivi.field.dense.laplace import find_mode
from epivi.field.dense.problem import (
    Array,
    FieldPosterior,
    FieldProblem,
    SiteGaussian,
    Whitened,
    combine_sites,
    expected_curvature,
    is_definite,
    log_binomials,
    log_observation,
    node_slabs,
    observation_derivatives,
    unwhiten,
    whiten,
)

DAMPING = 0.8  # share of the way to the new site
MAX_SWEEPS = 200
MAX_HALVINGS = 20
MOMENT_TOLERANCE = 1e-9  # mean (in SDs) and variance (relative) of every observation, tilted against marginal


class _Tilted(NamedTuple):
    """Moments of cavity times observation, in xi = eta - offset, [L, S]."""

    log_normalizer: Array
    mean: Array
    variance: Array


class _Cavity(NamedTuple):
    """The marginals without their own site, [L, S]."""

    precision: Array
    pull: Array


def ep(problem: FieldProblem) -> FieldPosterior:
    """Parallel EP to convergence; an observation without reads keeps a site of zero."""
    white = whiten(problem)
    precision, pull = _start(problem, white)
    current = combine_sites(white, precision, pull)
    converged = np.zeros(len(precision), dtype=bool)
    for _ in range(MAX_SWEEPS):
        cavity = _cavity(current, precision, pull)
        tilted = _tilt(problem, white, current, cavity)
        error = _moment_error(problem, current, cavity, tilted)
        converged |= error < MOMENT_TOLERANCE
        if converged.all():
            break
        usable = (cavity.precision > 0) & (tilted.variance > 0) & (problem.total > 0) & ~converged[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            change = np.where(usable, 1.0 / tilted.variance - cavity.precision - precision, 0.0)
            pull_change = np.where(usable, tilted.mean / tilted.variance - cavity.pull - pull, 0.0)
        length = _step_length(white, precision, pull, change, pull_change)
        precision, pull = precision + length * change, pull + length * pull_change
        current = combine_sites(white, precision, pull)
    cavity = _cavity(current, precision, pull)
    log_evidence = _log_evidence(problem, current, cavity, _tilt(problem, white, current, cavity))
    mean, covariance = unwhiten(problem, white, current.mean, current.inverse_factor)
    return FieldPosterior(mean, covariance, log_evidence, False, converged)


def _start(problem: FieldProblem, white: Whitened) -> tuple[Array, Array]:
    """Sites of the Gaussian at the mode, with the expected curvature where the observed makes no Gaussian."""
    mode = find_mode(problem, white)
    slope, second, _, _ = observation_derivatives(problem, mode.eta)
    observed = is_definite(mode.lower)
    precision = np.where(observed[:, None], -second, expected_curvature(problem, mode.eta))
    return precision, slope + precision * (mode.eta - white.offset)


def _cavity(current: SiteGaussian, precision: Array, pull: Array) -> _Cavity:
    return _Cavity(1.0 / current.level_variance - precision, current.level_mean / current.level_variance - pull)


def _tilt(problem: FieldProblem, white: Whitened, current: SiteGaussian, cavity: _Cavity) -> _Tilted:
    """Moments of cavity times observation by quadrature.

    # METHOD: the nodes are laid around the current marginal. At the fixed point it has the mean and the variance of the
    # tilted density itself, which cover a skewed density better than its mode and curvature, and need no search.
    """
    sd = np.sqrt(current.level_variance)
    positive = np.where(cavity.precision > 0, cavity.precision, np.nan)
    centre = cavity.pull / positive
    log_density, top = [], np.full(sd.shape, -np.inf)
    slabs = node_slabs(sd.size)
    for node, weight in slabs:
        xi = current.level_mean + node * sd
        value = log_observation(problem, white.offset + xi) - 0.5 * positive * (xi - centre) ** 2
        value += np.log(weight) + 0.5 * node**2  # density of the rule's Gaussian divided out
        log_density.append(value)
        top = np.maximum(top, value.max(0))
    sums = np.zeros((3, *sd.shape))
    for (node, _), value in zip(slabs, log_density, strict=True):
        relative = np.exp(value - top)
        for power in range(3):
            sums[power] += (relative * node**power).sum(0)
    first = sums[1] / sums[0]
    return _Tilted(
        log_normalizer=top + np.log(sums[0]) + 0.5 * np.log(positive * current.level_variance),
        mean=current.level_mean + sd * first,
        variance=current.level_variance * (sums[2] / sums[0] - first**2),
    )


def _moment_error(problem: FieldProblem, current: SiteGaussian, cavity: _Cavity, tilted: _Tilted) -> Array:
    """How far the marginals are from the tilted moments, [L]; infinite where a cavity cannot be normalized."""
    mean = np.abs(tilted.mean - current.level_mean) / np.sqrt(current.level_variance)
    variance = np.abs(tilted.variance / current.level_variance - 1.0)
    error = np.where(cavity.precision > 0, np.maximum(mean, variance), np.inf)
    return np.where(problem.total > 0, error, 0.0).max(-1)


def _step_length(white: Whitened, precision: Array, pull: Array, change: Array, pull_change: Array) -> Array:
    """DAMPING, halved where negative sites would leave no Gaussian; zero where that does not help, [L, 1]."""
    length = np.full((len(precision), 1), DAMPING)
    failed = np.asarray((precision + DAMPING * change < 0).any(-1))  # only these can fail
    for _ in range(MAX_HALVINGS):
        if not failed.any():
            return length
        at = np.flatnonzero(failed)
        part = Whitened(*(array[at] for array in white))
        trial = combine_sites(part, precision[at] + length[at] * change[at], pull[at] + length[at] * pull_change[at])
        failed[at] = np.isnan(trial.log_integral)
        length[failed] *= 0.5
    length[failed] = 0.0
    return length


def _log_evidence(problem: FieldProblem, current: SiteGaussian, cavity: _Cavity, tilted: _Tilted) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        mean, variance = current.level_mean, current.level_variance
        site = 0.5 * np.log(variance * cavity.precision)
        site += 0.5 * (mean**2 / variance - cavity.pull**2 / cavity.precision)
        terms = np.where(problem.total > 0, tilted.log_normalizer - site, 0.0)
    return current.log_integral + terms.sum(-1) + log_binomials(problem)
