"""Posterior of the rates that the loci of a class share, and what the likelihood says of their ratio.

Unknowns, each on the logit scale, with priors that are weak but proper:

    alpha, beta                       Beta(1/2, 20)
    eps0, eps1, dispersion            Beta(1, 20): small, as conversion and calling errors are
    founder proportions               uniform over the simplex

The gradient of the log likelihood is exact: with p the factors of the product over nodes and samples,

    d log L / d theta = sum over factors of (expected number of uses | reads) * d log p / d theta      (Fisher)

and one pass over the loci gives the expected numbers; memory does not grow with the number of loci. The posterior is
sampled, not taken for a Gaussian: draws from a Student t at the mode are weighted by the exact posterior, the weights
smoothed by their Pareto tail (Vehtari et al. 2024, Journal of Machine Learning Research 25:72), and the t moved to the
draws' moments while the tail is heavy. A quantile is that of the Gaussian with the t's centre and covariance, plus what
the draws say it is off by: the difference between their quantiles weighted for the posterior and for that Gaussian. In
large classes, where the posterior is nearly Gaussian, few draws are enough for that.

# METHOD: given rates and errors, loci are independent. Neighbouring sites that change together make the posterior too
narrow; where the loci come as blocks of neighbours, the spread of the blocks' scores shows by how much, and the draws
of alpha and beta are stretched accordingly (`stretch`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit, logsumexp
from scipy.stats import chi2, norm, qmc
from torch import Tensor

from epivi.lineage import kernel
from epivi.lineage.elimination import EliminationPlan
from epivi.lineage.emission import CountPairs, LineageEmission, log_probability
from epivi.lineage.likelihood import EpimutationRates, shared_values

Array = NDArray[np.float64]

# METHOD: below 1e-2 the prior of the rates is Jeffreys's of a Poisson count, as which changes come: it weighs as much
# as half a change. One that is flat in the logarithm of the rates pulls towards zero where there are few changes:
# intervals of 2,000 sites of 13 plants then lay below the truth in 12 of 160 cases and above it in 2.
RATE_PRIOR = (0.5, 20.0)  # of alpha and beta
ERROR_PRIOR = (1.0, 20.0)  # of eps0, eps1 and dispersion
UNKNOWNS = ("alpha", "beta", "false_methylated", "false_unmethylated", "dispersion", "founder_um", "founder_mm")
RATES = ("alpha", "beta")
START = np.array([*logit([1e-4, 1e-4, 0.01, 0.01, 0.02]), -2.0, 0.0])
NO_RATE = 1e-12  # stands for a rate of zero
# METHOD: a rate whose absence costs the likelihood less than this (half of the 95 % quantile of chi-squared with one
# degree of freedom) has an upper limit only.
LEAST_DROP = 1.92
DEGREES_OF_FREEDOM = 5  # of the t that is drawn from
ROUNDS = 5
ENOUGH_KHAT = 0.5
# METHOD: small classes have skewed posteriors, whose tails take many draws, and large ones nearly Gaussian posteriors.
FEWEST_DRAWS, MOST_DRAWS, LOCI_DRAWN = 128, 1024, 50_000_000  # the last: loci times draws in between
DRAWS_AT_ONCE = 128  # each with a table of the pairs of reads
HESSIAN_STEP = 1e-3
LEAST_CURVATURE = 0.05  # of the log posterior: a standard deviation of 4.5 on the logit scale
GRADIENT_TOLERANCE = 1e-7  # nats a locus


class ClassReads(NamedTuple):
    """Reads of the loci of one class."""

    pairs: CountPairs
    # Encoded reads int32 [S, L] (epivi.lineage.emission.encode), the same at every call, in pieces of any size;
    # the pieces are the blocks of neighbouring loci where the posterior is to be stretched.
    chunks: Callable[[], Iterable[NDArray[np.int32]]]


class RatePosterior(NamedTuple):
    """D weighted draws of the rates and of what goes with them."""

    alpha: Array  # [D]
    beta: Array  # [D]
    false_methylated: Array  # [D], eps0
    false_unmethylated: Array  # [D], eps1
    dispersion: Array  # [D]
    founder: Array  # [D, 3]
    weight: Array  # [D], sum to one
    gaussian_weight: Array  # [D], sum to one: of the draws for the Gaussian of the next two
    gaussian_mean: Array  # [5], of the logits of alpha to dispersion
    gaussian_sd: Array  # [5]
    mode: Array  # [7], of the posterior density on the unconstrained scale, in the order of UNKNOWNS
    log_likelihood: float  # at the mode, nats
    log_evidence: float  # of all loci together, nats
    khat: float  # Pareto shape of the weights: below 0.7 the draws can be trusted
    drop: Array  # [2], nats that the largest likelihood loses without gains, without losses
    stretch: Array  # [2], factor of the intervals of log alpha and log beta for what blocks share; 1 without blocks
    loci: int

    def quantile(self, name: str, level: float) -> float:
        """Quantile of alpha, beta, false_methylated, false_unmethylated or dispersion."""
        place = UNKNOWNS.index(name)
        value = logit(getattr(self, name))
        correction = weighted_quantile(value, self.weight, level) - weighted_quantile(
            value, self.gaussian_weight, level
        )
        gaussian = self.gaussian_mean[place] + self.gaussian_sd[place] * norm.ppf(level)
        return float(expit(gaussian + correction))

    def interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """Central interval; it starts at zero for a rate without which the data are about as likely (LEAST_DROP).

        Its upper end stays that of the central one: choosing between a two-sided and a narrower one-sided interval by
        the data would cover too little.
        """
        upper = self.quantile(name, (1 + level) / 2)
        if name in RATES and self.drop[RATES.index(name)] < LEAST_DROP:
            return 0.0, upper
        return self.quantile(name, (1 - level) / 2), upper


def weighted_quantile(value: Array, weight: Array, level: float) -> float:
    """Quantile of weighted draws, [D] each."""
    order = np.argsort(value)
    cumulative = np.cumsum(weight[order]) - weight[order] / 2
    return float(np.interp(level, cumulative, value[order]))


class RatioProfile(NamedTuple):
    """The largest log likelihood at given ratios of loss to gain, R of them."""

    ratio: Array  # [R], beta / alpha
    log_likelihood: Array  # [R], nats
    alpha: Array  # [R]
    beta: Array  # [R]

    def supported(self) -> tuple[float, float]:
        """Least and largest ratio within LEAST_DROP of the best; where that is the first or last, there is no limit."""
        kept = self.ratio[self.log_likelihood >= self.log_likelihood.max() - LEAST_DROP]
        return float(kept.min()), float(kept.max())


# ------------------------------------------------------------------------------------------------------------ objective


def unpack(unknowns: Tensor) -> tuple[EpimutationRates, LineageEmission]:
    """Rates and emission from unconstrained unknowns [..., 7]."""
    alpha, beta, eps0, eps1, dispersion = torch.sigmoid(unknowns[..., :5]).unbind(-1)
    founder = torch.softmax(torch.nn.functional.pad(unknowns[..., 5:], (1, 0)), -1)
    return EpimutationRates(alpha, beta, founder), LineageEmission(eps0, eps1, dispersion)


def log_prior(unknowns: Tensor) -> Tensor:
    """Log density of the priors on the unconstrained scale, [...] from [..., 7]; normalized."""
    rates, errors = _log_beta(unknowns[..., :2], RATE_PRIOR), _log_beta(unknowns[..., 2:5], ERROR_PRIOR)
    founder = torch.softmax(torch.nn.functional.pad(unknowns[..., 5:], (1, 0)), -1)
    # The Jacobian of the softmax is the product of what it gives.
    return rates + errors + math.log(2.0) + founder.log().sum(-1)


def _log_beta(logits: Tensor, shapes: tuple[float, float]) -> Tensor:
    """Log density of Beta variables on the logit scale, added up along the last axis."""
    a, b = shapes
    logsigmoid = torch.nn.functional.logsigmoid
    constant = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    # The Jacobian of the logistic function raises both exponents by one.
    return (constant + a * logsigmoid(logits) + b * logsigmoid(-logits)).sum(-1)


class RateObjective:
    """Log likelihood and log prior of a class with their gradients."""

    def __init__(self, plan: EliminationPlan, reads: ClassReads, threads: int) -> None:
        self._plan, self._arrays = plan, kernel.plan_arrays(plan)
        self._reads, self._threads = reads, threads
        self._meth, self._total = torch.as_tensor(reads.pairs.meth), torch.as_tensor(reads.pairs.total)
        self.loci = sum(codes.shape[1] for codes in reads.chunks())

    def _factors(self, unknowns: Tensor) -> tuple[Tensor, Tensor]:
        """Shared values [..., R] and log probabilities of the pairs [..., K, 3] from unknowns [..., 7]."""
        rates, emission = unpack(unknowns)
        return shared_values(self._plan, rates), log_probability(emission, self._meth, self._total)

    def likelihoods(self, unknowns: Array) -> Array:
        """Nats of all loci at D points [D, 7]; the chunks are read once for all of them."""
        shared, table = (value.numpy() for value in self._factors(torch.as_tensor(unknowns)))
        totals = np.zeros(len(unknowns))
        for codes in self._reads.chunks():
            for place, (values, log_probabilities) in enumerate(zip(shared, table, strict=True)):
                reads = kernel.reads_table(codes, log_probabilities)
                totals[place] += kernel.log_likelihoods(self._arrays, values[None], reads, self._threads).sum()
        return totals

    def likelihood(self, unknowns: Array) -> float:
        """Nats of all loci."""
        return float(self.likelihoods(unknowns[None])[0])

    def posterior(self, unknowns: Array) -> tuple[float, Array]:
        """Log posterior density up to a constant, and its gradient [7]."""
        variable = torch.tensor(unknowns, requires_grad=True)
        shared, table = self._factors(variable)
        value, used, pairs = 0.0, torch.zeros_like(shared), torch.zeros_like(table)
        for found in self._counts(shared, table):
            value += found.log_likelihood
            used += torch.as_tensor(found.shared)
            pairs += torch.as_tensor(found.pairs)
        prior = log_prior(variable)
        slopes = (used, pairs, torch.ones_like(prior))
        (slope,) = torch.autograd.grad((shared.log(), table, prior), variable, slopes)
        return value + prior.item(), slope.numpy()

    def scores(self, unknowns: Array) -> Array:
        """Each chunk's gradient of the log likelihood [B, 7]."""
        variable = torch.tensor(unknowns, requires_grad=True)
        shared, table = self._factors(variable)
        log_shared = shared.log()
        scores = []
        for found in self._counts(shared, table):
            slopes = (torch.as_tensor(found.shared), torch.as_tensor(found.pairs))
            scores.append(torch.autograd.grad((log_shared, table), variable, slopes, retain_graph=True)[0].numpy())
        return np.array(scores)

    def _counts(self, shared: Tensor, table: Tensor) -> Iterator[kernel.ExpectedCounts]:
        """Expected counts of each chunk."""
        values, log_probabilities = shared.detach().numpy(), table.detach().numpy()
        for codes in self._reads.chunks():
            reads = kernel.reads_table(codes, log_probabilities)
            yield kernel.expected_counts(self._arrays, values, reads, self._threads)


def _maximize(
    function: Callable[[Array], tuple[float, Array]], start: Array, free: Array, loci: int
) -> tuple[Array, float]:
    """The largest value over start + free @ x, and the unknowns there; free: [7, F].

    Raises RuntimeError where the search does not converge.
    """

    def negative(x: Array) -> tuple[float, Array]:
        value, slope = function(start + free @ x)
        return -value / loci, -(slope @ free) / loci

    found = minimize(
        negative,
        np.zeros(free.shape[1]),
        jac=True,
        method="BFGS",
        options={"gtol": GRADIENT_TOLERANCE, "maxiter": 300},
    )
    if not found.success and np.abs(found.jac).max() > 100 * GRADIENT_TOLERANCE:
        raise RuntimeError(f"the search for the rates did not converge: {found.message}")
    return start + free @ found.x, -float(found.fun) * loci


def _information(objective: RateObjective, mode: Array) -> Array:
    """Negative Hessian of the log posterior at its mode, [7, 7], by central differences of the exact gradient."""
    slopes = [
        (objective.posterior(mode + step)[1] - objective.posterior(mode - step)[1]) / (2 * HESSIAN_STEP)
        for step in np.eye(len(mode)) * HESSIAN_STEP
    ]
    hessian = -(np.array(slopes) + np.array(slopes).T) / 2
    values, vectors = np.linalg.eigh(hessian)
    # In a nearly flat direction the difference can come out negative.
    result: Array = (vectors * np.maximum(values, LEAST_CURVATURE)) @ vectors.T
    return result


# ------------------------------------------------------------------------------------------------------------ posterior


def rate_posterior(
    plan: EliminationPlan,
    reads: ClassReads,
    *,
    seed: int,
    draws: int | None = None,
    blocks: bool = False,
    threads: int = 1,
) -> RatePosterior:
    """Posterior of the rates of a class under shared rates.

    draws: a power of two; None: as many as a class of this size needs. blocks: whether the chunks are blocks of
    neighbouring loci, whose scores stretch the posterior of the rates. Raises RuntimeError where the search for the
    mode does not converge.
    """
    objective = RateObjective(plan, reads, threads)
    if draws is None:
        largest_power = 1 << max(LOCI_DRAWN // objective.loci, 1).bit_length() - 1
        draws = min(max(largest_power, FEWEST_DRAWS), MOST_DRAWS)
    mode, _ = _maximize(objective.posterior, START, np.eye(len(START)), objective.loci)
    largest = objective.likelihood(mode)
    information = _information(objective, mode)
    covariance = np.asarray(np.linalg.inv(information), dtype=np.float64)
    drawn = _importance_draws(objective, mode, covariance, draws, seed)
    drop = np.array([largest - _without(objective, mode, rate) for rate in range(len(RATES))])
    stretch = _stretch(objective.scores(mode), information) if blocks else np.ones(2)
    weight = np.exp(drawn.log_weight - logsumexp(drawn.log_weight))
    gaussian_weight = np.exp(drawn.log_gaussian - logsumexp(drawn.log_gaussian))
    unknowns, mean, sd = drawn.unknowns, drawn.centre.copy(), np.sqrt(np.diag(drawn.covariance))
    middle = weight @ unknowns[:, :2]
    for rates_of in (unknowns[:, :2], mean[:2]):
        rates_of[...] = middle + (rates_of - middle) * stretch
    sd[:2] *= stretch
    rates, emission = unpack(torch.as_tensor(unknowns))
    return RatePosterior(
        alpha=rates.alpha.numpy(),
        beta=rates.beta.numpy(),
        false_methylated=emission.false_methylated.numpy(),
        false_unmethylated=emission.false_unmethylated.numpy(),
        dispersion=emission.dispersion.numpy(),
        founder=rates.founder.numpy(),
        weight=weight,
        gaussian_weight=gaussian_weight,
        gaussian_mean=mean[:5],
        gaussian_sd=sd[:5],
        mode=mode,
        log_likelihood=largest,
        log_evidence=float(logsumexp(drawn.log_weight) - math.log(draws)),
        khat=drawn.khat,
        drop=drop,
        stretch=stretch,
        loci=objective.loci,
    )


class _Draws(NamedTuple):
    """Draws from a Student t and their weights."""

    unknowns: Array  # [D, 7]
    log_weight: Array  # [D], of the posterior, smoothed
    log_gaussian: Array  # [D], of the Gaussian with the t's centre and covariance
    khat: float
    centre: Array  # [7]
    covariance: Array  # [7, 7]


def _importance_draws(objective: RateObjective, mode: Array, covariance: Array, draws: int, seed: int) -> _Draws:
    """Draws with their weights, from the round with the lightest tail."""
    rounds: list[_Draws] = []
    centre = mode
    while not rounds or (rounds[-1].khat >= ENOUGH_KHAT and len(rounds) < ROUNDS):
        standard, log_density = _student(len(mode), draws, [seed, len(rounds)])
        root = np.linalg.cholesky(covariance)
        unknowns = centre + standard @ root.T
        log_volume = np.log(np.diag(root)).sum()
        prior = log_prior(torch.as_tensor(unknowns)).numpy()
        likelihood = [objective.likelihoods(some) for some in np.array_split(unknowns, -(-draws // DRAWS_AT_ONCE))]
        log_posterior = np.concatenate(likelihood) + prior
        log_weight, khat = _smoothed(log_posterior - (log_density - log_volume))
        rounds.append(_Draws(unknowns, log_weight, -(standard**2).sum(1) / 2 - log_density, khat, centre, covariance))
        weight = np.exp(log_weight - logsumexp(log_weight))
        centre = weight @ unknowns
        away = unknowns - centre
        # A tenth of the old spread keeps directions in which all the weight lies on few draws.
        covariance = 0.9 * (away * weight[:, None]).T @ away + 0.1 * covariance
    return min(rounds, key=lambda found: found.khat)


def _student(size: int, draws: int, seed: list[int]) -> tuple[Array, Array]:
    """Quasi-random draws [D, P] of a standard Student t, and the logarithm of its density [D]."""
    freedom = DEGREES_OF_FREEDOM
    uniform = qmc.Sobol(size + 1, seed=np.random.default_rng(seed)).random(draws).clip(1e-12, 1 - 1e-12)
    normal = norm.ppf(uniform[:, :size])
    standard = normal * np.sqrt(freedom / chi2.ppf(uniform[:, size], freedom))[:, None]
    constant = math.lgamma((freedom + size) / 2) - math.lgamma(freedom / 2) - size / 2 * math.log(freedom * math.pi)
    return standard, constant - (freedom + size) / 2 * np.log1p((standard**2).sum(1) / freedom)


def _smoothed(log_weight: Array) -> tuple[Array, float]:
    """Log weights with their tail smoothed, on the scale of the given ones, and its Pareto shape."""
    from arviz_stats.base import array_stats  # imported where needed: it is slow to load

    smooth, khat = array_stats.psislw(-log_weight)  # it negates what it is given, and normalizes what it gives
    return smooth + logsumexp(log_weight), float(khat)


def _without(objective: RateObjective, mode: Array, rate: int) -> float:
    """The largest log likelihood with one rate at zero; the other unknowns keep their priors."""
    start = mode.copy()
    start[rate] = logit(NO_RATE)
    free = np.delete(np.eye(len(mode)), rate, axis=1)
    unknowns, _ = _maximize(objective.posterior, start, free, objective.loci)
    return objective.likelihood(unknowns)


def _stretch(scores: Array, information: Array) -> Array:
    """Ratio of the SDs of log alpha and log beta from the spread of B blocks' scores [B, 7] to those without, [2].

    Sandwich of Huber; never below one.
    """
    blocks = len(scores)
    if blocks <= scores.shape[1]:
        raise ValueError(f"{blocks} blocks: expected more than {scores.shape[1]}")
    spread = (scores - scores.mean(0)).T @ (scores - scores.mean(0)) * blocks / (blocks - 1)
    covariance = np.linalg.inv(information)
    sandwich = covariance @ spread @ covariance
    result: Array = np.sqrt(np.maximum(np.diag(sandwich) / np.diag(covariance), 1.0))[:2]
    return result


# --------------------------------------------------------------------------------------------------- what is identified


def profile_ratio(
    plan: EliminationPlan, reads: ClassReads, posterior: RatePosterior, ratios: Array, *, threads: int = 1
) -> RatioProfile:
    """The largest likelihood at each ratio of loss to gain, odds of beta over odds of alpha, which is beta / alpha for
    small rates; the errors and proportions of founders keep their priors.

    Raises RuntimeError where a search does not converge.
    """
    objective = RateObjective(plan, reads, threads)
    free = np.eye(len(START))[:, 1:]
    free[:2, 0] = 1.0  # both rates move together

    def nuisance_posterior(unknowns: Array) -> tuple[float, Array]:
        value, slope = objective.posterior(unknowns)
        # The rates' priors would tilt the profile.
        rates, (a, b) = expit(unknowns[:2]), RATE_PRIOR
        slope[:2] -= a * (1 - rates) - b * rates
        return value - _log_beta(torch.as_tensor(unknowns[:2]), RATE_PRIOR).item(), slope

    found = []
    start = posterior.mode.copy()
    for ratio in ratios:
        start[:2] = start[:2].mean() + np.array([-0.5, 0.5]) * math.log(ratio)
        start, _ = _maximize(nuisance_posterior, start, free, objective.loci)
        rates, _ = unpack(torch.as_tensor(start))
        found.append((objective.likelihood(start), rates.alpha.item(), rates.beta.item()))
    value, alpha, beta = np.array(found).T
    return RatioProfile(ratios, value, alpha, beta)
