"""The bound that a fit raises: weighted traces of guide and model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import pyro
import torch
from torch import Tensor

from epivi.fit.gaussian import GaussianTheta

# Of a family's density and its batches; the last argument is a batch.
Guide = Callable[[Any, int, GaussianTheta, Any], None]


class LearnedWeights(Protocol):
    """The part of any family's hyper-parameters that the bound needs."""

    def log_weights(self) -> Tensor:
        """Log weights of the hypotheses [H], normalized."""


class LossRow(NamedTuple):
    """One row of the loss trace, nats a locus; holdout_elbo is nan between checks."""

    step: int
    batch_elbo: float
    holdout_elbo: float


def locus_elbos(
    family: PyroFamily,
    hyper: LearnedWeights,
    guide: Guide,
    encoder: Callable[..., tuple[GaussianTheta, ...]],
    batch: Any,
) -> Tensor:
    """One-draw ELBO of every hypothesis at every locus of the minibatch, [H, B], nats."""
    gaussians = encoder(batch, hyper)
    return torch.stack([weighted_trace(family, hyper, guide, h, theta, batch)[0] for h, theta in enumerate(gaussians)])


def weighted_trace(
    family: PyroFamily, hyper: LearnedWeights, guide: Guide, hypothesis: int, theta: GaussianTheta, batch: Any
) -> tuple[Tensor, pyro.poutine.Trace]:
    """One draw of the guide at every locus: log p(D, x) - log q(x) [B], and the model's trace with log densities."""
    guided = pyro.poutine.trace(guide).get_trace(family, hypothesis, theta, batch)
    modelled = pyro.poutine.trace(pyro.poutine.replay(family.density, guided)).get_trace(hyper, hypothesis, batch)
    return _unscaled_log_prob(modelled) - _unscaled_log_prob(guided), modelled


def _unscaled_log_prob(trace: pyro.poutine.Trace) -> Tensor:
    """Log density of every locus, [B], without the plate's scaling to all loci."""
    trace.compute_log_prob()
    terms = [
        site["unscaled_log_prob"]
        for site in trace.nodes.values()
        if site["type"] == "sample" and not isinstance(site["fn"], pyro.poutine.subsample_messenger._Subsample)
    ]
    # A guide of a hypothesis without free parameters draws nothing.
    return torch.stack(torch.broadcast_tensors(*terms)).sum(0) if terms else torch.zeros(())


def mixture_bound(elbos: Tensor, hyper: LearnedWeights) -> Tensor:
    """Bound of each locus with the hypothesis summed out, [B]."""
    return torch.logsumexp(hyper.log_weights()[:, None] + elbos, dim=0)


class PyroFamily(Protocol):
    """The density of a family for one cohort: all that the Pyro model function needs besides the data."""

    def density(self, hyper: Any, hypothesis: int, batch: Any) -> None:
        """The Pyro model function of one hypothesis over a minibatch of loci."""
