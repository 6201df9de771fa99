"""Pairwise divergence of samples: the mean over sites of half the difference in methylated alleles.

A pair's divergence is 1 at a site that is unmethylated (UU) in one sample and methylated (MM) in the other, 1/2
between either and an intermediate site (UM), 0 where the states are equal. States enter as weights [L, S, 3] of UU, UM
and MM at L sites of S samples: 0 and 1 from hard calls (`call_weights`), and from read counts weights whose
expectation, given the state, is that of a hard call without error (`epivi.divergence.counts.StateWeights`). Both give

    divergence of i and j = sum_l sum_xy w_lix w_ljy |x - y| / 2 / (number of sites that both have)

Sums are kept by block of neighbouring sites, so that jackknife and bootstrap see what neighbours share.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from epivi.base.errors import UserError
from epivi.cohort.pedigree import Pedigree
from epivi.divergence.fit import DIFFERENCE, PairTimes

MISSING_STATE = -1
CHUNK_SITES = 1 << 15


class BlockSums(NamedTuple):
    """Sums over the sites of B blocks, for S samples."""

    difference: np.ndarray  # half the difference in methylated alleles, float64 [B, S, S]
    sites: np.ndarray  # sites that both samples have, float64 [B, S, S]
    unmethylated: np.ndarray  # weight of UU, float64 [B, S]


class Pairs(NamedTuple):
    """P pairs of S samples, and their sums over the sites of B blocks."""

    first: np.ndarray  # int64 [P], index of the sample
    second: np.ndarray  # int64 [P], index of the sample, above `first`
    times: PairTimes
    difference: np.ndarray  # float64 [B, P]
    sites: np.ndarray  # float64 [B, P]
    unmethylated: np.ndarray  # float64 [B, S]
    own_sites: np.ndarray  # sites that each sample has, float64 [B, S]

    @property
    def divergence(self) -> np.ndarray:
        """float64 [P]."""
        result: np.ndarray = self.difference.sum(axis=0) / self.sites.sum(axis=0)
        return result

    @property
    def unmethylated_share(self) -> float:
        """Share of UU: the mean over samples of their own."""
        return float(np.mean(self.unmethylated.sum(axis=0) / self.own_sites.sum(axis=0)))


class Replicates(NamedTuple):
    """R bootstrap replicates."""

    divergence: np.ndarray  # float64 [R, P]
    unmethylated_share: np.ndarray  # float64 [R]


# ------------------------------------------------------------------------------------------------------ sums over sites


def block_sums(weights: Iterable[np.ndarray], n_samples: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums over one block from its chunks of state weights [L, S, 3]: difference, sites [S, S]; UU [S].

    A site that a sample does not have is nan in all three weights.
    """
    difference, sites = np.zeros((n_samples, n_samples)), np.zeros((n_samples, n_samples))
    unmethylated = np.zeros(n_samples)
    for chunk in weights:
        is_there = ~np.isnan(chunk[:, :, 0])
        weight = np.where(is_there[:, :, None], chunk, 0.0)
        flat = weight.transpose(0, 2, 1).reshape(-1, n_samples)  # [(L, state), S]
        difference += flat.T @ (DIFFERENCE @ weight.transpose(0, 2, 1)).reshape(-1, n_samples)
        present = is_there.astype(float)
        sites += present.T @ present
        unmethylated += weight[:, :, 0].sum(axis=0)
    return difference, sites, unmethylated


def stack_blocks(blocks: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> BlockSums:
    """The blocks' sums side by side."""
    return BlockSums(*(np.stack(parts) for parts in zip(*blocks, strict=True)))


def call_weights(states: np.ndarray) -> np.ndarray:
    """Weights [L, S, 3] of called states [L, S]: 0 for UU, 1 for UM, 2 for MM, MISSING_STATE where there is no call."""
    weights = (states[:, :, None] == np.arange(3)).astype(float)
    weights[states == MISSING_STATE] = np.nan
    return weights


def sums_of_calls(states: np.ndarray, contig: np.ndarray, blocks: int) -> BlockSums:
    """Sums of called states int8 [L, S] in about `blocks` blocks; contig: code of each site, ascending [L]."""
    size = -(-len(states) // blocks)
    ranges = [
        (start + length * piece // pieces, start + length * (piece + 1) // pieces)
        for start, length in zip(*_runs(contig), strict=True)
        for pieces in [-(-length // size)]
        for piece in range(pieces)
    ]
    return stack_blocks([block_sums(_call_chunks(states[start:stop]), states.shape[1]) for start, stop in ranges])


def _call_chunks(states: np.ndarray) -> Iterable[np.ndarray]:
    return (call_weights(states[start : start + CHUNK_SITES]) for start in range(0, len(states), CHUNK_SITES))


def _runs(contig: np.ndarray) -> tuple[list[int], list[int]]:
    """Start and length of each contig's sites."""
    starts = np.flatnonzero(np.diff(contig, prepend=contig[0] - 1))
    return starts.tolist(), np.diff(starts, append=len(contig)).tolist()


# ---------------------------------------------------------------------------------------------------------------- times


def uniparental_mode(pedigree: Pedigree) -> str:
    """How the pedigree's lines are propagated: "selfing" or "clonal".

    Raises UserError where an individual has two parents, and where both ways occur: divergences have one matrix.
    """
    modes = {mode for mode, mother in zip(pedigree.mode, pedigree.mother.tolist(), strict=True) if mother >= 0}
    modes |= {mode for mode, father in zip(pedigree.mode, pedigree.father.tolist(), strict=True) if father >= 0}
    if "sexual" in modes:
        places = zip(pedigree.individuals, pedigree.mode, pedigree.mother, pedigree.father, strict=True)
        name = next(name for name, mode, *parents in places if mode == "sexual" and max(parents) >= 0)
        raise UserError(
            f"pedigree: individual {name!r} has mode sexual: expected lines propagated by selfing or as clones"
        )
    if len(modes) > 1:
        raise UserError("pedigree: some individuals are selfed and others clonal: expected one mode, or --mode")
    return modes.pop() if modes else "selfing"


def pair_times(pedigree: Pedigree, individuals: Sequence[str]) -> tuple[np.ndarray, np.ndarray, PairTimes]:
    """All pairs of S samples that descend from one founder: indices of the samples [P] each, and their times.

    individuals: individual of each sample, all in a pedigree in which nobody has two parents. Two samples of one
    individual are a pair whose ancestor is the individual.
    """
    size = len(pedigree.individuals)
    depth = np.zeros(size, dtype=np.int64)
    ancestor = np.full((size, size), -1, dtype=np.int64)  # generation of the last common ancestor; -1: there is none
    for index, mother in enumerate(pedigree.mother.tolist()):  # parents come before their children
        if mother >= 0:
            depth[index] = depth[mother] + pedigree.generations[index]
            ancestor[index, :index] = ancestor[mother, :index]
            ancestor[:index, index] = ancestor[index, :index]
        ancestor[index, index] = depth[index]
    position = {name: index for index, name in enumerate(pedigree.individuals)}
    place = np.array([position[name] for name in individuals])
    first, second = np.triu_indices(len(place), k=1)
    shared = ancestor[place[first], place[second]]
    kept = shared >= 0
    first, second, shared = first[kept], second[kept], shared[kept]
    return first, second, PairTimes(shared, depth[place[first]], depth[place[second]])


def pairs_of(sums: BlockSums, first: np.ndarray, second: np.ndarray, times: PairTimes, samples: Sequence[str]) -> Pairs:
    """The sums of some pairs. Raises UserError naming two samples that share no site."""
    sites = sums.sites[:, first, second]
    empty = np.flatnonzero(sites.sum(axis=0) == 0)
    if empty.size:
        names = f"{samples[first[empty[0]]]!r} and {samples[second[empty[0]]]!r}"
        raise UserError(f"samples {names} have no site in common: expected sites that are covered or called in both")
    own = np.diagonal(sums.sites, axis1=1, axis2=2)
    return Pairs(first, second, times, sums.difference[:, first, second], sites, sums.unmethylated, own)


# ---------------------------------------------------------------------------------------------------------- uncertainty


def jackknife_error(pairs: Pairs) -> np.ndarray:
    """Standard error of each divergence when one block at a time is left out, float64 [P]; nan where none is left."""
    blocks = len(pairs.sites)
    with np.errstate(invalid="ignore", divide="ignore"):
        left = (pairs.difference.sum(axis=0) - pairs.difference) / (pairs.sites.sum(axis=0) - pairs.sites)
    return np.sqrt((blocks - 1) / blocks * np.sum((left - left.mean(axis=0)) ** 2, axis=0))


def block_replicates(pairs: Pairs, replicates: int, seed: int) -> Replicates:
    """Divergences and share of UU when the blocks are drawn anew with replacement.

    Raises UserError where the sites of a pair lie in so few blocks that a replicate can miss them all.
    """
    random = np.random.default_rng([seed, 2])
    blocks = len(pairs.sites)
    counts = random.multinomial(blocks, np.full(blocks, 1 / blocks), size=replicates).astype(float)
    sites, own = counts @ pairs.sites, counts @ pairs.own_sites
    if sites.min() <= 0 or own.min() <= 0:
        raise UserError(f"--blocks: some pairs share sites in very few of the {blocks} blocks; expected fewer blocks")
    unmethylated = (counts @ pairs.unmethylated) / own
    return Replicates((counts @ pairs.difference) / sites, unmethylated.mean(axis=1))
