"""What the amortized guide says of single loci, by drawing from it, and what refining it locus by locus would gain.

With draws x of the guide q and log weights log w = log p(D, x) - log q(x), all from the Pyro traces of the one model:

    ELBO = E log w = accuracy - complexity,    accuracy = E log p(D | x),    complexity = KL(q(x) || p(x))
    log p(D) ~= log mean w,    KL(q(x) || p(x | D)) ~= log mean w - E log w,    k-hat of the weights' tail.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from torch import Tensor

from epivi.families.transmission.density import Batch
from epivi.families.transmission.locus.problem import LocusPosterior, LocusProblem
from epivi.field.torch.prior import latent_positions
from epivi.fit.bound import weighted_trace
from epivi.fit.gaussian import GaussianTheta

Array = NDArray[np.float64]

DRAWS = 4000
DRAWS_AT_ONCE = 100
REFINE_STEPS = 200
REFINE_DRAWS = 32
REFINE_LEARNING_RATE = 0.05


class GuideDraws(NamedTuple):
    """K draws at L loci: x [K, L, C] in the order of `coordinates`, log weights and log-likelihoods [K, L]."""

    x: Array
    log_weight: Array
    log_likelihood: Array


class BoundSplit(NamedTuple):
    """The bound of a guide and its parts at L loci, nats, with the standard error of the bound."""

    elbo: Array
    elbo_se: Array
    accuracy: Array
    complexity: Array
    log_evidence: Array  # log mean w
    log_evidence_se: Array
    divergence: Array  # KL(q(x) || p(x | D))
    khat: Array


def svi(problem: LocusProblem) -> LocusPosterior:
    """Moments of the amortized guide and its bound, by DRAWS draws."""
    return guide_posterior(draw_guide(problem, problem.pyro.gaussian, DRAWS))


def guide_posterior(draws: GuideDraws) -> LocusPosterior:
    """Moments and bound as the draws have them."""
    mean, elbo = draws.x.mean(0), draws.log_weight.mean(0)
    offset = draws.x - mean
    covariance = np.einsum("kla,klb->lab", offset, offset) / (len(offset) - 1)
    return LocusPosterior(mean, covariance, elbo, True, np.isfinite(elbo))


def draw_guide(problem: LocusProblem, gaussian: GaussianTheta, draws: int) -> GuideDraws:
    """Draws of the guide around `gaussian`, the same random numbers for every `gaussian` of one problem."""
    pyro.set_rng_seed(problem.seed)
    parts = []
    with torch.no_grad():
        for start in range(0, draws, DRAWS_AT_ONCE):
            copies = min(DRAWS_AT_ONCE, draws - start)
            parts.append(_draw(problem, gaussian, copies))
    return GuideDraws(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _draw(problem: LocusProblem, gaussian: GaussianTheta, copies: int) -> GuideDraws:
    """One draw for each of `copies` copies of every locus."""
    pyro_part, loci = problem.pyro, len(problem.meth)
    log_weight, modelled = weighted_trace(
        pyro_part.family,
        pyro_part.hyper,
        pyro_part.guide,
        problem.number,
        GaussianTheta(*(_repeat(part, copies) for part in gaussian)),
        repeat_loci(pyro_part.batch, copies),
    )

    def by_draw(value: Tensor) -> Array:
        return np.asarray(value.reshape(copies, loci, -1))

    sites: dict[str, Any] = {name: site["value"] for name, site in modelled.nodes.items() if "value" in site}
    field = torch.cat([value.flatten(1) for name, value in sites.items() if name.startswith("field_")], dim=1)
    effects = [sites[name] for name in ("baseline", "effects") if name in sites]
    theta = [sites[name] for name in problem.hypothesis.parameters]
    position = latent_positions(problem.field, pyro_part.family.fields[problem.number])
    x = [by_draw(value) for value in (*effects, *theta, field[:, position])]
    log_likelihood = by_draw(modelled.nodes["meth"]["unscaled_log_prob"])
    return GuideDraws(np.concatenate(x, axis=2), by_draw(log_weight)[..., 0], log_likelihood[..., 0])


def repeat_loci(batch: Batch, copies: int) -> Batch:
    """The loci of a batch again and again, as so many loci of their own."""
    meth, total, log_binomial = (_repeat(part, copies) for part in batch[:3])
    size = len(meth)
    return Batch(meth, total, log_binomial, torch.arange(size, device=meth.device), size)


def _repeat(value: Tensor, copies: int) -> Tensor:
    return value.repeat(copies, *(1 for _ in value.shape[1:]))


def split_bound(log_weight: Array, log_likelihood: Array) -> BoundSplit:
    """ELBO, its parts, and what the same draws [K, L] say of the evidence and of the divergence from the posterior."""
    from arviz_stats.base import array_stats  # imported where needed: it is slow to load

    count = len(log_weight)
    elbo, accuracy = log_weight.mean(0), log_likelihood.mean(0)
    top = log_weight.max(0)
    relative = np.exp(log_weight - top)
    log_evidence = top + np.log(relative.mean(0))
    return BoundSplit(
        elbo=elbo,
        elbo_se=log_weight.std(0) / np.sqrt(count),
        accuracy=accuracy,
        complexity=accuracy - elbo,
        log_evidence=log_evidence,
        log_evidence_se=relative.std(0) / relative.mean(0) / np.sqrt(count),
        divergence=log_evidence - elbo,
        khat=array_stats.psislw(-log_weight.T, axis=-1)[1],  # it negates what it is given
    )


def refine(problem: LocusProblem) -> GaussianTheta:
    """The Gaussian over effects and theta that maximizes the guide's bound at each locus by itself.

    Adam from what the encoder says, in units of its standard deviations, with the same random numbers at every step:
    the objective is a deterministic mean over REFINE_DRAWS draws. Its bound has to be judged by other draws.
    """
    start = GaussianTheta(*(part.detach() for part in problem.pyro.gaussian))
    width = torch.diagonal(start.scale_tril, dim1=1, dim2=2)
    move = torch.zeros_like(start.mean, requires_grad=True)
    log_scale = torch.zeros_like(start.mean, requires_grad=True)
    below = torch.zeros_like(start.scale_tril, requires_grad=True)
    optimizer = torch.optim.Adam([move, log_scale, below], lr=REFINE_LEARNING_RATE)
    pyro_part, copied = problem.pyro, repeat_loci(problem.pyro.batch, REFINE_DRAWS)

    def moved() -> GaussianTheta:
        scale = torch.exp(log_scale)[:, :, None] * start.scale_tril
        return GaussianTheta(start.mean + width * move, scale + width[:, :, None] * torch.tril(below, -1))

    for step in range(REFINE_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = REFINE_LEARNING_RATE * (1.0 - step / REFINE_STEPS)
        optimizer.zero_grad()
        pyro.set_rng_seed(problem.seed + 1)
        gaussian = GaussianTheta(*(_repeat(part, REFINE_DRAWS) for part in moved()))
        log_weight, _ = weighted_trace(
            pyro_part.family, pyro_part.hyper, pyro_part.guide, problem.number, gaussian, copied
        )
        (-log_weight.sum() / REFINE_DRAWS).backward()
        optimizer.step()
    return GaussianTheta(*(part.detach() for part in moved()))
