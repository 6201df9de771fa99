"""Simulated lines whose epimutation rates are known: states by drawing every generation, calls and reads from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from epivi.cohort.pedigree import Pedigree
from epivi.divergence.fit import equilibrium
from epivi.lineage.transitions import UNIPARENTAL

Array = np.ndarray[Any, Any]


def lines_pedigree(n_lines: int, generations: tuple[int, ...], mode: str = "selfing") -> tuple[Pedigree, list[str]]:
    """Lines from one founder, sampled at each of some generations; and the individuals to sample, founder first."""
    individuals, mother, edge = ["founder"], [-1], [1]
    for line in range(n_lines):
        parent, before = 0, 0
        for generation in generations:
            individuals.append(f"{generation}_{line}")
            mother.append(parent)
            edge.append(generation - before)
            parent, before = len(individuals) - 1, generation
    size = len(individuals)
    pedigree = Pedigree(
        individuals=tuple(individuals),
        mother=np.array(mother, dtype=np.int32),
        father=np.full(size, -1, dtype=np.int32),
        mode=("sexual", *(mode,) * (size - 1)),
        generations=np.array(edge, dtype=np.int32),
        sex=("unknown",) * size,
    )
    return pedigree, individuals


def transition(alpha: float, beta: float, mode: str) -> Array:
    """Probability of the state in a row's offspring [3, 3]."""
    return np.asarray(UNIPARENTAL[mode](*torch.tensor([alpha, beta], dtype=torch.float64)))


def draw_states(
    pedigree: Pedigree,
    alpha: float,
    beta: float,
    n_sites: int,
    random: np.random.Generator,
    *,
    mode: str = "selfing",
    founder: Array | None = None,
) -> Array:
    """States int8 [L, individuals], one generation after another; founder: shares of UU, UM, MM, or the equilibrium."""
    cumulative = np.cumsum(transition(alpha, beta, mode), axis=1)
    shares = equilibrium(alpha, beta, mode) if founder is None else founder
    states = np.empty((n_sites, len(pedigree.individuals)), dtype=np.int8)
    for index, mother in enumerate(pedigree.mother.tolist()):
        if mother < 0:
            states[:, index] = random.choice(3, size=n_sites, p=shares)
            continue
        state = states[:, mother]
        for _ in range(int(pedigree.generations[index])):
            draw = random.random(n_sites)
            state = (draw > cumulative[state, 0]).astype(np.int8) + (draw > cumulative[state, 1])
        states[:, index] = state
    return states


def draw_reads(
    states: Array,
    depth: float,
    random: np.random.Generator,
    *,
    levels: tuple[float, float, float] = (0.01, 0.5, 0.97),
    dispersion: float = 0.02,
) -> tuple[Array, Array]:
    """Methylated and total reads uint16 [L, S]: Poisson coverage, beta-binomial methylation."""
    total = random.poisson(depth, size=states.shape)
    precision = (1 - dispersion) / dispersion
    level = np.array(levels)[states]
    share = random.beta(level * precision, (1 - level) * precision)
    return random.binomial(total, share).astype(np.uint16), total.astype(np.uint16)
