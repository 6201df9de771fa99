"""Small lineages of every mode, and the likelihood of their states by enumeration."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from epivi.cohort.pedigree import Pedigree
from epivi.lineage.lineage import Lineage, build_lineage

Array = np.ndarray[Any, Any]
# individual, mother, father, mode, generations
Row = tuple[str, str, str, str, int]


def pedigree_of(*rows: Row) -> Pedigree:
    """Rows with parents first; an empty name is a parent that is not known."""
    names = [row[0] for row in rows]
    place = {name: index for index, name in enumerate(names)} | {"": -1}
    return Pedigree(
        individuals=tuple(names),
        mother=np.array([place[row[1]] for row in rows], dtype=np.int32),
        father=np.array([place[row[2]] for row in rows], dtype=np.int32),
        mode=tuple(row[3] for row in rows),
        generations=np.array([row[4] for row in rows], dtype=np.int32),
        sex=("unknown",) * len(rows),
    )


def founder(name: str) -> Row:
    return name, "", "", "sexual", 1


def selfed(name: str, parent: str, generations: int = 1) -> Row:
    return name, parent, "", "selfing", generations


def cloned(name: str, parent: str, generations: int = 1) -> Row:
    return name, parent, "", "clonal", generations


def crossed(name: str, mother: str, father: str) -> Row:
    return name, mother, father, "sexual", 1


SELFING = pedigree_of(founder("f"), selfed("a", "f"), selfed("b", "a", 3), selfed("c", "f", 30), selfed("d", "c"))
CLONAL = pedigree_of(founder("f"), cloned("a", "f", 2), cloned("b", "a"), cloned("c", "a", 5))
CROSS = pedigree_of(founder("m"), founder("p"), crossed("a", "m", "p"), crossed("b", "m", "p"), crossed("c", "a", ""))
MIXED = pedigree_of(
    founder("m"), founder("p"), crossed("h", "m", "p"), selfed("s", "h", 2), selfed("t", "h"), cloned("k", "s", 4)
)
SIBS = pedigree_of(
    founder("m"), founder("p"), crossed("a", "m", "p"), crossed("b", "m", "p"), crossed("c", "a", "b"),
    crossed("d", "a", "b"),
)  # fmt: skip
BACKCROSS = pedigree_of(founder("m"), founder("p"), crossed("h", "m", "p"), crossed("b", "h", "m"), selfed("s", "b", 2))
TWO_FAMILIES = pedigree_of(founder("f"), selfed("a", "f"), founder("g"), cloned("b", "g", 2), founder("alone"))

# name -> lineage; samples are fewer than individuals, or more
LINEAGES: dict[str, Lineage] = {
    "selfing": build_lineage(SELFING, ["f", "a", "b", "c", "d"]),
    "unsampled": build_lineage(SELFING, ["b", "d"]),
    "clonal": build_lineage(CLONAL, ["f", "b", "c"]),
    "replicates": build_lineage(CLONAL, ["b", "b", "c", "f", "f"]),
    "cross": build_lineage(CROSS, ["m", "a", "b", "c"]),
    "mixed": build_lineage(MIXED, ["p", "s", "t", "k"]),
    "loop_of_sibs": build_lineage(SIBS, ["m", "c", "d"]),
    "backcross": build_lineage(BACKCROSS, ["p", "b", "s"]),
    "two_families": build_lineage(TWO_FAMILIES, ["a", "b", "alone"]),
}


def generation(mode: str, alpha: float, beta: float, log_fitness: float = 0.0) -> Array:
    """One generation by listing copies and events: [parent's state..., child's state, gains, losses], from each parent.

    Selfing and clonal [3, 3, 3, 3], an outcross [3, 3, 3, 2, 2, 2, 2]: gains and losses in the mother's gamete, then in
    the father's. The numbers of gains and losses are of one generation, at most two.
    """
    copies = [(0, 0), (0, 1), (1, 1)]

    def changed(copy: int) -> list[tuple[float, int, int, int]]:
        """Probability, copy after its chance to change, gains, losses."""
        if copy == 0:
            return [(1 - alpha, 0, 0, 0), (alpha, 1, 1, 0)]
        return [(1 - beta, 1, 0, 0), (beta, 0, 0, 1)]

    def gamete(state: int) -> list[tuple[float, int, int, int]]:
        return [(p / 2, *rest) for copy in copies[state] for p, *rest in changed(copy)]

    if mode == "outcross":
        table = np.zeros((3, 3, 3, 2, 2, 2, 2))
        for mother, father in itertools.product(range(3), repeat=2):
            for (p, x, gain, loss), (q, y, gain_2, loss_2) in itertools.product(gamete(mother), gamete(father)):
                table[mother, father, x + y, gain, loss, gain_2, loss_2] += p * q
    else:
        table = np.zeros((3, 3, 3, 3))
        for parent in range(3):
            first, second = (
                (gamete(parent), gamete(parent))
                if mode == "selfing"
                else (changed(copies[parent][0]), changed(copies[parent][1]))
            )
            for (p, x, gain, loss), (q, y, gain_2, loss_2) in itertools.product(first, second):
                table[parent, x + y, gain + gain_2, loss + loss_2] += p * q
    parents = 2 if mode == "outcross" else 1
    fitness = np.exp(log_fitness * np.arange(3)).reshape(3, *[1] * (table.ndim - parents - 1))
    weighted = table * fitness
    return weighted / weighted.sum(axis=tuple(range(parents, table.ndim)), keepdims=True)


def with_events(mode: str, generations: int, alpha: float, beta: float, log_fitness: float = 0.0) -> Array:
    """Edge of several generations: [parents..., child, branch, gain or loss]: end states, with an event of the kind.

    Sums over the states of every generation between, each with or without an event so far.
    """
    one = generation(mode, alpha, beta, log_fitness)
    if mode == "outcross":
        kinds = [[one[:, :, :, 1].sum((3, 4, 5)), one[:, :, :, :, 1].sum((3, 4, 5))],
                 [one[..., 1, :].sum((3, 4, 5)), one[..., 1].sum((3, 4, 5))]]  # fmt: skip
        return np.stack([np.stack(branch, -1) for branch in kinds], -2)
    result = []
    for axis in (2, 3):
        counted = one.sum(axis=5 - axis)
        none, some = counted[:, :, 0], counted[:, :, 1:].sum(2)
        so_far = [np.eye(3), np.zeros((3, 3))]  # without and with an event
        for _ in range(generations):
            so_far = [so_far[0] @ none, so_far[1] @ (none + some) + so_far[0] @ some]
        result.append(so_far[1])
    return np.stack(result, -1)[:, :, None]


def transmission_table(mode: str, generations: int, alpha: float, beta: float, log_fitness: float = 0.0) -> Array:
    """Probability of the end states, [parents..., child]."""
    one = generation(mode, alpha, beta, log_fitness)
    if mode == "outcross":
        return one.sum((3, 4, 5, 6))
    table: Array = np.linalg.matrix_power(one.sum((2, 3)), generations)
    return table


class Enumeration:
    """Likelihood and posteriors of one locus by a sum over the states of all nodes."""

    def __init__(
        self,
        lineage: Lineage,
        alpha: float,
        beta: float,
        proportions: Array,
        log_emission: Array,
        log_fitness: float = 0.0,
    ) -> None:
        """log_emission: of each sample, [S, 3]."""
        size = len(lineage.nodes)
        nodes, events = np.zeros((size, 3)), np.zeros((len(lineage.branches), 2))
        kinds = list(zip(lineage.transmission, lineage.generations, strict=True))
        tables = {kind: transmission_table(*kind, alpha, beta, log_fitness) for kind in kinds if kind[0] != "founder"}
        happened = {kind: with_events(*kind, alpha, beta, log_fitness) for kind in tables}
        total = 0.0
        for states in itertools.product(range(3), repeat=size):
            probability = np.exp(sum(log_emission[s, states[node]] for s, node in enumerate(lineage.samples)))
            given = []
            for node, parents in enumerate(lineage.parents):
                place = (*(states[parent] for parent in parents), states[node])
                if parents:
                    probability *= tables[kinds[node]][place]
                    given.extend(happened[kinds[node]][place] / tables[kinds[node]][place])
                else:
                    probability *= proportions[states[node]]
            total += probability
            nodes[np.arange(size), states] += probability
            events += probability * np.array(given)
        self.log_likelihood = float(np.log(total))
        self.nodes = nodes / total  # [N, 3]
        self.events = events / total  # [E, 2]
