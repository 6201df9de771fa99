"""One hypothesis at some loci with nothing fixed but the hyper-parameters: what every method of LOCUS_METHODS is given.

The coordinates of a locus are x = (effects, theta, b): the P effects, baseline first; the D free variance parameters on
their unconstrained scale; the N latents of the field. The integral over theta is a sum over nodes,

    int f(theta) p(theta) d theta ~= sum_j exp(log_weight_j) f(theta_j),

the same nodes for every method, so that methods differ in what they do with effects and field alone. For a method that
factorizes, the nodes carry a free-form factor q(theta).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from epivi.families.transmission.density import Batch, Hyperparameters, TransmissionModel
from epivi.families.transmission.hypotheses import Hypothesis
from epivi.field.dense.problem import (
    FieldProblem,
    FieldVariances,
    build_field_problem,
    factor,
    log_determinant,
    transpose,
)
from epivi.field.layout import Cohort, LatentField, field_covariance
from epivi.fit.bound import Guide
from epivi.fit.gaussian import GaussianTheta

Array = NDArray[np.float64]


class OuterNodes(NamedTuple):
    """J nodes over theta at each of L loci."""

    theta: Array  # [L, J, D]
    variances: FieldVariances  # parts [L, J, C + 1], tau [L, J]
    log_weight: Array  # [L, J], log of prior over proposal density over J


class EffectPriors(NamedTuple):
    """A mixture of K Gaussians for the baseline, N(0, sd^2) for the other P - 1 effects."""

    baseline_weights: Array  # [K]
    baseline_means: Array  # [K]
    baseline_sds: Array  # [K]
    effect_sds: Array  # [P - 1]


class PyroProblem(NamedTuple):
    """The same loci as the Pyro model and its amortized guide see them, in double precision."""

    family: TransmissionModel
    hyper: Hyperparameters
    guide: Guide
    gaussian: GaussianTheta  # of this hypothesis, what the encoder says
    batch: Batch


class LocusProblem(NamedTuple):
    """L loci, S samples. `number` is that of the hypothesis in the model."""

    number: int
    hypothesis: Hypothesis
    field: LatentField
    cohort: Cohort
    meth: Array  # [L, S]
    total: Array  # [L, S]
    nodes: OuterNodes
    priors: EffectPriors
    pyro: PyroProblem
    seed: int

    @property
    def effects(self) -> int:
        return self.field.design.shape[1]

    @property
    def latents(self) -> int:
        return len(self.field.individual)


class LocusPosterior(NamedTuple):
    """What a method says of x at each locus; C = P + D + N coordinates in the order of `coordinates`."""

    mean: Array  # [L, C]
    covariance: Array  # [L, C, C]
    log_evidence: Array  # [L], nats; nan where the method has none
    is_bound: bool  # whether log_evidence is never above the true one
    converged: NDArray[np.bool_]  # [L]


class MeasuredPosterior(NamedTuple):
    """A posterior found by sampling, with its Monte Carlo standard errors."""

    posterior: LocusPosterior
    log_evidence_se: Array  # [L], nan where there is no evidence
    mean_se: Array  # [L, C]
    sd_se: Array  # [L, C]


class NodePrior(NamedTuple):
    """What h and g need, of L loci."""

    precision: Array  # [L, J, N, N], Q_j
    log_determinant: Array  # [L, J], of 2 pi S_j
    log_weight: Array  # [L, J]
    component_log_weight: Array  # [K]
    component_mean: Array  # [K]
    component_sd: Array  # [K]
    effect_sd: Array  # [P - 1]


def coordinates(problem: LocusProblem) -> list[tuple[str, str]]:
    """Kind (effect, theta or field) and name of every coordinate."""
    columns = ["baseline", *(problem.cohort.covariates[column].name for column in problem.field.design_column)]
    individuals = [problem.cohort.individuals[individual] for individual in problem.field.individual]
    names = {"effect": columns, "theta": problem.hypothesis.parameters, "field": individuals}
    return [(kind, name) for kind, of_kind in names.items() for name in of_kind]


def field_problem_at(
    problem: LocusProblem, locus: NDArray[np.intp], node: NDArray[np.intp], component: NDArray[np.intp]
) -> FieldProblem:
    """The field and the effects of Q points: a locus, one of its nodes, and a component of the baseline's prior."""
    priors = problem.priors
    mean = np.zeros((len(locus), problem.effects))
    mean[:, 0] = priors.baseline_means[component]
    sd = np.empty_like(mean)
    sd[:, 0], sd[:, 1:] = priors.baseline_sds[component], priors.effect_sds
    variances = FieldVariances(*(part[locus, node] for part in problem.nodes.variances))
    return build_field_problem(
        problem.field, problem.cohort, variances, mean, sd**2, problem.meth[locus], problem.total[locus]
    )


def node_prior(problem: LocusProblem) -> NodePrior:
    """The prior precisions of the field at all nodes."""
    nodes, priors = problem.nodes, problem.priors
    loci, count, _ = nodes.theta.shape
    parts = nodes.variances.parts
    flat = parts.reshape(-1, parts.shape[-1]), nodes.variances.tau.reshape(-1)
    lower, inverse = factor(field_covariance(problem.field, *flat))
    size = problem.latents
    return NodePrior(
        precision=(transpose(inverse) @ inverse).reshape(loci, count, size, size),
        log_determinant=(log_determinant(lower) + size * np.log(2 * np.pi)).reshape(loci, count),
        log_weight=nodes.log_weight,
        component_log_weight=np.log(priors.baseline_weights),
        component_mean=priors.baseline_means,
        component_sd=priors.baseline_sds,
        effect_sd=priors.effect_sds,
    )


def theta_moments(problem: LocusProblem, share: Array) -> tuple[Array, Array]:
    """Mean [L, D] and covariance [L, D, D] of theta with shares [L, J] on the nodes."""
    mean = np.einsum("lj,ljd->ld", share, problem.nodes.theta)
    offset = problem.nodes.theta - mean[:, None]
    return mean, np.einsum("lj,lja,ljb->lab", share, offset, offset)


def with_theta(
    problem: LocusProblem, mean: Array, covariance: Array, theta_mean: Array, cross: Array, theta_covariance: Array
) -> tuple[Array, Array]:
    """Mean and covariance of x from those of u = (effects, b), [L, M], and of theta; cross: [L, M, D]."""
    effects, size, dimensions = problem.effects, mean.shape[1], theta_mean.shape[1]
    at = np.r_[0:effects, effects + dimensions : size + dimensions]
    theta = np.arange(effects, effects + dimensions)
    whole = np.empty((len(mean), size + dimensions, size + dimensions))
    whole[:, at[:, None], at] = covariance
    whole[:, at[:, None], theta] = cross
    whole[:, theta[:, None], at] = transpose(cross)
    whole[:, theta[:, None], theta] = theta_covariance
    return np.concatenate([mean[:, :effects], theta_mean, mean[:, effects:]], axis=1), whole
