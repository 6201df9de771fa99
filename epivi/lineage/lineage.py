"""A pedigree as the lineage of epigenotypes: nodes parents first, how each came to be, and which samples show it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from epivi.base.errors import UserError
from epivi.cohort.pedigree import Pedigree, reduce

FOUNDER, SELFING, CLONAL, OUTCROSS = "founder", "selfing", "clonal", "outcross"
UNKNOWN_PARENT = "other parent of "  # name of the founder that stands for a parent that the pedigree does not name


class Lineage(NamedTuple):
    """N nodes, parents before children, and S samples."""

    nodes: tuple[str, ...]
    transmission: tuple[str, ...]  # of each node: FOUNDER, SELFING, CLONAL or OUTCROSS
    parents: tuple[tuple[int, ...], ...]  # of each node: (), (parent,) or (mother, father)
    generations: tuple[int, ...]  # on the edge to the node; 1 for founders and outcrossed nodes
    samples: NDArray[np.int64]  # [S], node of each sample; several may show one node, and many nodes have none

    @property
    def branches(self) -> tuple[tuple[int, int], ...]:
        """(parent, child) of every edge, in the order of the children, and the mother's before the father's."""
        return tuple((parent, child) for child, parents in enumerate(self.parents) for parent in parents)


def build_lineage(pedigree: Pedigree, individuals: Sequence[str], keep_unsampled: bool = False) -> Lineage:
    """The lineage of S samples; individuals: the individual of each, [S], in the pedigree.

    Individuals without a sample whose states say nothing of the samples are dropped, and one with a single child of its
    own mode becomes part of a longer edge; keep_unsampled keeps them all. A sexual individual with one parent known has
    a founder for the other. Raises UserError for an individual that the pedigree does not have.
    """
    unknown = sorted(set(individuals) - set(pedigree.individuals))
    if unknown:
        raise UserError(f"individual {unknown[0]!r} of a sample is not in the pedigree")
    if not keep_unsampled:
        # METHOD: founders of samples stay although nobody saw them: they are what the proportions of founder states
        # describe, and the child of one has other proportions.
        pedigree = reduce(pedigree, [*individuals, *_founders_of(pedigree, individuals)])
    nodes: list[str] = []
    transmission: list[str] = []
    parents: list[tuple[int, ...]] = []
    generations: list[int] = []
    place: dict[int, int] = {}

    def add(name: str, kind: str, above: tuple[int, ...], gap: int) -> int:
        nodes.append(name)
        transmission.append(kind)
        parents.append(above)
        generations.append(gap)
        return len(nodes) - 1

    for index, name in enumerate(pedigree.individuals):
        known = [int(parent) for parent in (pedigree.mother[index], pedigree.father[index])]
        if max(known) < 0:
            place[index] = add(name, FOUNDER, (), 1)
        elif pedigree.mode[index] != "sexual":
            gap = int(pedigree.generations[index])
            place[index] = add(name, pedigree.mode[index], (place[known[0]],), gap)
        else:
            above = tuple(
                place[parent] if parent >= 0 else add(UNKNOWN_PARENT + name, FOUNDER, (), 1) for parent in known
            )
            place[index] = add(name, OUTCROSS, above, 1)
    position = {name: index for index, name in enumerate(nodes)}
    samples = np.array([position[name] for name in individuals], dtype=np.int64)
    return Lineage(tuple(nodes), tuple(transmission), tuple(parents), tuple(generations), samples)


def _founders_of(pedigree: Pedigree, individuals: Sequence[str]) -> list[str]:
    """Names of the individuals without parents that the samples descend from."""
    is_ancestor = np.isin(pedigree.individuals, list(individuals))
    founders = []
    for index in range(len(is_ancestor) - 1, -1, -1):  # children before their parents
        parents = [parent for parent in (pedigree.mother[index], pedigree.father[index]) if parent >= 0]
        if is_ancestor[index]:
            is_ancestor[parents] = True
            if not parents:
                founders.append(pedigree.individuals[index])
    return founders
