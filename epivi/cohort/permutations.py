"""Exchanges of individuals that break the pedigree and nothing else: controls of what is said to be passed on.

The counts, covariates and error rates of a sample stay together; what changes is whose place in the pedigree they take.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from epivi.cohort.pedigree import Pedigree, families
from epivi.cohort.samples import SampleSheet, group_index

# METHOD: `across` breaks all relatedness and keeps sex, generation and batch, so that a signal along the pedigree is
# lost; what individuals happen to share (cells, say) is as strong after it. `within` keeps each family together and
# breaks the roles in it, so that what the whole family shares (a batch that coincides with it, a household) is as
# strong after it. `sibships` keeps siblings together and gives them other parents.
EXCHANGES = ("across", "within", "sibships")


def exchanged(
    sheet: SampleSheet, pedigree: Pedigree, exchange: str, columns: Sequence[str], random: np.random.Generator
) -> SampleSheet:
    """The sheet with the individuals of its samples exchanged at random; exchange: one of EXCHANGES.

    columns: of the sheet; individuals that differ in one are never exchanged. Those who cannot be exchanged keep their
    places, so that a pedigree without room for an exchange comes back as it was. Raises UserError for a column that the
    sheet lacks, or in which a value is missing.
    """
    moved = dict(zip(names := list(dict.fromkeys(sheet.individuals)), names, strict=True))
    for blocks in _exchangeable(sheet, pedigree, exchange, columns, names):
        order = random.permutation(len(blocks))
        for to, source in zip(blocks, (blocks[k] for k in order), strict=True):
            moved.update(zip(source, to, strict=True))
    return replace(sheet, individuals=tuple(moved[name] for name in sheet.individuals))


def _exchangeable(
    sheet: SampleSheet, pedigree: Pedigree, exchange: str, columns: Sequence[str], names: Sequence[str]
) -> list[list[tuple[str, ...]]]:
    """Groups of blocks of individuals; the blocks of a group may take one another's places."""
    position = {name: index for index, name in enumerate(pedigree.individuals)}
    likeness = _likeness(sheet, columns)
    if exchange == "within":
        family = _family_of(pedigree)
        return _grouped(((name,), (family[position[name]], likeness[name])) for name in names)
    generation = generations(pedigree)
    role = {name: (likeness[name], pedigree.sex[position[name]], int(generation[position[name]])) for name in names}
    if exchange == "across":
        return _grouped(((name,), role[name]) for name in names)
    sibships: dict[Hashable, list[str]] = defaultdict(list)
    for name in names:
        parents = (int(pedigree.mother[position[name]]), int(pedigree.father[position[name]]))
        sibships[parents if max(parents) >= 0 else name].append(name)
    by_role = (sorted(members, key=lambda name: str(role[name])) for members in sibships.values())
    # Siblings who differ in sex or batch take the places of siblings who differ alike.
    return _grouped((tuple(members), tuple(role[name] for name in members)) for members in by_role)


def _grouped(blocks: Iterable[tuple[tuple[str, ...], Hashable]]) -> list[list[tuple[str, ...]]]:
    groups: dict[Hashable, list[tuple[str, ...]]] = defaultdict(list)
    for members, key in blocks:
        groups[key].append(members)
    return list(groups.values())


def _likeness(sheet: SampleSheet, columns: Sequence[str]) -> Mapping[str, Hashable]:
    """What must be equal in individuals that are exchanged: values of columns, and which haplotypes were counted."""
    groups = [group_index(sheet, column)[0].tolist() for column in columns]
    seen: dict[str, list[Hashable]] = defaultdict(list)
    for row, name in enumerate(sheet.individuals):
        seen[name].append((sheet.origin_of(row), *(group[row] for group in groups)))
    return {name: tuple(sorted(set(values), key=str)) for name, values in seen.items()}


def _family_of(pedigree: Pedigree) -> np.ndarray:
    """Number of the family of each individual, [I]."""
    family = np.empty(len(pedigree.individuals), dtype=int)
    for number, members in enumerate(families(pedigree)):
        family[members] = number
    return family


def generations(pedigree: Pedigree) -> np.ndarray:
    """Generations from the founders, by the longest way, [I]."""
    generation = np.zeros(len(pedigree.individuals), dtype=int)
    for child, (mother, father) in enumerate(zip(pedigree.mother, pedigree.father, strict=True)):
        known = [generation[parent] + int(pedigree.generations[child]) for parent in (mother, father) if parent >= 0]
        generation[child] = max(known, default=0)
    return generation
