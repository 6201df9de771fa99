"""Stochastic variational inference over minibatches of loci with an amortized guide.

For a minibatch and every hypothesis h the Pyro guide is run, the Pyro model replayed against it, and

    ELBO_hl = log p(D_l, theta, b | h) - log q(theta, b | h)

taken locus by locus from the two traces. The guide maximizes sum_h ELBO_hl, every hypothesis alike, because the guide
of a rare hypothesis must still be good at every locus. The hyper-parameters maximize sum_l logsumexp_h(log pi_h +
ELBO_hl), the bound of the hierarchical model with the hypothesis summed out.

Several processes (epivi.fit.ranks) share a minibatch: each takes gradients and bounds of its own loci, with its own
draws, and what all of them step along is the mean over the loci of the whole minibatch, which has the same expectation
for any number of processes.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from epivi.fit.bound import Guide, LossRow, PyroFamily, locus_elbos, mixture_bound
from epivi.fit.minibatch import Minibatches
from epivi.fit.ranks import ALONE, Ranks
from epivi.loci.source import CountsBatch

log = logging.getLogger(__name__)
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


class FitState:
    """Everything that a resumed fit needs: networks, hyper-parameters, optimizer, loss so far, minibatch position.

    From here on each process draws its own noise.
    """

    def __init__(self, encoder: Any, hyper: Any, settings: FitSettings, ranks: Ranks = ALONE) -> None:
        self.encoder = encoder
        self.hyper = hyper
        self.averaged = copy.deepcopy(hyper)
        self.ranks = ranks
        self.device = next(hyper.parameters()).device
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
        self._seed = settings.seed
        if not ranks.is_first:
            torch.manual_seed(_own_seed(settings.seed, ranks))

    def state_dict(self, minibatches: Minibatches) -> dict[str, Any]:
        """The same for all processes, which must ask for it together: `random` holds the state of each."""
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
            "random": self.ranks.gather(_random_state(self.device)),
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
        self._restore_draws(state["random"])

    def _restore_draws(self, states: list[Tensor]) -> None:
        """Go on with the noise of the checkpoint; with fresh noise where it was drawn otherwise."""
        if len(states) == self.ranks.size and states[0].shape == _random_state(self.device).shape:
            _set_random_state(states[self.ranks.rank], self.device)
            return
        log.warning(
            "the checkpoint at step %d is of another number of processes, or of another kind of device: going on with "
            "fresh random draws, not to the same end bit for bit",
            self.step,
        )
        torch.manual_seed(_own_seed(self._seed, self.ranks, self.step))

    def begin_alike(self) -> None:
        """Take the parameters of the first process, which all must do together."""
        if self.ranks.size == 1:
            return
        modules = (self.encoder, self.hyper, self.averaged)
        states = self.ranks.from_first(lambda: [_on_cpu(module.state_dict()) for module in modules])
        for module, state in zip(modules, states, strict=True):
            module.load_state_dict(state)

    def require_same(self) -> None:
        """Raise UserError unless all processes have the same parameters, bit for bit, and the same kind of device."""
        if self.ranks.size == 1:
            return
        digest = hashlib.sha256(self.device.type.encode())
        for module in (self.encoder, self.hyper, self.averaged):
            for tensor in module.state_dict().values():
                digest.update(tensor.cpu().numpy().tobytes())
        self.ranks.require_same(digest.hexdigest(), "parameters or device")


def _on_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu() for name, tensor in state.items()}


def _own_seed(seed: int, ranks: Ranks, step: int = 0) -> int:
    """Seed of the noise of one process, another for every process and number of processes."""
    return int(np.random.SeedSequence([seed, step, ranks.size, ranks.rank]).generate_state(1, np.uint64)[0])


def _random_state(device: torch.device) -> Tensor:
    """Of the generator that draws on this device, bytes."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(state: Tensor, device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


def fit_steps(
    state: FitState,
    family: PyroFamily,
    guide: Guide,
    minibatches: Minibatches,
    settings: FitSettings,
    device: torch.device,
    make_batch: Callable[[CountsBatch, int, torch.device], Any],
) -> Iterator[LossRow]:
    """Run the optimization, one yielded row a step, until converged or out of steps; the caller may stop at any row.

    Of several processes, all must run and stop together; the rows are the same in each.
    make_batch: what the family sees of the counts of a minibatch, of how many loci there are, on which device.
    """
    guide_parameters, hyper_parameters = (list(module.parameters()) for module in (state.encoder, state.hyper))
    parameters = [*guide_parameters, *hyper_parameters]
    holdout = make_batch(minibatches.holdout(), minibatches.n_loci, device)
    state.begin_alike()
    state.require_same()
    while state.step < settings.max_steps and not state.converged:
        _decay_learning_rate(state, settings)
        batch = make_batch(minibatches.draw(), minibatches.n_loci, device)
        elbos = locus_elbos(family, state.hyper, guide, state.encoder, batch)
        bound = mixture_bound(elbos, state.hyper).mean()
        guide_gradients = torch.autograd.grad(-elbos.mean(1).sum(), guide_parameters, retain_graph=True)
        hyper_gradients = torch.autograd.grad(-bound, hyper_parameters, allow_unused=True)
        gradients = [*guide_gradients, *hyper_gradients]
        shared = mean_over_ranks(state.ranks, elbos.shape[1], parameters, gradients, bound.detach())
        _apply(guide_parameters, shared.gradients[: len(guide_parameters)])
        _apply(hyper_parameters, shared.gradients[len(guide_parameters) :])
        state.optimizer.step()
        state.step += 1
        _average(state)
        check = state.step % settings.check_every == 0 or state.step == settings.max_steps
        if check:
            state.require_same()
        held_out = holdout_bound(state, family, guide, holdout, settings.seed) if check else math.nan
        row = LossRow(state.step, shared.bound.item(), held_out)
        state.loss.append(row)
        state.converged = check and has_converged([r.holdout_elbo for r in state.loss], settings.tolerance)
        yield row


class SharedGradients(NamedTuple):
    """Means over the loci of a whole minibatch; a gradient is None where no process has one."""

    gradients: Sequence[Tensor | None]
    bound: Tensor  # nats a locus


def mean_over_ranks(
    ranks: Ranks, n_loci: int, parameters: list[torch.nn.Parameter], gradients: Sequence[Tensor | None], bound: Tensor
) -> SharedGradients:
    """Means over the loci of all processes of what each has as means over its own n_loci loci, the same bits in each.

    # METHOD: each process counts by its loci, so that parts of unequal size leave the expectation what it is in one.
    """
    if ranks.size == 1:
        return SharedGradients(gradients, bound)
    # One exchange for all: sums over loci, the number of processes with a gradient, the number of loci.
    flat = [
        torch.zeros_like(parameter).view(-1) if gradient is None else n_loci * gradient.reshape(-1)
        for parameter, gradient in zip(parameters, gradients, strict=True)
    ]
    present = [float(gradient is not None) for gradient in gradients]
    total = ranks.add_up(torch.cat([*flat, (n_loci * bound).view(1), bound.new_tensor([*present, n_loci])]))
    *sums, bounds, counts, loci = total.split([*map(len, flat), 1, len(present), 1])
    means = [
        (values / loci).view_as(parameter) if count else None
        for parameter, values, count in zip(parameters, sums, counts.tolist(), strict=True)
    ]
    return SharedGradients(means, bounds / loci)


def holdout_bound(state: FitState, family: PyroFamily, guide: Guide, holdout: Any, seed: int) -> float:
    """Mean bound of the held-out loci of all processes, with the same draws at every check.

    The training draws are left untouched.
    """
    ranks = state.ranks
    with torch.random.fork_rng([state.device] if state.device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(seed if ranks.is_first else _own_seed(seed, ranks))
        draws = [
            mixture_bound(locus_elbos(family, state.averaged, guide, state.encoder, holdout), state.averaged)
            for _ in range(HOLDOUT_DRAWS)
        ]
    own = torch.stack([bounds.mean() for bounds in draws]).mean()
    if ranks.size == 1:
        return float(own)
    n_loci = len(draws[0])
    total, loci = ranks.add_up(torch.tensor([float(own) * n_loci, n_loci], dtype=torch.float64)).tolist()
    return float(total / loci)


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


def _apply(parameters: list[torch.nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    clip_grad_norm_(parameters, GRADIENT_NORM)


def _average(state: FitState) -> None:
    share = max(1.0 / state.step, 1.0 / STEPS_AVERAGED)
    with torch.no_grad():
        for mean, now in zip(state.averaged.parameters(), state.hyper.parameters(), strict=True):
            mean.lerp_(now, share)
