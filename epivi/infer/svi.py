"""Stochastic variational inference over minibatches of loci with an amortized guide.

For a minibatch and every hypothesis h the Pyro guide is run, the Pyro model replayed against it, and

    ELBO_hl = log p(D_l, theta, b | h) - log q(theta, b | h)

taken locus by locus from the two traces. The guide climbs sum_h ELBO_hl, every hypothesis alike, because the guide of a
rare hypothesis must still be good at every locus. The hyper-parameters climb sum_l logsumexp_h(log pi_h + ELBO_hl), the
bound of the hierarchical model with the hypothesis summed out.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import pyro
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from epivi.field import Cohort
from epivi.guides.encoder import Encoder, GaussianTheta
from epivi.minibatch import CountsBatch, Minibatches
from epivi.models.family import PyroFamily
from epivi.models.transmission import Batch, Hyperparameters, TransmissionModel

# Of a family's density and its batches; the last argument is a batch.
Guide = Callable[[Any, int, GaussianTheta, Any], None]


class LearnedWeights(Protocol):
    """The part of any family's hyper-parameters that the bound needs."""

    def log_weights(self) -> Tensor:
        """Log weights of the hypotheses [H], normalized."""


FIT_DTYPE = torch.float32
HYPER_LEARNING_RATE = 0.02
FINAL_LEARNING_RATE_SHARE = 0.05
GRADIENT_NORM = 100.0
STEPS_AVERAGED = 100  # the reported hyper-parameters are a running mean over about this many steps
HOLDOUT_DRAWS = 4


class FitSettings(NamedTuple):
    """The `fit` section of the configuration, as far as the optimization needs it."""

    max_steps: int
    learning_rate: float
    check_every: int
    tolerance: float
    seed: int


class LossRow(NamedTuple):
    """One row of the loss trace, nats a locus; holdout_elbo is nan between checks."""

    step: int
    batch_elbo: float
    holdout_elbo: float


class FitState:
    """Everything that a resumed fit needs: networks, hyper-parameters, optimizer, loss so far, minibatch position."""

    def __init__(self, encoder: Any, hyper: Any, settings: FitSettings) -> None:
        self.encoder = encoder
        self.hyper = hyper
        self.averaged = copy.deepcopy(hyper)
        self.optimizer = torch.optim.Adam(
            [
                {"params": list(encoder.parameters()), "lr": settings.learning_rate},
                {"params": list(hyper.parameters()), "lr": HYPER_LEARNING_RATE},
            ]
        )
        self.step = 0
        self.converged = False
        self.loss: list[LossRow] = []
        self.elapsed: dict[int, float] = {}  # seconds at each step, kept by the caller, who has the clock

    def state_dict(self, minibatches: Minibatches) -> dict[str, Any]:
        return {
            "encoder": self.encoder.state_dict(),
            "hyper": self.hyper.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "converged": self.converged,
            "loss": [tuple(row) for row in self.loss],
            "elapsed": self.elapsed,
            "minibatches": minibatches.state(),
            "random": torch.get_rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any], minibatches: Minibatches) -> None:
        self.encoder.load_state_dict(state["encoder"])
        self.hyper.load_state_dict(state["hyper"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.converged = state["converged"]
        self.loss = [LossRow(*row) for row in state["loss"]]
        self.elapsed = dict(state["elapsed"])
        minibatches.restore(state["minibatches"])
        torch.set_rng_state(state["random"])


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


def to_batch(counts: CountsBatch, n_loci: int, device: torch.device, dtype: torch.dtype = FIT_DTYPE) -> Batch:
    """Counts as tensors, with the log binomial coefficients."""
    meth, total = (torch.as_tensor(x.astype("float64")).to(device) for x in (counts.meth, counts.total))
    log_binomial = torch.lgamma(total + 1) - torch.lgamma(meth + 1) - torch.lgamma(total - meth + 1)
    meth, total, log_binomial = (x.to(dtype) for x in (meth, total, log_binomial))
    return Batch(meth, total, log_binomial, torch.as_tensor(counts.locus, device=device), n_loci)


def new_state(
    cohort: Cohort,
    family: TransmissionModel,
    baseline_components: int,
    hidden: int,
    settings: FitSettings,
    device: torch.device,
) -> FitState:
    """Fresh networks and hyper-parameters; draws from torch's random state."""
    encoder = Encoder(cohort, family, hidden).to(device, FIT_DTYPE)
    hyper = Hyperparameters(baseline_components, len(cohort.covariates), len(family.hypotheses))
    return FitState(encoder, hyper.to(device, FIT_DTYPE), settings)


def initialize(state: FitState, batch: Batch) -> None:
    """Standardize the features and place the baseline components at quantiles of the pooled logits of some loci."""
    state.encoder.summary.standardize(batch)
    summary = state.encoder.summary(batch)
    k = len(state.hyper.baseline_means)
    quantiles = torch.linspace(0.5 / k, 1 - 0.5 / k, k).to(batch.meth)
    with torch.no_grad():
        state.hyper.baseline_means.copy_(torch.quantile(summary.pooled_logit, quantiles))
        state.averaged.load_state_dict(state.hyper.state_dict())


def fit_steps(
    state: FitState,
    family: PyroFamily,
    guide: Guide,
    minibatches: Minibatches,
    settings: FitSettings,
    device: torch.device,
    make_batch: Callable[[CountsBatch, int, torch.device], Any] | None = None,
) -> Iterator[LossRow]:
    """Run the optimization, one yielded row a step, until converged or out of steps; the caller may stop at any row.

    make_batch: what the family sees of the counts of a minibatch; `to_batch` where it is None.
    """
    make_batch = make_batch or to_batch
    guide_parameters, hyper_parameters = (list(module.parameters()) for module in (state.encoder, state.hyper))
    holdout = make_batch(minibatches.holdout(), minibatches.n_loci, device)
    while state.step < settings.max_steps and not state.converged:
        _decay_learning_rate(state, settings)
        batch = make_batch(minibatches.draw(), minibatches.n_loci, device)
        elbos = locus_elbos(family, state.hyper, guide, state.encoder, batch)
        bound = mixture_bound(elbos, state.hyper).mean()
        guide_gradients = torch.autograd.grad(-elbos.mean(1).sum(), guide_parameters, retain_graph=True)
        hyper_gradients = torch.autograd.grad(-bound, hyper_parameters, allow_unused=True)
        _apply(guide_parameters, guide_gradients)
        _apply(hyper_parameters, hyper_gradients)
        state.optimizer.step()
        state.step += 1
        _average(state)
        check = state.step % settings.check_every == 0 or state.step == settings.max_steps
        held_out = holdout_bound(state, family, guide, holdout, settings.seed) if check else math.nan
        row = LossRow(state.step, bound.item(), held_out)
        state.loss.append(row)
        state.converged = check and has_converged([r.holdout_elbo for r in state.loss], settings.tolerance)
        yield row


def holdout_bound(state: FitState, family: PyroFamily, guide: Guide, holdout: Any, seed: int) -> float:
    """Mean bound of the held-out loci, with the same draws at every check; the training draws are left untouched."""
    random = torch.get_rng_state()
    torch.manual_seed(seed)
    with torch.no_grad():
        draws = [
            mixture_bound(locus_elbos(family, state.averaged, guide, state.encoder, holdout), state.averaged).mean()
            for _ in range(HOLDOUT_DRAWS)
        ]
    torch.set_rng_state(random)
    return float(torch.stack(draws).mean())


def has_converged(holdout: list[float], tolerance: float) -> bool:
    """Whether the mean of the last three checks gained less than `tolerance`, relatively, over the three before."""
    checks = [value for value in holdout if not math.isnan(value)]
    if len(checks) < 6:
        return False
    before, now = sum(checks[-6:-3]) / 3, sum(checks[-3:]) / 3
    return now - before < tolerance * abs(before)


def _decay_learning_rate(state: FitState, settings: FitSettings) -> None:
    share = FINAL_LEARNING_RATE_SHARE ** (state.step / settings.max_steps)
    for group, initial in zip(state.optimizer.param_groups, (settings.learning_rate, HYPER_LEARNING_RATE), strict=True):
        group["lr"] = initial * share


def _apply(parameters: list[torch.nn.Parameter], gradients: tuple[Tensor | None, ...]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    clip_grad_norm_(parameters, GRADIENT_NORM)


def _average(state: FitState) -> None:
    share = max(1.0 / state.step, 1.0 / STEPS_AVERAGED)
    with torch.no_grad():
        for mean, now in zip(state.averaged.parameters(), state.hyper.parameters(), strict=True):
            mean.lerp_(now, share)
