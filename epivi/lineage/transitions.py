"""Transmission of the epigenotypes UU, UM and MM, in this order everywhere: an index is the number of M copies.

alpha is the probability that a U copy is gained as M, beta that an M copy is lost as U, per copy transmitted and
generation. A gamete carries one of its parent's two copies, each with probability 1/2, after that copy had its chance
to change; so it is M with probability

    g(UU) = alpha,    g(UM) = (1 + alpha - beta) / 2,    g(MM) = 1 - beta

A selfed or outcrossed child is made of two independent gametes, with selfing the diagonal of outcrossing. A clone
carries both of its parent's copies, each after its own chance to change.

A change is an *event* on the way of one transmitted copy. `without` = GAIN or LOSS gives the probability of the child's
state and of no such event in this generation, so that for several generations

    P(at least one gain, end state | start state) = T^g - (T without gains)^g

which counts gains that a later loss or segregation has undone. It is exact, and what a posterior probability of a
change on a branch rests on; only the direct ancestors' copies count, not those of sibs.

# METHOD: selection weighs a child's states by exp(log_fitness * number of M copies) and normalizes over its states, in
# every generation; the events of a generation are weighed by the child that they end in.

Everything is differentiable, and batched: alpha, beta and log_fitness are tensors of shapes that broadcast to [...].
"""

from __future__ import annotations

import torch
from torch import Tensor

STATES = ("UU", "UM", "MM")
GAIN, LOSS = "gain", "loss"


def _gametes(alpha: Tensor, beta: Tensor, without: str | None) -> Tensor:
    """Probability of the parent's gamete, [..., 3, 2 (U, M)]; `without` gives that of no such event besides."""
    alpha, beta = torch.broadcast_tensors(alpha, beta)
    gained = torch.zeros_like(alpha) if without == GAIN else alpha
    lost = torch.zeros_like(beta) if without == LOSS else beta
    from_u = torch.stack([1 - alpha, gained], -1)
    from_m = torch.stack([lost, 1 - beta], -1)
    return torch.stack([from_u, (from_u + from_m) / 2, from_m], -2)


def outcross(
    alpha: Tensor,
    beta: Tensor,
    log_fitness: Tensor | None = None,
    *,
    without_in_mother: str | None = None,
    without_in_father: str | None = None,
) -> Tensor:
    """Probability of the child's state given mother's and father's, [..., 3 (mother), 3 (father), 3 (child)].

    without_in_mother, without_in_father: GAIN or LOSS, an event that must not happen to that parent's gamete.
    """

    def child(in_mother: str | None, in_father: str | None) -> Tensor:
        mother, father = _gametes(alpha, beta, in_mother), _gametes(alpha, beta, in_father)
        return _two_copies(mother[..., :, None, :], father[..., None, :, :])

    return _selected(child(without_in_mother, without_in_father), child(None, None), log_fitness, parents=2)


def selfing(alpha: Tensor, beta: Tensor, log_fitness: Tensor | None = None, *, without: str | None = None) -> Tensor:
    """Probability of a selfed child's state given its parent's, [..., 3 (parent), 3 (child)]; without: GAIN or LOSS.

    The diagonal of `outcross`; written out in Shahryary et al. 2020, Genome Biology 21:260.
    """

    def child(without: str | None) -> Tensor:
        parent = _gametes(alpha, beta, without)
        return _two_copies(parent, parent)

    return _selected(child(without), child(None), log_fitness, parents=1)


def clonal(alpha: Tensor, beta: Tensor, log_fitness: Tensor | None = None, *, without: str | None = None) -> Tensor:
    """Probability of a clone's state given its parent's, [..., 3 (parent), 3 (child)]; without: GAIN or LOSS."""

    def child(without: str | None) -> Tensor:
        copy = _gametes(alpha, beta, without)
        return _two_copies(copy[..., [0, 0, 2], :], copy[..., [0, 2, 2], :])  # the copies of UU, UM and MM

    return _selected(child(without), child(None), log_fitness, parents=1)


UNIPARENTAL = {"selfing": selfing, "clonal": clonal}


def _two_copies(first: Tensor, second: Tensor) -> Tensor:
    """Distribution of the state [..., 3] from those of its two copies [..., 2 (U, M)]."""
    unmethylated, methylated = first[..., 0] * second[..., 0], first[..., 1] * second[..., 1]
    between = first[..., 0] * second[..., 1] + first[..., 1] * second[..., 0]
    return torch.stack([unmethylated, between, methylated], -1)


def _selected(child: Tensor, every_child: Tensor, log_fitness: Tensor | None, parents: int) -> Tensor:
    """Children's states [..., 3 (parents' states), ..., 3] after selection; every_child: with all events allowed."""
    if log_fitness is None:
        return child
    copies = torch.arange(3, dtype=log_fitness.dtype, device=log_fitness.device)
    fitness = torch.exp(log_fitness[..., None] * copies)[(..., *[None] * parents, slice(None))]
    return child * fitness / (every_child * fitness).sum(-1, keepdim=True)
