"""Draw epigenotypes, their changes and reads on a lineage, copy by copy and generation by generation.

Written without the tables of `epivi.lineage.transitions`, so that the two check each other: every transmitted copy
is chosen, has its chance to change, and the child survives selection or is drawn again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from epivi.lineage.lineage import CLONAL, FOUNDER, OUTCROSS, Lineage

Array = NDArray[np.float64]
States = NDArray[np.int8]
Events = NDArray[np.bool_]


class TrueRates(NamedTuple):
    """What L loci are drawn with; rates are numbers or arrays [L]."""

    alpha: float | Array  # gains per copy and generation
    beta: float | Array  # losses
    founder: Array  # proportions of UU, UM and MM [3], or [L, 3]
    log_fitness: float | Array = 0.0  # log fitness of one more M copy


class TrueEmission(NamedTuple):
    """What reads are drawn with."""

    false_methylated: float  # eps0
    false_unmethylated: float  # eps1
    dispersion: float  # correlation of two reads of a site and sample; 0 is binomial
    coverage_mean: float  # reads
    coverage_size: float = np.inf  # of the negative binomial: variance = mean + mean^2 / size; inf is Poisson


class SimulatedStates(NamedTuple):
    """N nodes and E branches, in the order of the lineage."""

    states: States  # [L, N], number of M copies
    gains: Events  # [L, E], whether a copy on the branch was gained, however it went on
    losses: Events  # [L, E]


def simulate_states(lineage: Lineage, rates: TrueRates, n_loci: int, random: np.random.Generator) -> SimulatedStates:
    """Draw the states of all nodes at L loci."""
    alpha, beta, log_fitness = (
        np.broadcast_to(value, n_loci) for value in (rates.alpha, rates.beta, rates.log_fitness)
    )
    states = np.empty((n_loci, len(lineage.nodes)), dtype=np.int8)
    gains = np.zeros((n_loci, len(lineage.branches)), dtype=np.bool_)
    losses = np.zeros_like(gains)
    branch = 0
    for node, (mode, parents) in enumerate(zip(lineage.transmission, lineage.parents, strict=True)):
        if mode == FOUNDER:
            cumulative = np.cumsum(np.broadcast_to(rates.founder, (n_loci, 3)), axis=1)
            states[:, node] = (random.random(n_loci)[:, None] * cumulative[:, 2:] > cumulative[:, :2]).sum(axis=1)
            continue
        columns = slice(branch, branch + len(parents))
        state = states[:, list(parents)]
        for _ in range(lineage.generations[node]):

            def child(
                loci: NDArray[np.int64], mode: str = mode, state: States = state
            ) -> tuple[States, Events, Events]:
                return _child(mode, state[loci], alpha[loci], beta[loci], random)

            born, gained, lost = _survivors(child, log_fitness, random)
            gains[:, columns] |= gained
            losses[:, columns] |= lost
            state = born[:, None]
        states[:, node] = state[:, 0]
        branch += len(parents)
    return SimulatedStates(states, gains, losses)


def _child(
    mode: str, parents: States, alpha: Array, beta: Array, random: np.random.Generator
) -> tuple[States, Events, Events]:
    """State [L] of a child of parents [L, 1 or 2], and gains and losses in what each parent passed on [L, 1 or 2]."""
    both = parents if mode == OUTCROSS else np.repeat(parents, 2, axis=1)
    # Whether each of the two copies that the child gets is M. Clones get both, others one of each parent's at random.
    if mode == CLONAL:
        before = np.stack([both[:, 0] == 2, both[:, 0] >= 1], axis=1)
    else:
        before = both > 2 * random.random(both.shape)
    changes = random.random(both.shape) < np.where(before, beta[:, None], alpha[:, None])
    gained, lost = changes & ~before, changes & before
    if mode != OUTCROSS:
        gained, lost = gained.any(axis=1, keepdims=True), lost.any(axis=1, keepdims=True)
    return (before ^ changes).sum(axis=1).astype(np.int8), gained, lost


def _survivors(
    child: Callable[[NDArray[np.int64]], tuple[States, Events, Events]], log_fitness: Array, random: np.random.Generator
) -> tuple[States, Events, Events]:
    """Children of all loci, each drawn again until it survives: with probability proportional to its fitness."""
    loci = np.arange(len(log_fitness))
    states, gained, lost = child(loci)
    drawn = states.copy()
    while True:
        most = np.maximum(2 * log_fitness[loci], 0)
        dies = random.random(len(loci)) >= np.exp(log_fitness[loci] * drawn - most)
        loci = loci[dies]
        if not len(loci):
            return states, gained, lost
        drawn, gained[loci], lost[loci] = child(loci)
        states[loci] = drawn


def simulate_reads(
    states: States, emission: TrueEmission, random: np.random.Generator
) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Methylated and total reads [L, S] of samples whose individuals have given states [L, S]."""
    mean, size = emission.coverage_mean, emission.coverage_size
    depth = mean if np.isinf(size) else random.gamma(size, mean / size, size=states.shape)
    total = random.poisson(depth, size=states.shape)
    share = np.array([emission.false_methylated, 0.5, 1 - emission.false_unmethylated])[states]
    if emission.dispersion > 0:
        precision = (1 - emission.dispersion) / emission.dispersion
        share = random.beta(share * precision, (1 - share) * precision)
    return random.binomial(total, share).astype(np.uint16), total.astype(np.uint16)
