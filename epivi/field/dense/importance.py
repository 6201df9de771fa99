"""A reference for the approximate methods: importance sampling at fixed variance components, with its own errors.

The proposal is a mixture, in fixed numbers of draws (Owen and Zhou 2000, Journal of the American Statistical
Association 95:135), around the Gaussian of expectation propagation: itself, moved and widened along the direction in
which the observations skew the posterior, widened all around, with the covariance that half the reads would leave, and
the prior. Where the first is good most weights are nearly constant; the others reach where it is not; and since the
prior has a share, no weight exceeds the largest likelihood over that share. The known moments of the first component's
draws serve as control variates: what is estimated is only how far the posterior's moments are from its.
"""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import numpy as np

from epivi.field.dense.expectation_propagation import ep
from epivi.field.dense.laplace import laplace
from epivi.field.dense.problem import (
    Array,
    FieldProblem,
    Whitened,
    apply,
    expected_observation,
    factor,
    log_binomials,
    log_determinant,
    log_observation,
    lower_inverse,
    multiply,
    select_loci,
    transpose,
    whiten,
)

# METHOD: shares of the components and their sizes, tried on loci with and without conversion error and with all reads
# alike, for the smallest Monte Carlo errors where they are largest.
SHARES = (0.55, 0.13, 0.12, 0.12, 0.08)  # the Gaussian, moved, widened, with half the reads, the prior
MOVE = 2.0  # SDs along the direction of skewness
MOVED_SD = 1.7  # in that direction
WIDENED_SD = 1.15
BATCHES = 40  # whose spread gives the errors
LARGEST_SLAB = 2**19  # numbers drawn at once
FEWEST_DRAWS = 4000
SMALLEST_RANGE = 1e-6  # of log weights that have a tail to speak of


class ExactField(NamedTuple):
    """Reference values at L loci, each with its Monte Carlo standard error."""

    log_evidence: Array  # [L], nats, binomial coefficients and normalized priors included
    log_evidence_se: Array  # [L]
    mean: Array  # [L, M]
    mean_se: Array  # [L, M]
    sd: Array  # [L, M]
    sd_se: Array  # [L, M]
    khat: Array  # [L], Pareto shape of the weights (Vehtari et al. 2024); trust below min(1 - 1/log10 draws, 0.7)
    effective_draws: Array  # [L]


class _Proposal(NamedTuple):
    """u = mean + root z with the first component standard normal in z; the K components and the problem in z."""

    mean: Array  # [L, M]
    root: Array  # [L, M, M], lower
    shift: Array  # [L, K, M], component k is shift + scale times a standard normal
    scale: Array  # [L, K, M, M], lower
    inverse_scale: Array  # [L, K, M, M]
    log_scale: Array  # [L, K], log-determinant of scale
    level_mean: Array  # [L, S]
    level_root: Array  # [L, S, M], eta = level_mean + level_root z
    prior_mean: Array  # [L, M]
    prior_root: Array  # [L, M, M], w = prior_mean + prior_root z with w ~ N(0, I) in the prior
    log_prior_root: Array  # [L], log-determinant


def exact_field(problem: FieldProblem, draws: int, seed: int) -> ExactField:
    """Importance sampling with at least `draws` draws at every locus."""
    if draws < FEWEST_DRAWS:
        raise ValueError(f"exact_field needs at least {FEWEST_DRAWS} draws, got {draws}")
    size = -(-draws // BATCHES)
    proposal = _proposal(problem, whiten(problem))
    loci = max(1, LARGEST_SLAB // (size * max(problem.loading.shape[-2:])))
    parts = []
    for number, start in enumerate(range(0, len(problem.meth), loci)):
        part = slice(start, start + loci)
        rng = np.random.default_rng([seed, number])
        parts.append(_sample(select_loci(problem, part), _Proposal(*(array[part] for array in proposal)), size, rng))
    return ExactField(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _proposal(problem: FieldProblem, white: Whitened) -> _Proposal:
    mean, covariance = _gaussian(problem)
    root, inverse_root = factor(covariance)
    _, at_half = _gaussian(problem._replace(meth=0.5 * problem.meth, total=0.5 * problem.total))
    level_mean, level_root = apply(problem.loading, mean), problem.loading @ root
    skewed = _skew_direction(problem, level_mean, level_root)
    identity = np.broadcast_to(np.eye(mean.shape[1]), covariance.shape)
    moved = factor(identity + (MOVED_SD**2 - 1.0) * skewed[:, :, None] * skewed[:, None, :])[0]
    to_prior = multiply(inverse_root, problem.prior_mean - mean)
    shift = np.stack([0.0 * mean, MOVE * skewed, 0.0 * mean, 0.0 * mean, to_prior], axis=1)
    scales = (identity, moved, WIDENED_SD * identity, inverse_root @ factor(at_half)[0], inverse_root @ white.root)
    scale = np.stack(scales, axis=1)
    prior_root = white.inverse_root @ root
    return _Proposal(
        mean=mean,
        root=root,
        shift=shift,
        scale=scale,
        inverse_scale=lower_inverse(scale),
        log_scale=0.5 * log_determinant(scale),
        level_mean=level_mean,
        level_root=level_root,
        prior_mean=multiply(white.inverse_root, mean - problem.prior_mean),
        prior_root=prior_root,
        log_prior_root=0.5 * log_determinant(prior_root),
    )


def _skew_direction(problem: FieldProblem, level_mean: Array, level_root: Array) -> Array:
    """Where the observations' third derivatives move the mean of z, to first order, as a unit vector [L, M]."""
    variance = (level_root**2).sum(-1)
    direction = multiply(transpose(level_root), expected_observation(problem, level_mean, variance)[3] * variance)
    length = np.sqrt((direction**2).sum(-1, keepdims=True))
    return direction / np.where(length > 0.0, length, 1.0)  # without reads there is none


def _gaussian(problem: FieldProblem) -> tuple[Array, Array]:
    """Mean and covariance by EP, or by Laplace's method where EP has not converged."""
    found = ep(problem)
    at = np.flatnonzero(~found.converged)
    if len(at):
        other = laplace(select_loci(problem, at))
        found.mean[at], found.covariance[at] = other.mean, other.covariance
    return found.mean, found.covariance


class _Sums(NamedTuple):
    """Sums over draws, which batches add up; d = u - the proposal's mean."""

    weight: Array  # [L]
    first: Array  # [L, M], of weight d
    second: Array  # [L, M], of weight d^2
    gaussian_first: Array  # [L, M], of d over the draws of the first component
    gaussian_second: Array  # [L, M]
    draws: Array  # [1]
    gaussian_draws: Array  # [1]


def _sample(problem: FieldProblem, proposal: _Proposal, size: int, rng: np.random.Generator) -> ExactField:
    """BATCHES batches of `size` draws at each locus."""
    log_weight = np.empty((len(problem.meth), BATCHES, size))
    batches = []
    for k in range(BATCHES):
        z, log_weight[:, k] = _draw(problem, proposal, size, rng)
        batches.append(_sum(log_weight[:, k] - log_weight[:, 0].max(-1, keepdims=True), z, proposal.root))
    whole = reduce(_add, batches)
    log_mean_weight, mean, sd = _estimate(whole, proposal.root)
    # Jackknife: everything is a function of sums over draws, so a batch is left out by subtraction.
    without = [_estimate(_add(whole, part, -1), proposal.root) for part in batches]
    errors = [np.sqrt((BATCHES - 1) * np.var(np.stack(column), axis=0)) for column in zip(*without, strict=True)]
    flat = log_weight.reshape(len(log_weight), -1)
    relative = np.exp(flat - flat.max(-1, keepdims=True))
    return ExactField(
        log_evidence=log_mean_weight + log_weight[:, 0].max(-1) + log_binomials(problem),
        log_evidence_se=errors[0],
        mean=proposal.mean + mean,
        mean_se=errors[1],
        sd=sd,
        sd_se=errors[2],
        khat=_pareto_shape(flat),
        effective_draws=relative.sum(-1) ** 2 / (relative**2).sum(-1),
    )


def _add(one: _Sums, other: _Sums, sign: int = 1) -> _Sums:
    return _Sums(*(a + sign * b for a, b in zip(one, other, strict=True)))


def _draws_of_components(size: int) -> list[int]:
    """Draws of every component among `size`."""
    others = [round(share * size) for share in SHARES[1:]]
    return [size - sum(others), *others]


def _draw(problem: FieldProblem, proposal: _Proposal, size: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draws z [L, size, M] of the mixture, component by component, and their log weights [L, size]."""
    loci, dimensions = proposal.mean.shape
    counts = _draws_of_components(size)
    z = rng.standard_normal((loci, size, dimensions))
    ends = np.cumsum(counts)
    for k in range(1, len(counts)):
        part = z[:, ends[k - 1] : ends[k]]
        part[...] = proposal.shift[:, k, None] + part @ transpose(proposal.scale[:, k])
    eta = proposal.level_mean[:, None] + z @ transpose(proposal.level_root)
    w = proposal.prior_mean[:, None] + z @ transpose(proposal.prior_root)
    observations = problem._replace(meth=problem.meth[:, None], total=problem.total[:, None])
    log_density = log_observation(observations, eta).sum(-1) - 0.5 * (w**2).sum(-1) + proposal.log_prior_root[:, None]
    return z, log_density - _log_mixture(proposal, z, np.array(counts) / size)


def _log_mixture(proposal: _Proposal, z: Array, shares: Array) -> Array:
    """Log density [L, size] of the mixture at z [L, size, M], times (2 pi)^(M/2)."""
    total = np.full(z.shape[:2], -np.inf)
    for k, share in enumerate(shares):
        standard = z
        if k > 0:
            standard = (z - proposal.shift[:, k, None]) @ transpose(proposal.inverse_scale[:, k])
        log_density = np.log(share) - 0.5 * (standard**2).sum(-1) - proposal.log_scale[:, k, None]
        total = np.logaddexp(total, log_density)
    return total


def _sum(log_weight: Array, z: Array, root: Array) -> _Sums:
    weight, offset = np.exp(log_weight), z @ transpose(root)
    size = offset.shape[1]
    gaussian = offset[:, : _draws_of_components(size)[0]]
    return _Sums(
        weight=weight.sum(1),
        first=multiply(transpose(offset), weight),
        second=multiply(transpose(offset**2), weight),
        gaussian_first=gaussian.sum(1),
        gaussian_second=(gaussian**2).sum(1),
        draws=np.array([float(size)]),
        gaussian_draws=np.array([float(gaussian.shape[1])]),
    )


def _estimate(sums: _Sums, root: Array) -> tuple[Array, Array, Array]:
    """Log of the mean weight [L]; mean of d and SD [L, M], less what the first component's draws are off by."""
    weight = sums.weight[:, None]
    mean = sums.first / weight - sums.gaussian_first / sums.gaussian_draws
    square = sums.second / weight - sums.gaussian_second / sums.gaussian_draws + (root**2).sum(-1)
    return np.log(sums.weight / sums.draws), mean, np.sqrt(square - mean**2)


def _pareto_shape(log_weight: Array) -> Array:
    """k-hat of the weights [L, draws], [L]; nan where they are all the same."""
    from arviz_stats.base import array_stats  # imported where needed: it is slow to load

    khat = np.full(len(log_weight), np.nan)
    uneven = np.flatnonzero(np.ptp(log_weight, axis=1) > SMALLEST_RANGE)
    if len(uneven):
        khat[uneven] = array_stats.psislw(-log_weight[uneven], axis=-1)[1]  # it negates what it is given
    return khat
