"""Two published hierarchical models, laid out for the engine, the reference methods, sampling and plain quadrature.

    r_s ~ Binomial(n_s, sigmoid(x_s' a + b_s)),    b_s ~ N(0, sigma^2),    a ~ N(0, effect_sd^2)

The surgical example (twelve hospitals, x = 1) and the seeds example (21 plates, two factors and their interaction) of
the BUGS project. Every hospital or plate is an individual of its own with one sample. Given sigma this is a field of
independent individuals; the integral over t = log sigma, with the example's own prior, is done here by the trapezoid
rule, whose error falls exponentially in the step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from scipy.special import expit, gammaln, logsumexp
from torch import Tensor

from epivi.field.compiled.field import field_arrays
from epivi.field.compiled.nodes import NodeResults, evaluate_nodes
from epivi.field.dense.importance import exact_field
from epivi.field.dense.methods import FIELD_METHODS
from epivi.field.dense.problem import FieldProblem, FieldVariances, build_field_problem
from epivi.field.layout import Cohort, LatentField

Array = NDArray[np.float64]

STEP = 0.25  # of log sigma; the posterior's SD is .4 and more
GAMMA = 1e-3  # shape and rate of the precision's prior


class Oracle(NamedTuple):
    """One example with one prior: S samples, each of an individual of its own unless `individual` says otherwise."""

    name: str
    successes: NDArray[np.int64]  # [S]
    trials: NDArray[np.int64]  # [S]
    design: Array  # [S, P], first column the intercept
    individual: NDArray[np.int32]  # [S]
    effect_sd: float
    log_prior: Callable[[Array], Array]  # density of t = log sigma
    sigma_site: Callable[[int], Tensor]  # the same prior as a Pyro site, of so many copies
    log_sigma: Array  # [J], nodes of the trapezoid rule


class Moments(NamedTuple):
    """The P effects and then sigma, [P + 1]; nats, binomial coefficients and normalized priors included."""

    log_evidence: float
    mean: Array
    sd: Array


# --- the two examples ------------------------------------------------------------------------------------------------


def _log_gamma_precision(t: Array) -> Array:
    """sigma^-2 ~ Gamma(GAMMA, GAMMA), as a density of t."""
    return GAMMA * np.log(GAMMA) - gammaln(GAMMA) + np.log(2.0) - 2.0 * GAMMA * t - GAMMA * np.exp(-2.0 * t)


def _gamma_precision_site(copies: int) -> Tensor:
    shape = torch.full((copies,), GAMMA, dtype=torch.float64)
    return pyro.sample("precision", dist.Gamma(shape, shape)).rsqrt()


def _log_half_cauchy(t: Array) -> Array:
    """sigma ~ half-Cauchy(1), as a density of t."""
    return np.log(2.0 / np.pi) - np.log1p(np.exp(2.0 * t)) + t


def _half_cauchy_site(copies: int) -> Tensor:
    return pyro.sample("sigma", dist.HalfCauchy(torch.ones(copies, dtype=torch.float64)))


def surgical() -> Oracle:
    """mu ~ N(0, 10^6), of variance a million."""
    trials = np.array([47, 148, 119, 810, 211, 196, 148, 215, 207, 97, 256, 360])
    deaths = np.array([0, 18, 8, 46, 8, 13, 9, 31, 14, 8, 29, 24])
    return Oracle(
        "surgical", deaths, trials, np.ones((12, 1)), np.arange(12, dtype=np.int32), 1000.0,
        _log_gamma_precision, _gamma_precision_site, np.arange(-5.5, 3.0, STEP),
    )  # fmt: skip


def seeds(original: bool) -> Oracle:
    """With the priors of the original, or with a ~ N(0, 1) and sigma ~ half-Cauchy(1)."""
    germinated = np.array([10, 23, 23, 26, 17, 5, 53, 55, 32, 46, 10, 8, 10, 8, 23, 0, 3, 22, 15, 32, 3])
    trials = np.array([39, 62, 81, 51, 39, 6, 74, 72, 51, 79, 13, 16, 30, 28, 45, 4, 12, 41, 30, 51, 7])
    seed, extract = np.repeat([0, 1], [11, 10]), np.repeat([0, 1, 0, 1], [5, 6, 5, 5])
    design = np.stack([np.ones(21), seed, extract, seed * extract], axis=1).astype(np.float64)
    if original:
        prior = (1000.0, _log_gamma_precision, _gamma_precision_site, np.arange(-5.5, 3.0, STEP))
    else:  # its density does not vanish at sigma = 0: 1e-5 of it lies below the grid
        prior = (1.0, _log_half_cauchy, _half_cauchy_site, np.arange(-11.0, 3.0, STEP))
    return Oracle(f"seeds_{'original' if original else 'weak'}", germinated, trials, design,
                  np.arange(21, dtype=np.int32), *prior)  # fmt: skip


ORACLES = {oracle.name: oracle for oracle in (surgical(), seeds(True), seeds(False))}


def with_reads(oracle: Oracle, individual: int, successes: int) -> Oracle:
    """The same data and one more sample of an individual, of `successes` trials that all succeed.

    The ratio of the evidences is the posterior mean of that individual's success probability to that power.
    """
    return oracle._replace(
        successes=np.append(oracle.successes, successes),
        trials=np.append(oracle.trials, successes),
        design=np.concatenate([oracle.design, oracle.design[individual : individual + 1]]),
        individual=np.append(oracle.individual, np.int32(individual)),
    )


# --- the engine and the reference methods, nested over log sigma ------------------------------------------------------


def independent_field(oracle: Oracle) -> LatentField:
    """Every individual a block of its own, with a deviation of its own and nothing else."""
    individuals = int(oracle.individual.max()) + 1
    none, effects = np.zeros(0, dtype=np.int32), oracle.design.shape[1]
    return LatentField(
        latent_of_sample=oracle.individual,
        block_start=np.arange(individuals + 1, dtype=np.int32),
        entry_start=np.zeros(individuals + 1, dtype=np.int32),
        entry_component=none,
        entry_row=none,
        entry_column=none,
        entry_exponent=none,
        entry_coefficient=np.zeros(0),
        components=0,
        design=oracle.design,
        design_column=np.arange(effects - 1, dtype=np.int32),
        individual=np.arange(individuals, dtype=np.int32),
    )


def evaluate_engine(oracle: Oracle, method: str) -> NodeResults:
    """The compiled inner integral at every node of log sigma, [1, J]."""
    samples, effects = oracle.design.shape
    t = np.concatenate([[-1.0], oracle.log_sigma])  # the first node only starts the others
    variances = np.exp(2.0 * t)[None, :, None]
    results = evaluate_nodes(
        field_arrays(independent_field(oracle), np.zeros(samples), np.zeros(samples)),
        oracle.successes[None].astype(np.uint16),
        oracle.trials[None].astype(np.uint16),
        variances,
        np.zeros((1, len(t))),
        np.ones(1),
        np.zeros(1),
        np.full(1, oracle.effect_sd),
        np.full(effects - 1, oracle.effect_sd),
        method=method,
    )
    return NodeResults(*(array[:, 1:] for array in results[:-1]), results.central_step)


def outer_weights(oracle: Oracle, log_evidence: Array) -> tuple[float, Array]:
    """Log evidence, and the posterior weight of every node of log sigma, from the inner log evidences [J]."""
    log_density = log_evidence + oracle.log_prior(oracle.log_sigma)
    total = logsumexp(log_density)
    return float(total + np.log(oracle.log_sigma[1] - oracle.log_sigma[0])), np.exp(log_density - total)


def mixture_moments(weight: Array, mean: Array, variance: Array) -> tuple[Array, Array]:
    """Mean and SD of mixtures with weights [J] of distributions with mean and variance [J, ...]."""
    centre = np.tensordot(weight, mean, 1)
    return centre, np.sqrt(np.tensordot(weight, variance + (mean - centre) ** 2, 1))


def _with_sigma(oracle: Oracle, log_evidence: Array, mean: Array, variance: Array) -> Moments:
    """Effects' moments [J, P] and sigma mixed over the nodes."""
    sigma = np.exp(oracle.log_sigma)[:, None]
    total, weight = outer_weights(oracle, log_evidence)
    both = mixture_moments(weight, np.append(mean, sigma, axis=1), np.append(variance, 0 * sigma, axis=1))
    return Moments(total, *both)


def nested_by_engine(oracle: Oracle, method: str) -> Moments:
    """By the compiled kernel."""
    found = evaluate_engine(oracle, method)
    return _with_sigma(oracle, found.log_evidence[0], found.effect_mean[0], found.effect_variance[0])


def individual_by_engine(oracle: Oracle, method: str, individual: int) -> tuple[float, float]:
    """Posterior mean and SD of an individual's success probability, from evidences with one and two more successes."""
    zeroth, first, second = (
        outer_weights(some, evaluate_engine(some, method).log_evidence[0])[0]
        for some in (oracle, with_reads(oracle, individual, 1), with_reads(oracle, individual, 2))
    )
    mean = np.exp(first - zeroth)
    return float(mean), float(np.sqrt(np.exp(second - zeroth) - mean**2))


def problem_over_sigma(oracle: Oracle) -> FieldProblem:
    """The dense problem with a node of log sigma for every locus; u is the effects and then the deviations."""
    samples, effects = oracle.design.shape
    field = independent_field(oracle)
    names = tuple(map(str, range(samples)))
    none, zero = np.zeros(samples), np.zeros(len(oracle.log_sigma))
    cohort = Cohort(names, names, oracle.individual, none, none, (), (field,))
    counts = (np.tile(array, (len(zero), 1)) for array in (oracle.successes, oracle.trials))
    variances = FieldVariances(np.exp(2.0 * oracle.log_sigma)[:, None], zero)
    return build_field_problem(
        field, cohort, variances, np.zeros(effects), np.full(effects, oracle.effect_sd**2), *counts
    )


def nested_by_reference(oracle: Oracle, method: str) -> Moments:
    """By a dense method at every node, weighted with its own evidence or bound; linear response, which has none, with
    the bound of the mean field that it starts from."""
    problem, effects = problem_over_sigma(oracle), oracle.design.shape[1]
    found = FIELD_METHODS[method](problem)
    if not found.converged.all():
        raise AssertionError(
            f"{method} did not converge at {np.count_nonzero(~found.converged)} nodes of {oracle.name}"
        )
    log_evidence = FIELD_METHODS["meanfield"](problem).log_evidence if method == "lrvb" else found.log_evidence
    variance = np.diagonal(found.covariance, axis1=1, axis2=2)
    return _with_sigma(oracle, log_evidence, found.mean[:, :effects], variance[:, :effects])


def nested_by_sampling(oracle: Oracle, draws: int, seed: int) -> tuple[Moments, float]:
    """By importance sampling of the field at every node; and the log evidence's Monte Carlo standard error."""
    found, effects = exact_field(problem_over_sigma(oracle), draws, seed), oracle.design.shape[1]
    _, weight = outer_weights(oracle, found.log_evidence)
    moments = _with_sigma(oracle, found.log_evidence, found.mean[:, :effects], found.sd[:, :effects] ** 2)
    return moments, float(np.sqrt(((weight * found.log_evidence_se) ** 2).sum()))


# --- plain quadrature, which shares nothing with the engine ----------------------------------------------------------


class Surgical(NamedTuple):
    """Log evidence, and mean and SD of mu, sigma, sigmoid(mu) and every hospital's probability."""

    log_evidence: float
    mean: Array  # [3 + S]
    sd: Array


def surgical_by_quadrature(step_of_mu: float = 0.05, step_of_deviation: float = 0.05) -> Surgical:
    """Trapezoid rules over log sigma, over mu and, hospital by hospital, over its standardized deviation."""
    oracle = surgical()
    mu = np.arange(-6.0, 1.0, step_of_mu)  # its SD is .07 at the least, given sigma
    z = np.arange(-8.0, 8.0, step_of_deviation)
    log_z = -0.5 * z**2 + np.log(step_of_deviation / np.sqrt(2 * np.pi))
    r, n = oracle.successes, oracle.trials
    constant = gammaln(n + 1) - gammaln(r + 1) - gammaln(n - r + 1)
    log_likelihood = np.zeros((len(oracle.log_sigma), len(mu), len(r)))
    moments = np.zeros((2, *log_likelihood.shape))
    for j, sigma in enumerate(np.exp(oracle.log_sigma)):
        eta = mu[:, None] + sigma * z
        softplus, p = np.logaddexp(0.0, eta), expit(eta)
        for i in range(len(r)):
            log_density = r[i] * eta - n[i] * softplus + log_z
            log_likelihood[j, :, i] = constant[i] + logsumexp(log_density, axis=1)
            weight = np.exp(log_density + constant[i] - log_likelihood[j, :, i, None])
            moments[0, j, :, i], moments[1, j, :, i] = (weight * p).sum(1), (weight * p**2).sum(1)
    log_prior_mu = -0.5 * (mu / oracle.effect_sd) ** 2 - np.log(oracle.effect_sd * np.sqrt(2 * np.pi))
    log_joint = log_likelihood.sum(2) + oracle.log_prior(oracle.log_sigma)[:, None] + log_prior_mu
    total = logsumexp(log_joint)
    weight = np.exp(log_joint - total)
    shape = weight.shape
    values = [np.broadcast_to(x, shape) for x in (mu, np.exp(oracle.log_sigma)[:, None], expit(mu))]
    first = np.array([*((weight * x).sum() for x in values), *np.einsum("jm,jmi->i", weight, moments[0])])
    second = np.array([*((weight * x**2).sum() for x in values), *np.einsum("jm,jmi->i", weight, moments[1])])
    return Surgical(float(total + np.log(STEP * step_of_mu)), first, np.sqrt(second - first**2))


# --- the same as Pyro functions --------------------------------------------------------------------------------------


def pyro_model(oracle: Oracle, copies: int) -> None:
    """The example's density as a Pyro model function, the same data `copies` times over like as many loci.

    Sites: `effects` [copies, P], `deviations` [copies, S], and sigma's own [copies].
    """
    successes, trials, design = (
        torch.as_tensor(array, dtype=torch.float64) for array in (oracle.successes, oracle.trials, oracle.design)
    )
    zero = torch.zeros(copies, design.shape[1], dtype=torch.float64)
    identity = torch.eye(len(trials), dtype=torch.float64)
    with pyro.plate("copies", copies):
        effects = pyro.sample("effects", dist.Normal(zero, oracle.effect_sd).to_event(1))
        sigma = oracle.sigma_site(copies)
        normal = dist.MultivariateNormal(0 * trials, scale_tril=sigma[:, None, None] * identity)
        logits = effects @ design.T + pyro.sample("deviations", normal)
        counts = dist.Binomial(trials, logits=logits, validate_args=False)
        pyro.sample("successes", counts.to_event(1), obs=successes.expand(copies, -1))
