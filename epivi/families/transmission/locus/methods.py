"""Every method for the posterior of single loci, by name, on one density; and the problem that they all are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from epivi.families.transmission.components import variance_components_at
from epivi.families.transmission.density import Hyperparameters, build_transmission, to_batch
from epivi.families.transmission.locus.amortized import svi
from epivi.families.transmission.locus.cavi import locus_cavi
from epivi.families.transmission.locus.meanfield import locus_lrvb, locus_meanfield
from epivi.families.transmission.locus.nested import nested_ep, nested_laplace
from epivi.families.transmission.locus.nuts import NutsSettings, summarize_draws, transmission_nuts
from epivi.families.transmission.locus.problem import (
    EffectPriors,
    LocusPosterior,
    LocusProblem,
    MeasuredPosterior,
    OuterNodes,
    PyroProblem,
)
from epivi.families.transmission.outer_integral import (
    EvidenceModel,
    lattice_nodes,
    log_prior,
    marginal_proposal,
    nodes_for,
    place_nodes,
)
from epivi.field.dense.problem import FieldVariances
from epivi.fit.bound import Guide
from epivi.loci.source import CountsBatch

NUTS_SETTINGS = NutsSettings(chains=2, warmup=250, draws=350)
LARGEST_RHAT = 1.02  # of any coordinate of a locus that counts as converged

Method = Callable[[LocusProblem], LocusPosterior]


def nuts(problem: LocusProblem) -> LocusPosterior:
    """The no-U-turn sampler on the Pyro model; it has no evidence."""
    return measured_nuts(problem).posterior


def measured_nuts(problem: LocusProblem) -> MeasuredPosterior:
    """The no-U-turn sampler on the Pyro model, with its Monte Carlo errors."""
    part = problem.pyro
    found = transmission_nuts(
        part.family, part.hyper, problem.number, problem.field, part.batch, NUTS_SETTINGS, problem.seed
    )
    draws = np.concatenate([found.parameters, found.field], axis=3)  # [chains, draws, L, C]
    moments = summarize_draws(draws)
    offset = (draws - moments.mean).reshape(-1, *moments.mean.shape)
    covariance = np.einsum("kla,klb->lab", offset, offset) / (len(offset) - 1)
    none = np.full(len(moments.mean), np.nan)
    converged = (moments.rhat < LARGEST_RHAT).all(1) & (found.divergences == 0)
    posterior = LocusPosterior(moments.mean, covariance, none, False, converged)
    return MeasuredPosterior(posterior, none, moments.mean_se, moments.sd_se)


# Those by which a fit can go on: responsibilities of the hypotheses need an evidence.
LOCUS_METHODS_WITH_EVIDENCE: Mapping[str, Method] = {
    "meanfield": locus_meanfield,
    "cavi": locus_cavi,
    "laplace": nested_laplace,
    "ep": nested_ep,
}
LOCUS_METHODS: Mapping[str, Method] = {"svi": svi, **LOCUS_METHODS_WITH_EVIDENCE, "lrvb": locus_lrvb, "nuts": nuts}


def build_locus_problems(
    model: EvidenceModel,
    guide: Guide,
    meth: NDArray[np.uint16],
    total: NDArray[np.uint16],
    loci: NDArray[np.int64],
    nodes: int,
    seed: int,
) -> list[LocusProblem]:
    """The problem of every hypothesis at L loci, with the nodes that its evidence has.

    meth, total: [L, S]. loci: [L], their numbers in the genome. nodes: as for `hypothesis_evidence`.
    """
    device = torch.device("cpu")
    batch = to_batch(CountsBatch(meth, total, np.arange(len(loci))), len(loci), device, torch.float64)
    family = build_transmission(model.cohort, model.hypotheses, model.share_priors, device, torch.float64)
    with torch.no_grad():
        gaussians = model.encoder(batch, model.hyper)
    learned = model.learned
    hyper = Hyperparameters.restored(learned)
    problems = []
    for number, (hypothesis, gaussian) in enumerate(zip(model.hypotheses, gaussians, strict=True)):
        dimensions = len(hypothesis.parameters)
        proposal = marginal_proposal(gaussian.mean.numpy(), gaussian.scale_tril.numpy(), dimensions)
        z = lattice_nodes(loci, dimensions, nodes_for(dimensions, nodes), seed)
        placed, log_proposal = place_nodes(model, hypothesis, proposal, z)
        theta = placed[:, 1:]  # the first is the proposal's centre
        log_weight = log_prior(model, hypothesis, theta) - log_proposal - np.log(theta.shape[1])
        problems.append(
            LocusProblem(
                number=number,
                hypothesis=hypothesis,
                field=model.cohort.fields[number],
                cohort=model.cohort,
                meth=meth.astype(np.float64),
                total=total.astype(np.float64),
                nodes=OuterNodes(theta, FieldVariances(*variance_components_at(hypothesis, theta)), log_weight),
                priors=EffectPriors(
                    learned.baseline_weights, learned.baseline_means, learned.baseline_sds, model.effect_sds[number]
                ),
                pyro=PyroProblem(family, hyper, guide, gaussian, batch),
                seed=seed,
            )
        )
    return problems
