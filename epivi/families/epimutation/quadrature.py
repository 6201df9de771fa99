"""Log evidence and posterior of every hypothesis of the family `epimutation`, by quadrature over what loci have of
their own; the states of all nodes are summed out exactly at every point.

    p(D_l | h) ~= sum_q w_q p(D_l | theta_q),    w_q ~ N(z_q; 0, 1) normalized,    theta_q = mean + sd z_q

The points are a regular grid in each parameter, in prior SDs z, the same for all loci of a class, so that transition
tables are made once. On a smooth integrand that vanishes at both ends the trapezoidal rule with step s errs relatively
by 2 exp(-2 pi^2 v^2 / s^2) for a Gaussian of SD v, so that halving the step takes an error d to 2 (d / 2)^4. The
estimate of the error is the larger of two: the first formula for the SDs that the posterior has with the other
parameters fixed, and the second for the grid with every second point. Loci at which it is too large get a grid of half
the step, and of half that. What lies beyond the ends of the grid, and is taken for an error too, stays.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from scipy.special import expit, logit, logsumexp

from epivi.families.epimutation.columns import EPIMUTATION_PARAMETERS
from epivi.families.epimutation.density import LearnedStates, log_fitness
from epivi.families.epimutation.hypotheses import EpimutationHypothesis, EpimutationPriors
from epivi.lineage.elimination import EliminationPlan
from epivi.lineage.emission import LineageEmission, collect_pairs, encode, log_probability
from epivi.lineage.kernel import PlanArrays, ReadsTable, log_likelihoods, plan_arrays, reads_table
from epivi.lineage.likelihood import EpimutationRates, shared_values
from epivi.tables.columns import EVIDENCE_GOAL

Array = NDArray[np.float64]

# METHOD: ranges of the grid in prior SDs. A rate far below the class's says no more than one a little below, since no
# change is seen either way; one far above may be sought.
RANGES = {"logit_gain": (-3.0, 4.5), "logit_loss": (-3.0, 4.5), "log_fitness": (-4.5, 4.5), "log_size": (-4.5, 4.5)}
STEP = 0.75  # prior SDs; a multiple of the ranges' ends, as is twice the step
REFINE_ERROR = EVIDENCE_GOAL / 4  # nats of estimated error from which on a locus gets the finer grid
SMALLEST_VARIANCE = 1e-9  # of points, in squared prior SDs: all on one
MOST_HALVINGS = 2  # of the step
INTERPOLATED = 8  # points of the interpolated posterior for each step of the grid
QUANTILES = {"q05": 0.05, "q50": 0.5, "q95": 0.95}


class EpimutationEvidence(NamedTuple):
    """Evidence and posterior of one hypothesis at L loci; moments in the order of EPIMUTATION_PARAMETERS, [L, 3]."""

    log_evidence: Array  # [L], nats
    log_evidence_error: Array  # [L], nats, estimated error of the quadrature
    mean: Array
    q05: Array
    q50: Array
    q95: Array


class EpimutationEvidenceModel(NamedTuple):
    """What the integrals need besides the counts."""

    plan: EliminationPlan
    arrays: PlanArrays
    hypotheses: tuple[EpimutationHypothesis, ...]
    priors: EpimutationPriors
    learned: LearnedStates


class Grid(NamedTuple):
    """Q points of one hypothesis at the loci of one class; D parameters."""

    shape: tuple[int, ...]  # points of each parameter, [D]; their product is Q
    z: Array  # [Q, D], prior SDs
    log_weight: Array  # [Q], of the prior, normalized
    alpha: Array  # [Q]
    beta: Array  # [Q]
    log_fitness: Array  # [Q]; 0 without selection
    shared: Array  # [Q, R], values of the shared tables


def build_epimutation_model(
    plan: EliminationPlan,
    hypotheses: tuple[EpimutationHypothesis, ...],
    priors: EpimutationPriors,
    learned: LearnedStates,
) -> EpimutationEvidenceModel:
    """Lay the plan out for the compiled code."""
    return EpimutationEvidenceModel(plan, plan_arrays(plan), hypotheses, priors, learned)


def class_reads(learned: LearnedStates, number: int, meth: NDArray[np.uint16], total: NDArray[np.uint16]) -> ReadsTable:
    """The reads [L, S] of loci of one class, with the probability of each pair under its emissions."""
    pairs = collect_pairs([(meth, total)])
    emission = LineageEmission(
        *(
            torch.tensor(values[number], dtype=torch.float64)
            for values in (learned.false_methylated, learned.false_unmethylated, learned.dispersion)
        )
    )
    table = log_probability(emission, torch.as_tensor(pairs.meth), torch.as_tensor(pairs.total)).numpy()
    return reads_table(encode(pairs, meth, total), table)


def one_grid(parameter: str, step: float) -> tuple[Array, Array]:
    """Points of one parameter in prior SDs, and their log weights, normalized."""
    low, high = RANGES[parameter]
    z: Array = low + step * np.arange(round((high - low) / step) + 1.0)
    log_weight: Array = -0.5 * z**2 - logsumexp(-0.5 * z**2)
    return z, log_weight


def hypothesis_grid(
    model: EpimutationEvidenceModel, hypothesis: EpimutationHypothesis, number: int, step: float = STEP
) -> Grid:
    """The points of a hypothesis at loci of class `number`; a single one where no parameter is free."""
    learned = model.learned
    axes = [one_grid(name, step) for name in hypothesis.parameters]
    shape = tuple(len(z) for z, _ in axes)
    z = (
        np.stack(np.meshgrid(*(z for z, _ in axes), indexing="ij"), -1).reshape(-1, len(axes))
        if axes
        else np.zeros((1, 0))
    )
    log_weight = sum((np.meshgrid(*(w for _, w in axes), indexing="ij")), np.zeros(shape)).ravel()
    theta = {}
    for k, name in enumerate(hypothesis.parameters):
        centre = {"logit_gain": logit(learned.alpha[number]), "logit_loss": logit(learned.beta[number])}.get(name, 0.0)
        prior = model.priors.prior(name, float(centre))
        theta[name] = prior.mean + prior.sd * z[:, k]
    q = len(z)
    alpha, beta = np.full(q, learned.alpha[number]), np.full(q, learned.beta[number])
    if hypothesis.rates == "none":
        alpha, beta = np.zeros(q), np.zeros(q)
    elif hypothesis.rates == "locus":
        alpha, beta = expit(theta["logit_gain"]), expit(theta["logit_loss"])
    tensors = {name: torch.as_tensor(value) for name, value in theta.items()}
    fitness = log_fitness(hypothesis, tensors, torch.as_tensor(alpha))
    rates = EpimutationRates(
        torch.as_tensor(alpha), torch.as_tensor(beta), torch.as_tensor(learned.founder[number]).expand(q, 3), fitness
    )
    values = np.zeros(q) if fitness is None else fitness.numpy()
    return Grid(shape, z, log_weight, alpha, beta, values, shared_values(model.plan, rates).numpy())


def evaluate_loci(
    model: EpimutationEvidenceModel,
    meth: NDArray[np.uint16],
    total: NDArray[np.uint16],
    class_code: NDArray[np.int16],
    threads: int = 1,
) -> list[EpimutationEvidence]:
    """Every hypothesis at L loci: meth, total [L, S] in the order of the plan's samples; class_code [L]."""
    size, parameters = len(meth), len(EPIMUTATION_PARAMETERS)
    out = [
        EpimutationEvidence(*(np.empty(size) for _ in range(2)), *(np.empty((size, parameters)) for _ in range(4)))
        for _ in model.hypotheses
    ]
    for number in np.unique(class_code).tolist():
        some = np.flatnonzero(class_code == number)
        reads = class_reads(model.learned, number, meth[some], total[some])
        for hypothesis, evidence in zip(model.hypotheses, out, strict=True):
            found = _one_hypothesis(model, hypothesis, number, reads, threads)
            for whole, part in zip(evidence, found, strict=True):
                whole[some] = part
    return out


def _one_hypothesis(
    model: EpimutationEvidenceModel, hypothesis: EpimutationHypothesis, number: int, reads: ReadsTable, threads: int
) -> EpimutationEvidence:
    """Evidence on the usual grid, and on finer ones at the loci that need them."""
    found = _on_grid(model, hypothesis, number, reads, STEP, threads)
    for halvings in range(1, MOST_HALVINGS + 1):
        doubtful = np.flatnonzero(~(found.log_evidence_error <= REFINE_ERROR))
        if not len(doubtful):
            break
        codes = np.ascontiguousarray(reads.codes[:, doubtful])
        finer = _on_grid(model, hypothesis, number, reads._replace(codes=codes), STEP / 2**halvings, threads)
        for whole, part in zip(found, finer, strict=True):
            whole[doubtful] = part
    return found


def _on_grid(
    model: EpimutationEvidenceModel,
    hypothesis: EpimutationHypothesis,
    number: int,
    reads: ReadsTable,
    step: float,
    threads: int,
) -> EpimutationEvidence:
    grid = hypothesis_grid(model, hypothesis, number, step)
    joint = log_likelihoods(model.arrays, grid.shared, reads, threads) + grid.log_weight[:, None]  # [Q, L]
    log_evidence = logsumexp(joint, axis=0)
    moments = posterior_moments(model, hypothesis, grid, joint - log_evidence, number, step)
    return EpimutationEvidence(log_evidence, _quadrature_error(grid, joint, log_evidence, step), *moments)


def _quadrature_error(grid: Grid, joint: Array, log_evidence: Array, step: float) -> Array:
    """Estimated error of log_evidence, nats, [L], as the module says; joint: log joint at the points [Q, L]."""
    if not grid.shape:
        return np.zeros_like(log_evidence)
    every_second = (slice(None, None, 2),) * len(grid.shape)
    coarse = joint.reshape(*grid.shape, -1)[every_second].reshape(-1, joint.shape[1])
    weight = grid.log_weight.reshape(grid.shape)[every_second]
    difference = np.abs(logsumexp(coarse, axis=0) - logsumexp(weight) - log_evidence)
    relative_variance = _conditional_variances(grid.z, np.exp(joint - log_evidence)) / step**2
    unresolved = (2.0 * np.exp(-2.0 * np.pi**2 * relative_variance)).sum(1)
    return np.maximum(2.0 * (difference / 2.0) ** 4, unresolved) + _beyond(grid, joint, log_evidence)


def _beyond(grid: Grid, joint: Array, log_evidence: Array) -> Array:
    """Posterior at the outermost points [L], as far as it exceeds the prior there: about as much lies beyond them."""
    posterior = np.exp(joint - log_evidence).reshape(*grid.shape, -1)
    prior = np.exp(grid.log_weight).reshape(grid.shape)
    total = np.zeros_like(log_evidence)
    for axis in range(len(grid.shape)):
        others = tuple(other for other in range(len(grid.shape)) if other != axis)
        ends = posterior.sum(others)[[0, -1]] - prior.sum(others)[[0, -1], None]
        total += np.maximum(ends, 0.0).sum(0)
    return total


def _conditional_variances(z: Array, posterior: Array) -> Array:
    """Variance of each parameter with the others fixed, [L, D], of a Gaussian with the covariance of the points."""
    mean = posterior.T @ z
    products = (z[:, :, None] * z[:, None, :]).reshape(len(z), -1)
    covariance = (posterior.T @ products).reshape(-1, z.shape[1], z.shape[1]) - mean[:, :, None] * mean[:, None, :]
    precision = np.linalg.inv(covariance + SMALLEST_VARIANCE * np.eye(z.shape[1]))
    return 1.0 / np.diagonal(precision, axis1=1, axis2=2)


# ------------------------------------------------------------------------------------------------- posterior of a locus


def posterior_moments(
    model: EpimutationEvidenceModel,
    hypothesis: EpimutationHypothesis,
    grid: Grid,
    log_posterior: Array,
    number: int,
    step: float,
) -> tuple[Array, Array, Array, Array]:
    """Mean, 5 %, 50 % and 95 % quantile of gain, loss and log fitness, [L, 3] each, from log weights [Q, L] of points.

    A quantity that does not vary over the points is an atom: all four are its value.
    """
    posterior = np.exp(log_posterior)
    loci = posterior.shape[1]
    out = [np.empty((loci, 3)) for _ in range(4)]
    for k, values in enumerate((grid.alpha, grid.beta, grid.log_fitness)):
        out[0][:, k] = values @ posterior
        if np.ptp(values) == 0:
            for quantile in out[1:]:
                quantile[:, k] = values[0]
    for axis, name in enumerate(hypothesis.parameters):
        others = tuple(other for other in range(len(grid.shape)) if other != axis)
        marginal = posterior.reshape(*grid.shape, -1).sum(axis=others)  # [points, L]
        z = marginal_quantiles(name, step, marginal)  # [3, L]
        column = ("logit_gain", "logit_loss").index(name) if name.startswith("logit") else 2
        values = _natural(model, hypothesis, name, number, z)
        for quantile, found in zip(out[1:], np.sort(values, axis=0), strict=True):
            quantile[:, column] = found
    return out[0], out[1], out[2], out[3]


def _natural(
    model: EpimutationEvidenceModel, hypothesis: EpimutationHypothesis, name: str, number: int, z: Array
) -> Array:
    """Values in prior SDs of a parameter as rates or log fitness."""
    learned = model.learned
    if name in ("logit_gain", "logit_loss"):
        rate = learned.alpha[number] if name == "logit_gain" else learned.beta[number]
        values: Array = expit(logit(rate) + model.priors.rate_sd * z)
        return values
    prior = model.priors.prior(name)
    theta = {name: torch.as_tensor(prior.mean + prior.sd * z)}
    fitness = log_fitness(hypothesis, theta, theta[name])
    assert fitness is not None  # a parameter of the fitness is free
    return fitness.numpy()


def marginal_quantiles(parameter: str, step: float, marginal: Array) -> Array:
    """Quantiles [3, L] in prior SDs, from the posterior [points, L] on the grid of one parameter.

    The log likelihood, which is smooth, is interpolated between the points, the prior is not.
    """
    z, log_weight = one_grid(parameter, step)
    with np.errstate(divide="ignore"):
        log_likelihood = np.maximum(np.log(marginal) - log_weight[:, None], -700.0)
    fine = np.linspace(z[0], z[-1], INTERPOLATED * (len(z) - 1) + 1)
    # Without overshoot where the likelihood falls steeply.
    density = PchipInterpolator(z, log_likelihood)(fine) - 0.5 * fine[:, None] ** 2
    mass = np.exp(density - density.max(0))
    cumulative = np.cumsum(mass, axis=0) - 0.5 * mass
    cumulative /= mass.sum(0)
    return np.stack([_crossing(fine, cumulative, level) for level in QUANTILES.values()])


def _crossing(x: Array, cumulative: Array, level: float) -> Array:
    """Where columns of an increasing [F, L] reach a level, by linear interpolation, [L]."""
    above = np.clip((cumulative < level).sum(0), 1, len(x) - 1)
    loci = np.arange(cumulative.shape[1])
    low, high = cumulative[above - 1, loci], cumulative[above, loci]
    share = np.clip((level - low) / np.maximum(high - low, 1e-300), 0.0, 1.0)
    return x[above - 1] + share * (x[above] - x[above - 1])
