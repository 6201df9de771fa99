"""Expectation propagation for the field, in lanes.

Every observation is replaced by a Gaussian site exp(nu eta - tau eta^2 / 2) such that the posterior's marginal
N(m, v) of eta_s has the mean and variance of the tilted distribution, in which the observation itself stands for its
site (Minka 2001; Rasmussen and Williams 2006, section 3.6). All sites are updated at once, from the Laplace
approximation.

    log p(D) ~= log int p(b, beta) prod_s site_s + sum_s log E_N(m_s, v_s)[observation_s / site_s]
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from epivi.field.compiled.field import (
    CORRECTION,
    DONE,
    EVIDENCE,
    MEANS,
    MISMATCH,
    FieldArrays,
    Work,
    covariance_row,
    effect_covariance,
    fill,
    log_volume,
    posterior_blocks,
    predictor,
    scale_row,
    solve_field,
    variance_row,
)
from epivi.field.compiled.laplace import NOT_CONVERGED
from epivi.field.compiled.observation import log_observation
from epivi.field.compiled.simd import (
    WIDTH,
    Lanes,
    compiled,
    exponential,
    load,
    logarithm,
    select_less,
    spread,
    square_root,
    store,
)

MAX_SWEEPS = 40
# METHOD: sweeps go all the way to the matching sites, which takes two thirds of the time that four fifths of the way
# take and reaches the same fixed point; what has not settled by then may oscillate, and goes part of the way.
FULL_SWEEPS = 12
DAMPING = 0.7  # share of the way to the matching site that a later sweep goes
LARGEST_MISMATCH = 1e-6  # squared difference of moments, in variances; the evidence is stationary there


@compiled
def propagate(arrays: FieldArrays, quadrature: NDArray[np.float64], work: Work) -> None:
    """Refine work.results of the Laplace approximation: log evidence, and the effects' means and covariances.

    Starts from the mode that `laplace` left, and overwrites its eta, slope and curvature. A lane that does not
    converge gets NOT_CONVERGED for its correction and keeps the other results.
    """
    fill(work.search, 0.0)
    # The quadratic expansions of the observations, about eta = 0 as `solve_field` takes them.
    for s in range(work.eta.shape[0]):
        store(work.slope, s, load(work.slope, s) + load(work.curvature, s) * load(work.eta, s))
        store(work.eta, s, spread(0.0))
    for sweep in range(MAX_SWEEPS):
        solve_field(arrays, work)
        posterior_blocks(arrays, work)
        gaussian = _log_gaussian(arrays, work) - 0.5 * log_volume(work)
        way = 1.0 if sweep < FULL_SWEEPS else DAMPING
        if _settle(gaussian + _match_sites(arrays, quadrature, way, work), work):
            break
    for w in range(WIDTH):
        if work.search[DONE, w] == 0.0:
            work.results[CORRECTION, w] = NOT_CONVERGED


@compiled
def _log_gaussian(arrays: FieldArrays, work: Work) -> Lanes:
    """Exponent of prior times sites at its maximum, the posterior mean."""
    value = spread(0.0)
    for i in range(work.new_b.shape[0]):
        value -= 0.5 * load(work.new_b, i) * load(work.new_dual, i)
    for p in range(work.new_beta.shape[0]):
        offset = load(work.new_beta, p) - load(work.prior_mean, p)
        value -= 0.5 * offset * offset / load(work.prior_variance, p)
    for s in range(work.eta.shape[0]):
        eta = predictor(arrays, s, work.new_b, work.new_beta, work)
        value += (load(work.slope, s) - 0.5 * load(work.curvature, s) * eta) * eta
    return value


@compiled
def _match_sites(arrays: FieldArrays, quadrature: NDArray[np.float64], way: float, work: Work) -> Lanes:
    """Move every site that share of the way to the one that matches. Returns sum_s log E[observation_s / site_s] before
    the move, and leaves the largest mismatch in work.search."""
    total, worst = spread(0.0), spread(0.0)
    for f in range(arrays.block_start.shape[0] - 1):
        start = arrays.block_start[f]
        n = arrays.block_start[f + 1] - start
        for s in range(arrays.block_sample_start[f], arrays.block_sample_start[f + 1]):
            i = arrays.latent[s] - start
            variance = load(work.factor, arrays.matrix_start[f] + i * n + i) + scale_row(arrays, s, work)
            mean = predictor(arrays, s, work.new_b, work.new_beta, work)
            log_ratio, shift, tilted_variance = _tilted(arrays, s, quadrature, mean, variance, work)
            total += log_ratio
            change = tilted_variance / variance - 1.0
            worst = _larger(_larger(worst, shift * shift / variance), change * change)
            tau_step = 1.0 / tilted_variance - 1.0 / variance
            nu_step = (mean + shift) / tilted_variance - mean / variance
            store(work.curvature, s, load(work.curvature, s) + way * tau_step)
            store(work.slope, s, load(work.slope, s) + way * nu_step)
    store(work.search, MISMATCH, worst)
    return total


@compiled
def _larger(a: Lanes, b: Lanes) -> Lanes:
    """The larger one; not a number where b is not."""
    return select_less(b, a, a, b)


@compiled
def _tilted(
    arrays: FieldArrays, s: int, quadrature: NDArray[np.float64], mean: Lanes, variance: Lanes, work: Work
) -> tuple[Lanes, Lanes, Lanes]:
    """log E[observation / site] under N(mean, variance), and of the tilted distribution its mean less that one, and its
    variance. Where the sites match these are none and the variance itself, so that is where the nodes belong."""
    m, n = load(work.meth, s), load(work.total, s)
    eps, delta = arrays.false_methylated[s], arrays.false_unmethylated[s]
    tau, nu = load(work.curvature, s), load(work.slope, s)
    sd = square_root(variance)
    centre = log_observation(m, n, eps, delta, mean) - (nu - 0.5 * tau * mean) * mean
    zeroth, first, second = spread(0.0), spread(0.0), spread(0.0)
    for j in range(quadrature.shape[1]):
        step = sd * quadrature[0, j]
        eta = mean + step
        exponent = log_observation(m, n, eps, delta, eta) - (nu - 0.5 * tau * eta) * eta - centre
        weight = exponential(exponent) * quadrature[1, j]
        zeroth += weight
        first += weight * step
        second += weight * step * step
    first, second = first / zeroth, second / zeroth
    return centre + logarithm(zeroth), first, second - first * first


@compiled
def _settle(evidence: Lanes, work: Work) -> bool:
    """Record the results of lanes whose sites match for the first time; whether all do by now."""
    effects = work.beta.shape[0]
    before = work.results.copy()
    effect_covariance(work)
    store(work.results, EVIDENCE, evidence)
    settled = True
    for w in range(WIDTH):
        matches = work.search[MISMATCH, w] < LARGEST_MISMATCH and math.isfinite(work.results[EVIDENCE, w])
        if work.search[DONE, w] == 0.0 and matches:
            work.search[DONE, w] = 1.0
            for p in range(effects):
                work.results[MEANS + p, w] = work.new_beta[p, w]
            continue
        settled = settled and work.search[DONE, w] == 1.0
        work.results[EVIDENCE, w] = before[EVIDENCE, w]
        for p in range(effects):
            work.results[variance_row(effects) + p, w] = before[variance_row(effects) + p, w]
            work.results[covariance_row(effects) + p, w] = before[covariance_row(effects) + p, w]
    return settled
