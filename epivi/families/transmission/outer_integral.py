"""Log evidence and posterior moments of every hypothesis at every locus: two nested integrals, each near exact.

Outer, over the variance parameters theta (one dimension and more): importance sampling at the nodes of a lattice around
the amortized Gaussian, shifted at random for each locus, so that the error is not common to loci. Inner, over the field
and the effects given theta: Laplace with its second-order correction (epivi.field.compiled).

    p(D | h) ~= 1/J sum_j w_j,    w_j = p(D | theta_j, h) p(theta_j | h) / q(theta_j | h)

The standard error comes from the difference of the two coarser lattices that the nodes consist of. The whole lattice is
far better than two independent halves, so this overestimates the error. Where the weights are
uneven, the Pareto shape k-hat of their tail is estimated (Vehtari et al. 2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtri

from epivi.base.errors import UserError
from epivi.base.psis import pareto_shapes
from epivi.families.transmission.columns import parameters_of
from epivi.families.transmission.components import shares_at, transmissibility_at, variance_components_at
from epivi.families.transmission.density import (
    Batch,
    Hyperparameters,
    LearnedPriors,
    build_transmission,
    to_batch,
)
from epivi.families.transmission.encoder import Encoder
from epivi.families.transmission.hypotheses import Hypothesis, NormalPrior, shared_components
from epivi.families.transmission.lattice import generating_vector
from epivi.field.compiled.field import FieldArrays, field_arrays
from epivi.field.compiled.laplace import NOT_CONVERGED
from epivi.field.compiled.nodes import INNER_METHOD_CODES, NodeResults, evaluate_nodes
from epivi.field.covariate import centred
from epivi.field.layout import Cohort
from epivi.field.torch.nodes import evaluate_nodes_torch
from epivi.fit.gaussian import GaussianTheta
from epivi.loci.source import CountsBatch

CPU = torch.device("cpu")
FEWEST_NODES = 32  # the Pareto fit wants a tail of five
# METHOD: the amortized SDs are doubled. The weight then vanishes towards the edges of the unit cube, so that it is
# smooth and periodic there, for which lattices converge fastest (the module `lattice`); a posterior's heavier tail (the
# spread's upper one) is covered.
PROPOSAL_INFLATION = 2.0
SMALLEST_RELATIVE_SD = 0.15  # of the proposal, against the prior
STRIDE = 4  # dimensions of the lattice hashed under one key
QUANTILES = {"q05": 0.05, "q50": 0.5, "q95": 0.95}
LARGEST_SKEWNESS = 1.5  # up to 6 (sqrt(2) - 1) some kurtosis keeps the quantile expansion monotone


# A Gaussian for each hypothesis over theta, with effects before it or not, for a batch of loci.
Proposer = Callable[[Batch, Hyperparameters], Sequence[GaussianTheta]]


class OuterProposal(NamedTuple):
    """Where to integrate: the amortized Gaussian over theta of one hypothesis, D parameters, effects integrated out."""

    mean: NDArray[np.float64]  # [L, D]
    scale_tril: NDArray[np.float64]  # [L, D, D]


class HypothesisEvidence(NamedTuple):
    """Evidence and posterior of one hypothesis at L loci; moments in the order of columns.parameters_of, and then of
    the G columns whose values differ between loci, [L, Q]."""

    log_evidence: NDArray[np.float64]  # [L], nats
    log_evidence_se: NDArray[np.float64]  # [L], nats
    khat: NDArray[np.float64]  # [L], nan where the weights are even
    inner_error: NDArray[
        np.float64
    ]  # [L], nats; nan until epivi.families.transmission.refinement has compared the hypotheses
    inner_method: NDArray[np.int64]  # [L], 0 Laplace, 1 expectation propagation, 2 importance sampling
    laplace_correction: NDArray[np.float64]  # [L], weighted mean of |c|; NOT_CONVERGED where a node has no mode
    central_step: NDArray[np.float64]  # [L], nats from Laplace to EP at the proposal's centre; inf where not found
    mean: NDArray[np.float64]
    q05: NDArray[np.float64]
    q50: NDArray[np.float64]
    q95: NDArray[np.float64]
    node_weight: NDArray[
        np.float64
    ]  # [L, J], of the outer nodes, normalized; of those that epivi.families.transmission.refinement tried first
    node_log_evidence: NDArray[np.float64]  # [L, J]
    node_variances: NDArray[np.float64]  # [L, J, C + 2]: variance of each component and of the residual, tau


class LocusEffects(NamedTuple):
    """Covariates whose values differ between loci, as the dosage of a variant beside each: G columns.

    # METHOD: their effects are N(0, sd^2) with given SDs, and the encoder does not see them: it only proposes where to
    # integrate over the variance parameters, and importance weights put that right, as they do its other errors.
    """

    sds: tuple[float, ...] = ()  # [G], logit for each unit
    columns: tuple[tuple[int, ...], ...] | None = None  # [H], the columns that each hypothesis has; None: all have all

    def of(self, index: int) -> list[int]:
        """The columns that a hypothesis has."""
        return list(range(len(self.sds)) if self.columns is None else self.columns[index])


class EvidenceModel(NamedTuple):
    """What the integrals need besides the counts."""

    cohort: Cohort
    hypotheses: tuple[Hypothesis, ...]
    arrays: tuple[FieldArrays, ...]
    effect_sds: tuple[NDArray[np.float64], ...]  # of each hypothesis's covariate columns
    learned: LearnedPriors
    share_priors: dict[str, NormalPrior]
    encoder: Proposer
    hyper: Hyperparameters  # the encoder's starting point depends on them
    device: torch.device  # of the encoder and of the inner integral; on the CPU that is the compiled kernel
    locus_effects: LocusEffects = LocusEffects()  # of columns of the design whose values differ between loci


class WeightedNodes(NamedTuple):
    """The outer nodes of L loci after the inner integral: J nodes with normalized weights."""

    theta: NDArray[np.float64]  # [L, J, D]
    weight: NDArray[np.float64]  # [L, J]
    effect_mean: NDArray[np.float64]  # [L, J, P], logit; the baseline is the first effect
    effect_variance: NDArray[np.float64]
    effect_third: NDArray[np.float64]


class EvaluatedNodes(NamedTuple):
    """The outer nodes of L loci with the inner integral: the proposal's centre first, then J nodes with a weight."""

    theta: NDArray[np.float64]  # [L, 1 + J, D]
    variances: NDArray[np.float64]  # [L, 1 + J, C + 1]
    tau: NDArray[np.float64]  # [L, 1 + J]
    inner: NodeResults  # at 1 + J nodes
    log_weight: NDArray[np.float64]  # [L, J], log of p(D, theta | h) / q(theta)


def build_evidence_model(
    cohort: Cohort,
    hypotheses: Sequence[Hypothesis],
    learned: LearnedPriors,
    share_priors: dict[str, NormalPrior],
    encoder_state: dict[str, Any],
    hidden: int,
    device: torch.device = CPU,
    locus_effects: LocusEffects = LocusEffects(),  # noqa: B008  (a constant)
    trained_at: LearnedPriors | None = None,
) -> EvidenceModel:
    """Lay out the fields for the inner integral and restore the fitted guide on the device, in double precision.

    trained_at: what all loci shared when the guide was trained, where that is not `learned`: its proposals start there.
    """
    family = build_transmission(cohort, hypotheses, share_priors, device, torch.float64)
    encoder = Encoder(cohort, family, hidden)
    encoder.load_state_dict(encoder_state)
    model = evidence_model(
        cohort,
        hypotheses,
        learned if trained_at is None else trained_at,
        share_priors,
        encoder.double().to(device),
        device,
    )
    return with_learned(model._replace(locus_effects=locus_effects), learned)


def with_learned(model: EvidenceModel, learned: LearnedPriors) -> EvidenceModel:
    """The same model with other values of what all loci share; the guide proposes the same nodes."""
    effect_sds = tuple(learned.effect_sds[field.design_column] for field in model.cohort.fields)
    return model._replace(learned=learned, effect_sds=effect_sds)


def evidence_model(
    cohort: Cohort,
    hypotheses: Sequence[Hypothesis],
    learned: LearnedPriors,
    share_priors: dict[str, NormalPrior],
    encoder: Proposer,
    device: torch.device = CPU,
) -> EvidenceModel:
    """The same with what proposes where to integrate given, be it a fitted guide or not."""
    return EvidenceModel(
        cohort,
        tuple(hypotheses),
        tuple(field_arrays(field, cohort.false_methylated, cohort.false_unmethylated) for field in cohort.fields),
        tuple(learned.effect_sds[field.design_column] for field in cohort.fields),
        learned,
        share_priors,
        encoder,
        Hyperparameters.restored(learned).to(device),
        device,
    )


def marginal_proposal(mean: NDArray[np.float64], scale_tril: NDArray[np.float64], dimensions: int) -> OuterProposal:
    """The last `dimensions` coordinates of a Gaussian [L, P + D]: the effects are integrated with the field."""
    covariance = scale_tril[:, -dimensions:, :] @ np.swapaxes(scale_tril[:, -dimensions:, :], 1, 2)
    return OuterProposal(mean[:, -dimensions:], np.linalg.cholesky(covariance).astype(np.float64))


def proposals_of(model: EvidenceModel, counts: CountsBatch) -> list[OuterProposal]:
    """What the model's guide proposes for every hypothesis at some loci."""
    batch = to_batch(counts, len(counts.locus), model.device, torch.float64)
    with torch.no_grad():
        gaussians = model.encoder(batch, model.hyper)
    return [
        marginal_proposal(theta.mean.cpu().numpy(), theta.scale_tril.cpu().numpy(), len(hypothesis.parameters))
        for theta, hypothesis in zip(gaussians, model.hypotheses, strict=True)
    ]


def lattice_nodes(loci: NDArray[np.int64], dimensions: int, nodes: int, seed: int) -> NDArray[np.float64]:
    """Standard normal nodes [L, nodes, dimensions] for loci by their number in the genome.

    A rank-one lattice, shifted modulo one by a vector that depends on the seed and the locus alone: a locus has the
    same nodes in whatever shard it is read, and under every hypothesis; errors are not common to loci.
    """
    multiples = np.outer(np.arange(nodes), generating_vector(dimensions, nodes)) % nodes / nodes
    points = np.mod(multiples[None] + _uniform_of_locus(loci, dimensions, seed)[:, None], 1.0)
    return ndtri(np.clip(points, 1e-12, 1 - 1e-12))


def _uniform_of_locus(loci: NDArray[np.int64], dimensions: int, seed: int) -> NDArray[np.float64]:
    """Uniform numbers [L, dimensions] by hashing (seed, locus, dimension) with the finalizer of SplitMix64.

    Every STRIDE dimensions have a key of their own, so that a number does not depend on how many dimensions there are.
    """
    of_strides = [
        _hashed(loci, (seed, 2, *([first // STRIDE] if first else []))) for first in range(0, dimensions, STRIDE)
    ]
    return np.concatenate(of_strides, axis=1)[:, :dimensions]


def _hashed(loci: NDArray[np.int64], entropy: tuple[int, ...]) -> NDArray[np.float64]:
    """Uniform numbers [L, STRIDE]."""
    counter = loci.astype(np.uint64)[:, None] * np.uint64(STRIDE) + np.arange(STRIDE, dtype=np.uint64)
    key = np.random.default_rng(entropy).integers(0, 2**63, dtype=np.uint64)
    x: Any = counter * np.uint64(0x9E3779B97F4A7C15) + key
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53


def nodes_for(dimensions: int, nodes: int) -> int:
    """Nodes for a theta of so many dimensions: `nodes` of three and four, half of them below.

    # METHOD: twice as many with each dimension beyond four, by which the lattice's error stays below some hundredths
    # for posteriors half to two thirds as wide as the proposal (test_lattice.py).
    """
    return max(FEWEST_NODES, nodes // 2 if dimensions < 3 else nodes * 2 ** max(0, dimensions - 4))


def hypothesis_evidence(
    model: EvidenceModel,
    index: int,
    proposal: OuterProposal,
    meth: NDArray[np.uint16],
    total: NDArray[np.uint16],
    loci: NDArray[np.int64],
    nodes: int,
    seed: int,
    method: str = "laplace",
    locus_design: NDArray[np.float64] | None = None,
) -> HypothesisEvidence:
    """Evidence and posterior moments of hypothesis `index` at L loci.

    meth, total: [L, S]. loci: [L], their numbers in the genome. nodes: outer nodes for three dimensions and more.
    method: of the inner integral, a key of epivi.field.compiled.nodes.METHODS. locus_design: [L, S, G], the values of
    the columns that the model has an effect of at each locus; raises UserError where there are not as many, or one is
    missing.
    """
    hypothesis = model.hypotheses[index]
    evaluated = evaluated_nodes(model, index, proposal, meth, total, loci, nodes, seed, method, locus_design)
    variances, tau, inner, log_weight = evaluated[1:]
    top = log_weight.max(1, keepdims=True)
    relative = np.exp(log_weight - top)
    mean_weight = relative.mean(1, keepdims=True)
    weight = relative / relative.sum(1, keepdims=True)
    weighted = weighted_nodes(evaluated, weight)
    natural = _moments(hypothesis, shared_components(model.hypotheses), weighted)
    moments = zip(natural, _effect_moments(model, index, weighted), strict=True)
    return HypothesisEvidence(
        log_evidence=(top + np.log(mean_weight))[:, 0],
        log_evidence_se=_standard_error(relative / mean_weight),
        khat=pareto_shapes(log_weight, weight),
        inner_error=np.full(len(loci), np.nan),
        inner_method=np.full(len(loci), INNER_METHOD_CODES[method]),
        laplace_correction=np.where(
            (inner.correction[:, 1:] == NOT_CONVERGED).any(1),
            NOT_CONVERGED,
            (weight * np.abs(inner.correction[:, 1:])).sum(1),
        ),
        central_step=inner.central_step,
        **Statistics(*(np.concatenate(parts, axis=1) for parts in moments))._asdict(),
        node_weight=weight,
        node_log_evidence=inner.log_evidence[:, 1:],
        node_variances=np.concatenate([variances, tau[..., None]], axis=2)[:, 1:],
    )


def evaluated_nodes(
    model: EvidenceModel,
    index: int,
    proposal: OuterProposal,
    meth: NDArray[np.uint16],
    total: NDArray[np.uint16],
    loci: NDArray[np.int64],
    nodes: int,
    seed: int,
    method: str,
    locus_design: NDArray[np.float64] | None = None,
) -> EvaluatedNodes:
    """The outer nodes of hypothesis `index` at L loci and the inner integral there; arguments as `hypothesis_evidence`
    has them."""
    hypothesis = model.hypotheses[index]
    dimensions = len(hypothesis.parameters)
    z = lattice_nodes(loci, dimensions, nodes_for(dimensions, nodes), seed)
    theta, log_proposal = place_nodes(model, hypothesis, proposal, z)
    variances, tau = variance_components_at(hypothesis, theta)
    inner = inner_integral(model, index, meth, total, variances, tau, method, locus_design)
    log_weight = (inner.log_evidence + log_prior(model, hypothesis, theta))[:, 1:] - log_proposal
    return EvaluatedNodes(theta, variances, tau, inner, log_weight)


def weighted_nodes(nodes: EvaluatedNodes, weight: NDArray[np.float64]) -> WeightedNodes:
    """The nodes with their normalized weights [L, J]; the proposal's centre, which only starts the others, left out."""
    inner = nodes.inner
    return WeightedNodes(
        nodes.theta[:, 1:], weight, inner.effect_mean[:, 1:], inner.effect_variance[:, 1:], inner.effect_third[:, 1:]
    )


def inner_integral(
    model: EvidenceModel,
    index: int,
    meth: NDArray[np.uint16],
    total: NDArray[np.uint16],
    variances: NDArray[np.float64],
    tau: NDArray[np.float64],
    method: str,
    locus_design: NDArray[np.float64] | None = None,
) -> NodeResults:
    """By the compiled kernel, or in torch on a GPU; they agree to rounding."""
    learned = model.learned
    own = locus_columns(model, index, meth, locus_design)
    sds = np.concatenate([model.effect_sds[index], np.array(model.locus_effects.sds)[model.locus_effects.of(index)]])
    prior = (learned.baseline_weights, learned.baseline_means, learned.baseline_sds, sds)
    given = (model.arrays[index], meth, total, variances, tau, *prior)
    if model.device.type == "cpu":
        return evaluate_nodes(*given, method=method, locus_design=own)
    return evaluate_nodes_torch(*given, model.device, method=method, locus_design=own)


def locus_columns(
    model: EvidenceModel, index: int, meth: NDArray[np.uint16], locus_design: NDArray[np.float64] | None
) -> NDArray[np.float64] | None:
    """Of a design [L, S, G] the columns that a hypothesis has, less their means; None where the model has none.

    # METHOD: a missing value is refused: what stands for it (the mean, or a sample left out) is for whoever knows how
    # it came to be missing.
    """
    effects = len(model.locus_effects.sds)
    shape = (*meth.shape, effects)
    if (locus_design is None and effects) or (locus_design is not None and locus_design.shape != shape):
        found = "none" if locus_design is None else str(locus_design.shape)
        raise UserError(f"locus_design is {found}: expected loci, samples and effects {shape}")
    if locus_design is None:
        return None
    if not np.isfinite(locus_design).all():
        locus, sample, column = np.argwhere(~np.isfinite(locus_design))[0]
        raise UserError(
            f"locus_design is {locus_design[locus, sample, column]} at locus {locus}, sample {sample}, column "
            f"{column}: expected a number for each sample: fill in what is missing, or leave the locus out"
        )
    return centred(locus_design[:, :, model.locus_effects.of(index)])


def place_nodes(
    model: EvidenceModel, hypothesis: Hypothesis, proposal: OuterProposal, z: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """theta [L, 1 + J, D], the centre first, and log q of the J nodes."""
    floor = SMALLEST_RELATIVE_SD * np.array([prior_of(model, name).sd for name in hypothesis.prior_names])
    factor = PROPOSAL_INFLATION * proposal.scale_tril
    diagonal = np.diagonal(factor, axis1=1, axis2=2)
    factor = factor + np.maximum(floor - diagonal, 0.0)[:, :, None] * np.eye(len(floor))
    theta = proposal.mean[:, None, :] + z @ np.swapaxes(factor, 1, 2)
    log_determinant = np.log(np.diagonal(factor, axis1=1, axis2=2)).sum(1)
    log_density = -0.5 * (z**2).sum(2) - log_determinant[:, None] - 0.5 * z.shape[2] * math.log(2 * math.pi)
    return np.concatenate([proposal.mean[:, None, :], theta], axis=1), log_density


def prior_of(model: EvidenceModel, name: str) -> NormalPrior:
    """The prior of a free parameter, by its name."""
    if name == "log_spread":
        return NormalPrior(model.learned.spread_location, model.learned.spread_scale)
    return model.share_priors[name]


def log_prior(model: EvidenceModel, hypothesis: Hypothesis, theta: NDArray[np.float64]) -> NDArray[np.float64]:
    total = np.zeros(theta.shape[:2])
    for d, name in enumerate(hypothesis.prior_names):
        prior = prior_of(model, name)
        total += -0.5 * ((theta[..., d] - prior.mean) / prior.sd) ** 2 - math.log(prior.sd * math.sqrt(2 * math.pi))
    return total


def _standard_error(relative: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard error of the log of the mean weight, from the two halves of the lattice; the mean weight is one."""
    return np.abs(relative[:, ::2].mean(1) - relative[:, 1::2].mean(1)) / 2.0


class Statistics(NamedTuple):
    """Mean and quantiles of parameters at L loci, [L, number of parameters] each."""

    mean: NDArray[np.float64]
    q05: NDArray[np.float64]
    q50: NDArray[np.float64]
    q95: NDArray[np.float64]


class _Marginal(NamedTuple):
    """First four central moments of a parameter on its unconstrained scale, [L]."""

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    third: NDArray[np.float64]
    fourth: NDArray[np.float64]


def _weighted_marginal(value: NDArray[np.float64], weight: NDArray[np.float64]) -> _Marginal:
    mean = (weight * value).sum(1)
    offset = value - mean[:, None]
    square = weight * offset**2
    return _Marginal(mean, square.sum(1), (square * offset).sum(1), (square * offset**2).sum(1))


def _effect_marginal(nodes: WeightedNodes, p: int) -> _Marginal:
    """Moments of a mixture over nodes of distributions with known moments, the fourth that of a Gaussian."""
    weight, means, within = nodes.weight, nodes.effect_mean[..., p], nodes.effect_variance[..., p]
    thirds = nodes.effect_third[..., p]
    mean = (weight * means).sum(1)
    offset = means - mean[:, None]
    square = offset**2
    variance = (weight * (within + square)).sum(1)
    third = (weight * (thirds + offset * (3 * within + square))).sum(1)
    fourth = (weight * (3 * within**2 + 4 * offset * thirds + square * (6 * within + square))).sum(1)
    return _Marginal(mean, variance, third, fourth)


def baseline_points(nodes: WeightedNodes, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The baseline [L, Q], logit, at the points of its posterior whose standard normal scores [Q] are given."""
    marginal = _effect_marginal(nodes, 0)
    return np.stack([_expand(marginal, float(z)) for z in scores], axis=1)


def _expand(marginal: _Marginal, z: float) -> NDArray[np.float64]:
    """Cornish-Fisher expansion with skewness and kurtosis: the value whose standard normal score is z.

    Its slope is a parabola in z, which has no root for an excess kurtosis k with (1 + 5 g^2/36 - k/8)(k/8 - g^2/6) >=
    g^2/36, g the skewness (the domain of validity, Maillard 2012): k is moved to the nearest such value, so that the
    expansion is monotone at every z. Between the 5 and 95 % quantiles that hardly moves them.
    """
    sd = np.maximum(np.sqrt(marginal.variance), 1e-12)
    skewness = np.clip(marginal.third / sd**3, -LARGEST_SKEWNESS, LARGEST_SKEWNESS)
    square = skewness**2
    half_width = np.sqrt((0.5 - square / 72) ** 2 - square / 36)
    middle = 0.5 + 11 * square / 72
    kurtosis = 8 * np.clip((marginal.fourth / sd**4 - 3) / 8, middle - half_width, middle + half_width)
    step = skewness * (z**2 - 1) / 6 + kurtosis * (z**3 - 3 * z) / 24 - square * (2 * z**3 - 5 * z) / 36
    return marginal.mean + np.sqrt(marginal.variance) * (z + step)


def _effect_moments(model: EvidenceModel, index: int, nodes: WeightedNodes) -> Statistics:
    """Posterior mean and quantiles [L, C + G] of the effects: of every covariate of the cohort, for each unit of the
    sample sheet, and of the columns whose values differ between loci; 0 where the hypothesis lacks one."""
    covariates = model.cohort.covariates
    scales = [*(covariate.scale for covariate in covariates), *(1.0 for _ in model.locus_effects.sds)]
    columns = [*model.cohort.fields[index].design_column, *(len(covariates) + g for g in model.locus_effects.of(index))]
    out = Statistics(*(np.zeros((len(nodes.weight), len(scales))) for _ in Statistics._fields))
    for p, column in enumerate(columns, start=1):
        marginal, scale = _effect_marginal(nodes, p), scales[column]
        out.mean[:, column] = marginal.mean / scale
        for name, level in QUANTILES.items():
            getattr(out, name)[:, column] = _expand(marginal, float(ndtri(level))) / scale
    return out


def _moments(hypothesis: Hypothesis, components: Sequence[str], nodes: WeightedNodes) -> Statistics:
    """Posterior mean and quantiles [L, Q] of every parameter, in the order of `parameters_of(components)`.

    Quantiles come from a Cornish-Fisher expansion of each parameter's marginal on its unconstrained scale (logit, or
    log for the spread), where it is close to Gaussian; monotone transformations keep quantiles.
    """
    theta, weight = nodes.theta, nodes.weight
    absent = np.zeros(theta.shape[:-1])
    shares = shares_at(hypothesis, theta)
    rho = shares.get("heritable", absent)
    tau = transmissibility_at(hypothesis, theta)
    maternal, paternal = (tau if path == "tau" else np.full_like(tau, float(path))
                          for path in (hypothesis.maternal, hypothesis.paternal))  # fmt: skip
    if not hypothesis.transmits:
        maternal = paternal = np.zeros_like(tau)
    natural = {
        "spread": np.exp(theta[..., 0]),
        "heritable_share": rho,
        "transmissibility": np.maximum(maternal, paternal),
        "slope": rho * (maternal + paternal) / 2,
        **{f"{name}_share": shares.get(name, absent) for name in components},
    }
    node, node_weight = np.polynomial.hermite_e.hermegauss(9)
    statistics = {"mean": [expit(baseline_points(nodes, node)) @ node_weight / node_weight.sum()]}
    at_quantiles = expit(baseline_points(nodes, ndtri(np.array(list(QUANTILES.values())))))
    statistics |= {name: [at_quantiles[:, k]] for k, name in enumerate(QUANTILES)}
    for parameter, value in natural.items():
        statistics["mean"].append((weight * value).sum(1))
        if np.ptp(value) == 0.0:
            for name in QUANTILES:
                statistics[name].append(value[:, 0])
            continue
        forward, backward = (np.log, np.exp) if parameter == "spread" else (logit, expit)
        marginal = _weighted_marginal(forward(value), weight)
        for name, p in QUANTILES.items():
            statistics[name].append(backward(_expand(marginal, float(ndtri(p)))))
    if ["baseline", *natural] != list(parameters_of(components)):
        raise AssertionError("the parameters of the tables and of the posterior differ")
    return Statistics(**{name: np.stack(columns, axis=1) for name, columns in statistics.items()})
