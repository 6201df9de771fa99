"""Amortized guides: what the encoder sees of a locus, and how each guide shapes the posterior."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from epivi.families.transmission.density import Batch, TransmissionModel, linear_predictor, variance_components
from epivi.families.transmission.likelihood import read_slope
from epivi.field.torch.prior import FieldTensors, Theta, prior_factor
from epivi.fit.gaussian import GaussianTheta

SITE_ITERATIONS = 3
SMALLEST_SITE_PRECISION = 1e-4  # of an observed sample; conversion error can make the expected curvature negative
QUADRATURE_NODES = 7


class Sites(NamedTuple):
    """One Gaussian site per sample in natural parameters: precision and precision-times-mean, [B, S]."""

    precision: Tensor
    shift: Tensor


class GroupPosterior(NamedTuple):
    """q(b | theta) of one group of blocks: mean [B, F, n] and covariance T [B, F, n, n]."""

    mean: Tensor
    covariance: Tensor


def structured_guide(family: TransmissionModel, hypothesis: int, theta: GaussianTheta, batch: Batch) -> None:
    """q(theta) q(b | theta); `theta` is the encoder's Gaussian for this hypothesis."""
    field = family.fields[hypothesis]
    with pyro.plate("loci", batch.n_loci, subsample=batch.locus):
        vector = pyro.sample(
            "theta",
            dist.MultivariateNormal(theta.mean, scale_tril=theta.scale_tril),
            infer={"is_auxiliary": True},
        )
        beta, components = _emit_theta(family, hypothesis, vector)
        factors = [prior_factor(group, components) for group in field.groups]
        with torch.no_grad():
            sites = fit_sites(family, field, beta, factors, batch)
        for k, posterior in enumerate(field_posterior(field, beta, factors, sites)):
            root = torch.linalg.cholesky(posterior.covariance)
            pyro.sample(f"field_{k}", dist.MultivariateNormal(posterior.mean, scale_tril=root).to_event(1))


def meanfield_guide(family: TransmissionModel, hypothesis: int, theta: GaussianTheta, batch: Batch) -> None:
    """q(theta_1) ... q(theta_D) q(b_1) ... q(b_N), with the encoder's means and its marginal precisions ignored."""
    field = family.fields[hypothesis]
    with pyro.plate("loci", batch.n_loci, subsample=batch.locus):
        sd = torch.diagonal(theta.scale_tril, dim1=1, dim2=2)
        vector = pyro.sample("theta", dist.Normal(theta.mean, sd).to_event(1), infer={"is_auxiliary": True})
        _emit_theta(family, hypothesis, vector)
        beta, components = _split_theta(family, hypothesis, theta.mean)
        factors = [prior_factor(group, components) for group in field.groups]
        with torch.no_grad():
            sites = fit_sites(family, field, beta, factors, batch, factorized_variance)
        for k, posterior in enumerate(field_posterior(field, beta, factors, sites)):
            sd = factorized_variance(posterior.covariance).sqrt()
            pyro.sample(f"field_{k}", dist.Normal(posterior.mean, sd).to_event(2))


# Of the family `transmission`, and of the family `epimutation`; keys are values of fit.guide.
GUIDES = {"structured": structured_guide, "meanfield": meanfield_guide}


def _split_theta(family: TransmissionModel, hypothesis: int, vector: Tensor) -> tuple[list[Tensor], Theta]:
    """Effects and variance components of a vector theta [B, D]."""
    effects = 1 + len(family.fields[hypothesis].design_column)
    beta = [vector[:, 0]] + ([vector[:, 1:effects]] if effects > 1 else [])
    names = family.hypotheses[hypothesis].parameters
    parameters = {name: vector[:, effects + k] for k, name in enumerate(names)}
    return beta, variance_components(family.hypotheses[hypothesis], parameters)


def _emit_theta(family: TransmissionModel, hypothesis: int, vector: Tensor) -> tuple[list[Tensor], Theta]:
    """Hand the coordinates of theta to the model's sites."""
    beta, components = _split_theta(family, hypothesis, vector)
    pyro.sample("baseline", dist.Delta(beta[0]))
    if len(beta) > 1:
        pyro.sample("effects", dist.Delta(beta[1], event_dim=1))
    offset = 1 + len(family.fields[hypothesis].design_column)
    for k, name in enumerate(family.hypotheses[hypothesis].parameters):
        pyro.sample(name, dist.Delta(vector[:, offset + k]))
    return beta, components


def marginal_variance(covariance: Tensor) -> Tensor:
    """Variances of a Gaussian, [B, F, n]."""
    return torch.diagonal(covariance, dim1=2, dim2=3)


def factorized_variance(covariance: Tensor) -> Tensor:
    """Variances of the best factorized approximation of a Gaussian: its precision's inverse diagonal, [B, F, n]."""
    return 1.0 / torch.diagonal(torch.linalg.inv(covariance), dim1=2, dim2=3)


def fit_sites(
    family: TransmissionModel,
    field: FieldTensors,
    beta: list[Tensor],
    factors: list[Tensor],
    batch: Batch,
    variance_of: Callable[[Tensor], Tensor] = marginal_variance,
) -> Sites:
    """Sites that maximize the bound over b at fixed theta, from empirical logits by fixed-point iteration."""
    node, weight = (batch.meth.new_tensor(x) for x in _gauss_hermite(QUADRATURE_NODES))
    covered = batch.total > 0
    precision = (batch.meth + 0.5) * (batch.total - batch.meth + 0.5) / (batch.total + 1.0) * covered
    sites = Sites(precision, precision * torch.log((batch.meth + 0.5) / (batch.total - batch.meth + 0.5)))
    for _ in range(SITE_ITERATIONS):
        posterior = field_posterior(field, beta, factors, sites)
        mean = linear_predictor(field, beta, [group.mean for group in posterior])
        variance = torch.cat([variance_of(group.covariance).flatten(1) for group in posterior], dim=1)
        variance = variance[:, field.latent_of_sample]
        sd = variance.sqrt()
        slope = read_slope(
            batch.meth,
            batch.total,
            mean + sd * node[:, None, None],
            family.false_methylated,
            family.false_unmethylated,
        )
        expected_slope = torch.einsum("q,qbs->bs", weight, slope)
        # Stein: E[l''] = E[l' (y - mean)] / variance.
        curvature = -torch.einsum("q,qbs->bs", weight * node, slope) / sd
        precision = curvature.clamp_min(SMALLEST_SITE_PRECISION) * covered
        sites = Sites(precision, expected_slope * covered + precision * mean)
    return sites


def field_posterior(
    field: FieldTensors, beta: list[Tensor], factors: list[Tensor], sites: Sites
) -> list[GroupPosterior]:
    """q(b | theta): covariance T = L (I + L' Lambda L)^-1 L' and mean T (shift - Lambda X beta)."""
    latents = sum(factor.shape[1] * factor.shape[2] for factor in factors)
    batch = sites.precision.shape[0]
    zero = sites.precision.new_zeros(batch, latents)
    fixed = linear_predictor(field, beta, [zero])
    index = field.latent_of_sample.expand(batch, -1)
    precision = zero.scatter_add(1, index, sites.precision)
    target = zero.scatter_add(1, index, sites.shift - sites.precision * fixed)
    posterior, offset = [], 0
    for factor in factors:
        _, blocks, n = factor.shape[:3]
        here = slice(offset, offset + blocks * n)
        weight = precision[:, here].reshape(batch, blocks, n)
        pull = target[:, here].reshape(batch, blocks, n)
        offset += blocks * n
        if n == 1:
            variance = factor.square()
            covariance = variance / (1.0 + variance * weight[..., None])
        else:
            inner = factor.mT @ (weight[..., None] * factor) + torch.eye(n, dtype=factor.dtype, device=factor.device)
            half = torch.linalg.solve_triangular(torch.linalg.cholesky(inner), factor.mT, upper=False)
            covariance = half.mT @ half
        posterior.append(GroupPosterior((covariance @ pull[..., None]).squeeze(-1), covariance))
    return posterior


def _gauss_hermite(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights for a standard normal."""
    node, weight = np.polynomial.hermite_e.hermegauss(nodes)
    return node, weight / math.sqrt(2.0 * math.pi)
