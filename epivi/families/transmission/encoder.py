"""The amortized encoder: features of a locus that no relabelling of members or families can change, and a small
network.

From the counts the network sees, for each locus: the pooled logit, how much the individuals spread beyond binomial
noise, how much was read, the regression of the logits on each covariate; and for each hypothesis the score and the
information, at no covariance, of the covariance that the hypothesis adds (residual products between relatives,
weighted by precision and by what the hypothesis makes them share). From these it predicts, for each hypothesis, a
full-covariance Gaussian over theta = (baseline, effects, log spread, free logits).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from epivi.families.transmission.density import Batch, Hyperparameters, TransmissionModel
from epivi.families.transmission.hypotheses import Hypothesis
from epivi.field.layout import Cohort, field_covariance
from epivi.fit.gaussian import GaussianTheta, bounded_gaussian, quiet_linear

PROBE_TRANSMISSIBILITIES = (1.0, 0.5)
SPREAD_BOUNDS = (0.05, 9.0)  # of the moment estimate of sigma^2, a feature only


class Summary(NamedTuple):
    """Moment estimates that the features and the predictions start from."""

    features: Tensor  # [B, I]
    pooled_logit: Tensor  # [B]
    pooled_sd: Tensor  # [B], standard error of the pooled logit
    effects: Tensor  # [B, C]
    effect_sds: Tensor  # [B, C]


class SummaryStatistics(nn.Module):
    """Counts to features; buffers hold the cohort's structure and the features' standardization."""

    membership: Tensor  # [S, I]
    probes: Tensor  # [probes, I, I]
    covariates: Tensor  # [I, C]
    location: Tensor  # [features]
    scale: Tensor  # [features]

    def __init__(self, cohort: Cohort, hypotheses: Sequence[Hypothesis]) -> None:
        super().__init__()
        individuals = len(cohort.individuals)
        membership = np.zeros((len(cohort.samples), individuals))
        membership[np.arange(len(cohort.samples)), cohort.individual_of_sample] = 1.0
        # The cohort's structure is not kept with the network, which serves other cohorts of the same form.
        for name, values in (
            ("membership", membership),
            ("probes", _probe_matrices(cohort, hypotheses)),
            ("covariates", _individual_covariates(cohort, membership)),
        ):
            self.register_buffer(name, torch.as_tensor(values), persistent=False)
        size = 8 + 2 * len(self.probes) + 2 * self.covariates.shape[1]
        self.register_buffer("location", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    def standardize(self, batch: Batch) -> None:
        """Set the features' location and scale from a sample of loci."""
        raw = self._raw(batch).features
        self.location.copy_(raw.mean(0))
        self.scale.copy_(raw.std(0).clamp_min(1e-3))

    def forward(self, batch: Batch) -> Summary:
        raw = self._raw(batch)
        return raw._replace(features=((raw.features - self.location) / self.scale).clamp(-5.0, 5.0))

    def _raw(self, batch: Batch) -> Summary:
        meth, total = batch.meth @ self.membership, batch.total @ self.membership
        covered = (total > 0).to(total.dtype)
        logit = torch.log((meth + 0.5) / (total - meth + 0.5))
        noise = 1.0 / (meth + 0.5) + 1.0 / (total - meth + 0.5)
        weight = covered / (noise + 1.0)
        mean, _ = _weighted_mean(logit, weight)
        excess = (weight * ((logit - mean[:, None]) ** 2 - noise)).sum(1) / weight.sum(1).clamp_min(1e-6)
        spread = excess.clamp(*SPREAD_BOUNDS)
        weight = covered / (noise + spread[:, None])
        mean, sd = _weighted_mean(logit, weight)
        effects, effect_sds, residual = _regressions(logit - mean[:, None], weight, self.covariates)
        scores, informations = self._scores(residual * weight, weight, spread)
        pooled = torch.log((meth.sum(1) + 0.5) / ((total - meth).sum(1) + 0.5))
        reads = total.sum(1)
        columns = [
            mean, pooled, sd.log(), spread.log(), excess.clamp(-2.0, 9.0), torch.log1p(reads), covered.mean(1),
            (weight**2 * residual**3).sum(1) / (weight**2).sum(1).clamp_min(1e-6),
        ]  # fmt: skip
        features = torch.cat(
            [torch.stack(columns, 1), scores, informations.log(), effects / effect_sds, effect_sds.log()], 1
        )
        return Summary(features, mean, sd, effects, effect_sds)

    def _scores(self, scaled: Tensor, weight: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
        """Score over root information, and information, of each probe's covariance (zero diagonal), [B, probes]."""
        score = 0.5 * spread[:, None] * torch.einsum("bi,kij,bj->bk", scaled, self.probes, scaled)
        information = 0.5 * spread[:, None] ** 2 * torch.einsum("bi,kij,bj->bk", weight, self.probes**2, weight)
        information = information.clamp_min(1e-6)
        return score / information.sqrt(), information


def _weighted_mean(value: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    total = weight.sum(1).clamp_min(1e-6)
    return (value * weight).sum(1) / total, total.rsqrt()


def _regressions(residual: Tensor, weight: Tensor, covariates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ridge slope of each covariate by itself and its standard error, [B, C]; and the residual after all of them."""
    information = weight @ covariates**2 + 1.0
    slopes = (weight * residual) @ covariates / information
    return slopes, information.rsqrt(), residual - slopes @ covariates.T if covariates.shape[1] else residual


def _individual_covariates(cohort: Cohort, membership: np.ndarray) -> np.ndarray:
    """Mean of each covariate column over the samples of an individual, [I, C]."""
    out = np.zeros((len(cohort.individuals), len(cohort.covariates)))
    for field in cohort.fields:
        out[:, field.design_column] = (membership.T @ field.design[:, 1:]) / membership.sum(0)[:, None]
    return out


def _probe_matrices(cohort: Cohort, hypotheses: Sequence[Hypothesis]) -> np.ndarray:
    """The distinct covariances that the hypotheses add between individuals, diagonal removed, [K, I, I]."""
    probes: list[np.ndarray] = []
    for hypothesis, field in zip(hypotheses, cohort.fields, strict=True):
        for variances in np.eye(field.components, field.components + 1):
            for tau in PROBE_TRANSMISSIBILITIES if hypothesis.has_free_transmissibility else (1.0,):
                matrix = np.zeros((len(cohort.individuals),) * 2)
                covariance = field_covariance(field, variances[None], np.array([tau]))[0]
                matrix[np.ix_(field.individual, field.individual)] = covariance
                np.fill_diagonal(matrix, 0.0)
                if not any(np.allclose(matrix, known) for known in probes):
                    probes.append(matrix)
    return np.array(probes).reshape(-1, len(cohort.individuals), len(cohort.individuals))


class Encoder(nn.Module):
    """Summary statistics to a Gaussian over theta for every hypothesis."""

    def __init__(self, cohort: Cohort, family: TransmissionModel, hidden: int) -> None:
        super().__init__()
        self.summary = SummaryStatistics(cohort, family.hypotheses)
        size = len(self.summary.location)
        self.trunk = nn.Sequential(nn.Linear(size, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        self.dimensions = [
            1 + len(field.design_column) + len(h.parameters)
            for h, field in zip(family.hypotheses, family.fields, strict=True)
        ]
        self.heads = nn.ModuleList(quiet_linear(hidden + size, d + d * (d + 1) // 2) for d in self.dimensions)
        self.family = family

    def forward(self, batch: Batch, hyper: Hyperparameters) -> tuple[GaussianTheta, ...]:
        """q(theta) of every hypothesis; the hyper-parameters set only the starting point and get no gradient here."""
        summary = self.summary(batch)
        hidden = torch.cat([self.trunk(summary.features), summary.features], 1)
        return tuple(self._gaussian(index, head(hidden), summary, hyper) for index, head in enumerate(self.heads))

    def _gaussian(self, index: int, output: Tensor, summary: Summary, hyper: Hyperparameters) -> GaussianTheta:
        return bounded_gaussian(output, *self._start(index, summary, hyper))

    def _start(self, index: int, summary: Summary, hyper: Hyperparameters) -> tuple[Tensor, Tensor]:
        """Centre and width [B, D] that the network's output moves: moment estimates of effects, otherwise the prior."""
        field, hypothesis = self.family.fields[index], self.family.hypotheses[index]
        size = len(summary.pooled_logit)
        columns = field.design_column
        centres = [summary.pooled_logit[:, None], summary.effects[:, columns]]
        widths = [summary.pooled_sd[:, None], summary.effect_sds[:, columns]]
        location, scale = hyper.spread_location.detach(), hyper.spread_log_scale.detach().exp()
        centres.append(location.expand(size, 1))
        widths.append(scale.expand(size, 1))
        for name in hypothesis.prior_names[1:]:
            prior = self.family.priors[name]
            centres.append(torch.full_like(summary.pooled_logit[:, None], prior.mean))
            widths.append(torch.full_like(summary.pooled_logit[:, None], prior.sd))
        return torch.cat(centres, 1), torch.cat(widths, 1)
