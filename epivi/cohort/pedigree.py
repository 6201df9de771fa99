"""Pedigrees: readers (own table, PLINK .ped and .fam, AlphaBeta lists), covariance of what is transmitted, families.

a_child = 1/2 tau_m a_mother + 1/2 tau_p a_father + s,    Var(a) = 1 for every individual
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from epivi.base.errors import Mistakes, UserError
from epivi.base.files import content_hash
from epivi.cohort.samples import SampleSheet
from epivi.config.load import suggestion

MODES = ("sexual", "selfing", "clonal")
MISSING_PARENT = ("", ".", "0", "-9", "NA", "NaN", "nan")
SEXES = {
    **dict.fromkeys(("female", "f", "2"), "female"),
    **dict.fromkeys(("male", "m", "1"), "male"),
    **dict.fromkeys(("unknown", "u", "", ".", "0", "-9", "na", "other"), "unknown"),
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pedigree:
    """I individuals, parents before children.

    mother, father: int32 [I], index of the parent or -1 (not known, or a founder); the one parent of a selfed or clonal
        individual is its mother.
    mode: "sexual", "selfing" or "clonal"; a founder is "sexual".
    generations: int32 [I], generations on the edge from the parent, above 1 only for selfing and clonal.
    sex: "female", "male" or "unknown".
    """

    individuals: tuple[str, ...]
    mother: np.ndarray
    father: np.ndarray
    mode: tuple[str, ...]
    generations: np.ndarray
    sex: tuple[str, ...]


def families(pedigree: Pedigree) -> tuple[np.ndarray, ...]:
    """Connected components: indices of the members (int), parents first; families ordered by their first member."""
    label = list(range(len(pedigree.individuals)))

    def root(index: int) -> int:
        while label[index] != index:
            label[index] = label[label[index]]
            index = label[index]
        return index

    for child in range(len(label)):
        for parent in (int(pedigree.mother[child]), int(pedigree.father[child])):
            if parent >= 0:
                first, second = sorted((root(child), root(parent)))
                label[second] = first
    members: dict[int, list[int]] = {}
    for index in range(len(label)):
        members.setdefault(root(index), []).append(index)
    return tuple(np.array(indices) for indices in members.values())


def reduce(pedigree: Pedigree, keep: Sequence[str]) -> Pedigree:
    """The pedigree without individuals that add nothing to the covariance among `keep`, whatever the taus.

    Three steps, repeated while they apply to individuals not in `keep`: drop the childless; drop founders with one
    child; replace a selfed or clonal individual with one child of its own mode by a longer edge. The order of the
    individuals stays. Raises UserError for a name in `keep` that the pedigree does not have.
    """
    kept = set(keep)
    unknown = sorted(kept - set(pedigree.individuals))
    if unknown:
        raise UserError(
            f"individual {unknown[0]!r} is not in the pedigree{close_name(unknown[0], pedigree.individuals)}"
        )
    size = len(pedigree.individuals)
    mother, father = pedigree.mother.tolist(), pedigree.father.tolist()
    mode, generations = list(pedigree.mode), pedigree.generations.tolist()
    children: list[set[int]] = [set() for _ in range(size)]
    for child in range(size):
        for parent in {mother[child], father[child]} - {-1}:
            children[parent].add(child)
    gone: set[int] = set()
    pending = [index for index in range(size) if pedigree.individuals[index] not in kept]
    while pending:  # from the end: children before their parents
        index = pending.pop()
        if index in gone or pedigree.individuals[index] in kept or len(children[index]) > 1:
            continue
        parents = {mother[index], father[index]} - {-1}
        child = next(iter(children[index]), -1)
        if child < 0:
            for parent in parents:
                children[parent].discard(index)
        elif not parents:
            mother[child] = -1 if mother[child] == index else mother[child]
            father[child] = -1 if father[child] == index else father[child]
            if mother[child] == father[child] == -1:
                mode[child], generations[child] = "sexual", 1
            pending.append(child)
        # METHOD: a selfed generation and a clonal one are not joined into one edge, whose mode would be neither; the
        # covariance would allow it.
        elif mode[index] == mode[child] != "sexual":
            (parent,) = parents
            mother[child] = parent
            generations[child] += generations[index]
            children[parent].discard(index)
            children[parent].add(child)
        else:
            continue
        gone.add(index)
    return _subset(pedigree, [index for index in range(size) if index not in gone], mother, father, mode, generations)


def _subset(
    pedigree: Pedigree,
    order: Sequence[int],
    mother: Sequence[int],
    father: Sequence[int],
    mode: Sequence[str],
    generations: Sequence[int],
) -> Pedigree:
    """The individuals at `order`, with parents renumbered."""
    position = {index: new for new, index in enumerate(order)} | {-1: -1}
    return Pedigree(
        individuals=tuple(pedigree.individuals[index] for index in order),
        mother=np.array([position[mother[index]] for index in order], dtype=np.int32),
        father=np.array([position[father[index]] for index in order], dtype=np.int32),
        mode=tuple(mode[index] for index in order),
        generations=np.array([generations[index] for index in order], dtype=np.int32),
        sex=tuple(pedigree.sex[index] for index in order),
    )


def pedigree_hash(pedigree: Pedigree) -> str:
    """Hash of everything the pedigree says, the order of individuals included."""
    return content_hash(
        [
            list(pedigree.individuals),
            pedigree.mother.tolist(),
            pedigree.father.tolist(),
            list(pedigree.mode),
            pedigree.generations.tolist(),
            list(pedigree.sex),
        ]
    )


def check_samples(sheet: SampleSheet, pedigree: Pedigree) -> None:
    """Every sample's individual is in the pedigree; raises UserError naming sheet and line of each that is not."""
    known = set(pedigree.individuals)
    mistakes = Mistakes()
    for sample, individual, line in zip(sheet.samples, sheet.individuals, sheet.lines, strict=True):
        if individual not in known:
            hint = close_name(individual, pedigree.individuals)
            mistakes.add(
                f"{sheet.path} line {line}: individual {individual!r} of sample {sample!r} is not in the pedigree{hint}"
            )
    mistakes.require_none()


def close_name(name: str, known: Sequence[str]) -> str:
    """A close name, if there is one; a list of all of them would be long, and a search in a large pedigree slow."""
    text = suggestion(name, known) if len(known) <= 10_000 else ""
    return f"; {text}" if text.startswith("did you mean") else ""
