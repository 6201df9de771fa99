"""The amortized guide of the family `epimutation`: the Gaussian over a locus's own rates and fitness.

The states are summed out in the model, so that the guide has theta only. What the network sees of a locus is the
gradient of its exact log likelihood by logit alpha, logit beta and log fitness at the values of its class: expected
numbers of gains, losses and of what selection would explain, which no relabelling of members or lines can change.
"""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from epivi.families.epimutation.density import EpimutationBatch, EpimutationModel, prior_moments
from epivi.fit.gaussian import GaussianTheta, bounded_gaussian, quiet_linear
from epivi.lineage.likelihood import EpimutationRates, log_likelihood

FEATURES = 6


class EpimutationEncoder(nn.Module):
    """Scores of a locus to a Gaussian over the parameters of every hypothesis."""

    location: Tensor  # [FEATURES]
    scale: Tensor  # [FEATURES]

    def __init__(self, family: EpimutationModel, hidden: int) -> None:
        super().__init__()
        self.family = family
        self.trunk = nn.Sequential(nn.Linear(FEATURES, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        dimensions = [len(hypothesis.parameters) for hypothesis in family.hypotheses]
        self.heads = nn.ModuleDict(
            {str(h): quiet_linear(hidden + FEATURES, d + d * (d + 1) // 2) for h, d in enumerate(dimensions) if d}
        )
        self.register_buffer("location", torch.zeros(FEATURES))
        self.register_buffer("scale", torch.ones(FEATURES))

    def standardize(self, batch: EpimutationBatch) -> None:
        """Set the features' location and scale from a sample of loci."""
        raw = features(self.family, batch)
        self.location.copy_(raw.mean(0))
        self.scale.copy_(raw.std(0).clamp_min(1e-3))

    def forward(self, batch: EpimutationBatch, hyper: Any) -> tuple[GaussianTheta, ...]:
        """q(theta) of every hypothesis; nothing of the hyper-parameters is needed."""
        seen = ((features(self.family, batch) - self.location) / self.scale).clamp(-5.0, 5.0)
        hidden = torch.cat([self.trunk(seen), seen], 1)
        return tuple(self._gaussian(h, hidden, batch) for h in range(len(self.family.hypotheses)))

    def _gaussian(self, hypothesis: int, hidden: Tensor, batch: EpimutationBatch) -> GaussianTheta:
        mean, sd = prior_moments(self.family, hypothesis, batch.class_code)
        if mean.shape[1] == 0:
            return GaussianTheta(mean, torch.diag_embed(sd))
        return bounded_gaussian(self.heads[str(hypothesis)](hidden), mean, sd)


def features(family: EpimutationModel, batch: EpimutationBatch) -> Tensor:
    """What the network sees of each locus, [B, FEATURES], without gradient."""
    with torch.enable_grad():
        logits = family.class_logits[batch.class_code].detach().requires_grad_()
        fitness = torch.zeros_like(logits[:, 0]).requires_grad_()
        rates = torch.sigmoid(logits)
        founder = family.founder[batch.class_code]
        likelihood = log_likelihood(
            family.plan, EpimutationRates(rates[:, 0], rates[:, 1], founder, fitness), batch.log_emission
        )
        scores = torch.autograd.grad(likelihood.sum(), [logits, fitness])
    score = torch.cat([scores[0], scores[1][:, None]], 1)
    bounded = torch.sign(score) * torch.log1p(score.abs())
    others = torch.stack(
        [torch.log1p(batch.coverage), batch.methylated, likelihood.detach() / len(family.plan.lineage.samples)], 1
    )
    return torch.cat([bounded, others], 1)


def full_guide(family: EpimutationModel, hypothesis: int, theta: GaussianTheta, batch: EpimutationBatch) -> None:
    """q(theta): the encoder's Gaussian with its covariance."""
    _emit(family, hypothesis, batch, theta.mean, theta.scale_tril)


def independent_guide(family: EpimutationModel, hypothesis: int, theta: GaussianTheta, batch: EpimutationBatch) -> None:
    """q(theta_1) ... q(theta_D), with the encoder's means and the diagonal of its factor."""
    diagonal = torch.diag_embed(torch.diagonal(theta.scale_tril, dim1=1, dim2=2))
    _emit(family, hypothesis, batch, theta.mean, diagonal)


EPIMUTATION_GUIDES = {"structured": full_guide, "meanfield": independent_guide}


def _emit(family: EpimutationModel, hypothesis: int, batch: EpimutationBatch, mean: Tensor, scale_tril: Tensor) -> None:
    """Draw theta and hand its coordinates to the model's sites."""
    names = family.hypotheses[hypothesis].parameters
    with pyro.plate("loci", batch.n_loci, subsample=batch.locus):
        if names:
            gaussian = dist.MultivariateNormal(mean, scale_tril=scale_tril)
            vector = pyro.sample("theta", gaussian, infer={"is_auxiliary": True})
            for k, name in enumerate(names):
                pyro.sample(name, dist.Delta(vector[:, k]))
