"""Laplace's method for the field with its second-order correction, in lanes.

The mode of (b, beta) is found by damped Newton with the observed curvature (the expected one where the observed is not
positive definite: with conversion error the likelihood is not log-concave everywhere).

    log p(D) ~= log-joint at the mode - 1/2 log|I + K W| - 1/2 log|Schur| - 1/2 sum log v + c
    c = sum_s f4_s S_ss^2 / 8 + h' S h / 8 + sum_st f3_s f3_t S_st^3 / 12,      h_s = f3_s S_ss

(Tierney and Kadane 1986; the mean moves by S h / 2). S is the posterior covariance of eta, f3 and f4 the third and
fourth derivatives of the log-likelihood. Across blocks S has rank P, so sum S_st^3 is a sum of squared third-order
moments.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from epivi.field.compiled.field import (
    BACK,
    CORRECTION,
    DAMPED,
    DONE,
    EVIDENCE,
    EXPECTED,
    GAIN,
    HALVINGS,
    JOINT,
    JOINT_BEFORE,
    KEEP,
    MARK,
    MEANS,
    PREVIOUS_GAIN,
    RESTART,
    TAKE,
    TRIAL,
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
    third_row,
    variance_row,
)
from epivi.field.compiled.observation import log_observation, observation, observation_third_fourth
from epivi.field.compiled.simd import WIDTH, Lanes, compiled, load, select_less, spread, store

MAX_ITERATIONS = 60
MAX_HALVINGS = 40
LARGEST_CORRECTION = 20.0  # nats that are still added to the log evidence
NOT_CONVERGED = 1e3  # recorded as the correction of a point without a mode, so that it is flagged


@compiled
def laplace(arrays: FieldArrays, tolerance: float, work: Work) -> None:
    """Find the mode and fill work.results: log evidence without binomial coefficients, its correction; every effect's
    mean, variance, third central moment and covariance with the baseline.

    Starts with the Newton step from the point whose expansion stands in work.eta, slope and curvature, and leaves those
    of the mode there; work.start_beta is where a damped search would start. work.precision and prior_determinant must
    hold the prior. Full Newton steps are tried first; where their predicted gain grows, the search starts again with
    step halving. A lane that has arrived stands still until all have.
    """
    fill(work.search, 0.0)
    store(work.search, PREVIOUS_GAIN, spread(np.inf))
    searching, unfinished = False, True
    for iteration in range(MAX_ITERATIONS):
        if iteration > 0:
            expand_observations(arrays, work)
        solve_field(arrays, work)
        # The first step is taken from a point that need not lie in the range of K: it has no predicted gain.
        store(work.search, GAIN, _predicted_gain(arrays, work) if iteration > 0 else spread(np.inf))
        if searching:
            store(work.search, JOINT, log_joint(arrays, work))
        unfinished, searching = _decide(iteration, tolerance, work.determinant, work.search)
        if not unfinished:
            break
        _move(work.b, work.new_b, work.old_b, work.b, 0.0, work.search)
        _move(work.dual, work.new_dual, work.old_dual, work.b, 0.0, work.search)
        _move(work.beta, work.new_beta, work.old_beta, work.start_beta, 1.0, work.search)
    _second_order(arrays, work)
    _finish(work)


@compiled
def expand_observations(arrays: FieldArrays, work: Work) -> None:
    """Linear predictor, slope and curvature of every sample at the current b and beta."""
    expected = load(work.search, EXPECTED)
    for s in range(work.eta.shape[0]):
        y = predictor(arrays, s, work.b, work.beta, work)
        slope, observed, fisher = observation(
            load(work.meth, s), load(work.total, s), arrays.false_methylated[s], arrays.false_unmethylated[s], y
        )
        store(work.eta, s, y)
        store(work.slope, s, slope)
        store(work.curvature, s, select_less(0.5, expected, fisher, observed))


@compiled
def log_joint(arrays: FieldArrays, work: Work) -> Lanes:
    """Log-likelihood and exponent of the prior at the current point (normalizers are in the determinant)."""
    value = spread(0.0)
    for s in range(work.eta.shape[0]):
        eps, delta = arrays.false_methylated[s], arrays.false_unmethylated[s]
        value += log_observation(load(work.meth, s), load(work.total, s), eps, delta, load(work.eta, s))
    for i in range(work.b.shape[0]):
        value -= 0.5 * load(work.b, i) * load(work.dual, i)
    for p in range(work.beta.shape[0]):
        offset = load(work.beta, p) - load(work.prior_mean, p)
        value -= 0.5 * offset * offset / load(work.prior_variance, p)
    return value


@compiled
def _predicted_gain(arrays: FieldArrays, work: Work) -> Lanes:
    """Half of gradient times Newton step, in nats."""
    gain = spread(0.0)
    for i in range(work.b.shape[0]):
        gain -= load(work.dual, i) * (load(work.new_b, i) - load(work.b, i))
    for p in range(work.beta.shape[0]):
        slope = (load(work.beta, p) - load(work.prior_mean, p)) / load(work.prior_variance, p)
        gain -= slope * (load(work.new_beta, p) - load(work.beta, p))
    for s in range(work.eta.shape[0]):
        gain += load(work.slope, s) * (predictor(arrays, s, work.new_b, work.new_beta, work) - load(work.eta, s))
    return 0.5 * gain


@compiled
def _decide(
    iteration: int, tolerance: float, determinant: NDArray[np.float64], search: NDArray[np.float64]
) -> tuple[bool, bool]:
    """What each lane does next. Returns whether any is not done, and whether any is damped."""
    unfinished, searching = False, False
    for w in range(WIDTH):
        search[TAKE, w], search[KEEP, w], search[BACK, w] = 0.0, 1.0, 0.0
        search[MARK, w], search[RESTART, w] = 0.0, 0.0
        if search[DONE, w] == 1.0:
            continue
        if search[TRIAL, w] == 1.0:
            if search[JOINT, w] < search[JOINT_BEFORE, w] - 1e-10 and search[HALVINGS, w] < MAX_HALVINGS:
                search[KEEP, w], search[BACK, w] = 0.5, 0.5
                search[HALVINGS, w] += 1.0
                unfinished, searching = True, True
                continue
            search[TRIAL, w] = 0.0
        definite = not math.isnan(determinant[0, w])
        gain = search[GAIN, w] if definite else np.inf
        if definite and search[EXPECTED, w] == 0.0 and abs(gain) < tolerance:
            search[DONE, w] = 1.0
        elif search[DAMPED, w] == 0.0 and (gain > search[PREVIOUS_GAIN, w] or (iteration == 0 and not definite)):
            search[RESTART, w], search[DAMPED, w] = 1.0, 1.0
        elif not definite:
            search[EXPECTED, w] = 1.0
        else:
            search[TAKE, w], search[EXPECTED, w] = 1.0, 0.0
            search[PREVIOUS_GAIN, w] = gain
            if search[DAMPED, w] == 1.0:
                search[MARK, w], search[TRIAL, w], search[HALVINGS, w] = 1.0, 1.0, 0.0
                search[JOINT_BEFORE, w] = search[JOINT, w]
        unfinished = unfinished or search[DONE, w] == 0.0
        searching = searching or search[DAMPED, w] == 1.0
    return unfinished, searching


@compiled
def _move(
    x: NDArray[np.float64],
    new: NDArray[np.float64],
    old: NDArray[np.float64],
    start: NDArray[np.float64],
    start_scale: float,
    search: NDArray[np.float64],
) -> None:
    """The next point: the Newton target, the same, half of the way back to where a step started, or the start."""
    take, keep, back = load(search, TAKE), load(search, KEEP), load(search, BACK)
    mark, restart = load(search, MARK), load(search, RESTART)
    for i in range(x.shape[0]):
        value, before = load(x, i), load(old, i)
        moved = select_less(0.5, take, load(new, i), keep * value + back * before)
        first = load(start, i) * start_scale if start_scale != 0.0 else spread(0.0)
        store(old, i, select_less(0.5, mark, value, before))
        store(x, i, select_less(0.5, restart, first, moved))


@compiled
def _finish(work: Work) -> None:
    """Put together the results of every lane; of one without a mode, what marks it."""
    effects = work.beta.shape[0]
    variances, thirds, covariances = variance_row(effects), third_row(effects), covariance_row(effects)
    for w in range(WIDTH):
        total = 0.0
        for i in range(work.results.shape[0]):
            total += work.results[i, w]
        if work.search[DONE, w] == 0.0 or not math.isfinite(total):
            work.results[EVIDENCE, w], work.results[CORRECTION, w] = -np.inf, NOT_CONVERGED
            for p in range(effects):
                work.results[MEANS + p, w] = work.prior_mean[p, w]
                work.results[variances + p, w] = work.prior_variance[p, w]
                work.results[thirds + p, w] = 0.0
                work.results[covariances + p, w] = work.prior_variance[p, w] if p == 0 else 0.0
            continue
        # METHOD: the series is asymptotic. Where the mode is nearly flat, as conversion error can make it, its
        # second terms are of any size: the correction is then recorded, for the flag, and none of them is used.
        correction = work.results[CORRECTION, w]
        is_small = abs(correction) < LARGEST_CORRECTION and _moves_little(work, 0, w)
        if is_small:
            work.results[EVIDENCE, w] += correction
        for p in range(effects):
            if not (is_small and _moves_little(work, p, w)):
                work.results[MEANS + p, w] = work.new_beta[p, w]
                work.results[variances + p, w] = min(work.results[variances + p, w], work.prior_variance[p, w])
                work.results[thirds + p, w] = 0.0


@compiled
def _moves_little(work: Work, p: int, w: int) -> bool:
    """Whether an effect's mean is within a prior SD of its mode."""
    shift = work.results[MEANS + p, w] - work.new_beta[p, w]
    return shift * shift < work.prior_variance[p, w]


@compiled
def _second_order(arrays: FieldArrays, work: Work) -> None:
    """At the mode, into work.results: the log evidence with the effect of the last, untaken Newton step, but without
    correction c; c; and the effects' moments."""
    samples, effects = arrays.design.shape[0], work.beta.shape[0]
    posterior_blocks(arrays, work)
    fill(work.across, 0.0)  # sum_s scaled_s h_s
    correction, determinant_shift = spread(0.0), spread(0.0)
    for f in range(arrays.block_start.shape[0] - 1):
        start = arrays.block_start[f]
        n = arrays.block_start[f + 1] - start
        offset = arrays.matrix_start[f] - start * n - start  # of T[i, j] by latents i and j: offset + i n + j
        first, last = arrays.block_sample_start[f], arrays.block_sample_start[f + 1]
        for s in range(first, last):
            i = arrays.latent[s]
            variance = load(work.factor, offset + i * n + i)
            variance += scale_row(arrays, s, work)
            third, fourth = observation_third_fourth(
                load(work.meth, s), load(work.total, s), arrays.false_methylated[s], arrays.false_unmethylated[s],
                load(work.eta, s),
            )  # fmt: skip
            pull = third * variance
            store(work.third, s, third)
            store(work.pull, s, pull)
            correction += fourth * variance * variance * 0.125
            move = predictor(arrays, s, work.new_b, work.new_beta, work) - load(work.eta, s)
            determinant_shift += 0.5 * pull * move
            for p in range(effects):
                store(work.across, p, load(work.across, p) + load(work.scaled, s * effects + p) * pull)
        for s in range(first, last):
            third, pull = load(work.third, s) * (1.0 / 12.0), load(work.pull, s) * 0.125
            row = offset + arrays.latent[s] * n
            for t in range(first, s + 1):
                within = load(work.factor, row + arrays.latent[t])
                between = spread(0.0)
                for p in range(effects):
                    between += load(work.scaled, s * effects + p) * load(work.scaled, t * effects + p)
                # (within + between)^3 - between^3
                cubes = within * (within * within + 3.0 * between * (within + between))
                pair = pull * load(work.pull, t) * within + third * load(work.third, t) * cubes
                correction += pair if s == t else 2.0 * pair
    for p in range(effects):
        correction += load(work.across, p) * load(work.across, p) * 0.125
    correction += _rank_three(work.third, work.scaled, effects) * (1.0 / 12.0)
    value = log_joint(arrays, work) + load(work.search, GAIN) - 0.5 * log_volume(work)
    store(work.results, EVIDENCE, value + determinant_shift)
    store(work.results, CORRECTION, correction)
    _effect_moments(samples, effects, work)


@compiled
def _effect_moments(samples: int, effects: int, work: Work) -> None:
    """Mean, variance, third central moment and covariance with the baseline of every effect."""
    effect_covariance(work)
    for p in range(effects):
        row = p * effects  # of effect_root: the effect's covariance with eta_s is its product with scaled_s
        mean, third = load(work.new_beta, p), spread(0.0)
        for q in range(effects):
            mean += 0.5 * load(work.effect_root, row + q) * load(work.across, q)
        for s in range(samples):
            covariance = spread(0.0)
            for q in range(effects):
                covariance += load(work.effect_root, row + q) * load(work.scaled, s * effects + q)
            third += load(work.third, s) * covariance * covariance * covariance
        store(work.results, MEANS + p, mean)
        store(work.results, third_row(effects) + p, third)


@compiled
def _rank_three(weight: NDArray[np.float64], vectors: NDArray[np.float64], effects: int) -> Lanes:
    """sum_st weight_s weight_t (vectors_s . vectors_t)^3 as the squared norm of the third-order moment."""
    norm = spread(0.0)
    for p in range(effects):
        for q in range(p, effects):
            for r in range(q, effects):
                moment = spread(0.0)
                for s in range(weight.shape[0]):
                    row = s * effects
                    moment += load(weight, s) * load(vectors, row + p) * load(vectors, row + q) * load(vectors, row + r)
                multiplicity = 1.0 if p == q == r else (3.0 if (p == q or q == r) else 6.0)
                norm += multiplicity * moment * moment
    return norm
