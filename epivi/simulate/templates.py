"""Pedigrees by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from epivi.base.errors import UserError
from epivi.cohort.pedigree import Pedigree, families

# --- pedigrees to draw on --------------------------------------------------------------------------------------------


class Member(NamedTuple):
    """One individual of a template; parents by role, `None` for none."""

    role: str
    mother: str | None = None
    father: str | None = None
    sex: str = "unknown"
    mode: str = "sexual"
    generations: int = 1


def _trio(family: int) -> tuple[Member, ...]:
    return (
        Member("mother", sex="female"),
        Member("father", sex="male"),
        Member("child", "mother", "father"),
    )


def _quartet(family: int) -> tuple[Member, ...]:
    return (
        Member("mother", sex="female"),
        Member("father", sex="male"),
        Member("child1", "mother", "father"),
        Member("child2", "mother", "father"),
    )


def _three_generations(family: int) -> tuple[Member, ...]:
    """Grandparents on one side, alternating between families so that both parents' lines are seen over two steps."""
    mother, father = Member("mother", sex="female"), Member("father", sex="male")
    if family % 2:
        mother = mother._replace(mother="grandmother", father="grandfather")
    else:
        father = father._replace(mother="grandmother", father="grandfather")
    return (
        Member("grandmother", sex="female"),
        Member("grandfather", sex="male"),
        mother,
        father,
        Member("child1", "mother", "father"),
        Member("child2", "mother", "father"),
    )


def _half_sibs(family: int) -> tuple[Member, ...]:
    """Two full sibs and two half sibs; the shared parent is the father in odd families and the mother in even ones."""
    if family % 2:
        parents = (Member("father", sex="male"), Member("mother1", sex="female"), Member("mother2", sex="female"))
        couples = (("mother1", "father"), ("mother2", "father"))
    else:
        parents = (Member("mother", sex="female"), Member("father1", sex="male"), Member("father2", sex="male"))
        couples = (("mother", "father1"), ("mother", "father2"))
    children = tuple(Member(f"child{number}", *couples[number > 2]) for number in (1, 2, 3))
    return parents + children


def _lineages(mode: str, steps: Sequence[int]) -> tuple[Member, ...]:
    """An ancestor and two lines of descent, each sampled after `steps` further generations."""
    members = [Member("ancestor")]
    for line in ("a", "b"):
        parent, age = "ancestor", 0
        for step in steps:
            age += step
            members.append(Member(f"line_{line}_g{age}", mother=parent, mode=mode, generations=step))
            parent = members[-1].role
    return tuple(members)


def _selfing_lines(family: int) -> tuple[Member, ...]:
    return _lineages("selfing", (1, 2, 4))


def _clones(family: int) -> tuple[Member, ...]:
    return _lineages("clonal", (1, 2, 4))


# name -> members of one family (its number counts from 1), parents first
TEMPLATES: Mapping[str, Callable[[int], tuple[Member, ...]]] = {
    "trio": _trio,
    "quartet": _quartet,
    "three_generations": _three_generations,
    "half_sibs": _half_sibs,
    "selfing_lines": _selfing_lines,
    "clones": _clones,
}


def template_pedigree(template: str, n_families: int) -> Pedigree:
    """`n_families` families of one template; individuals are named F<number>_<role>."""
    if template not in TEMPLATES:
        raise UserError(f"simulation: template '{template}': expected one of {', '.join(TEMPLATES)}")
    if n_families < 1:
        raise UserError(f"simulation: families = {n_families}: expected a whole number >= 1")
    digits = len(str(n_families))
    named = [
        (f"F{family:0{digits}d}_", member)
        for family in range(1, n_families + 1)
        for member in TEMPLATES[template](family)
    ]
    index = {prefix + member.role: number for number, (prefix, member) in enumerate(named)}

    def indices(parents: list[tuple[str, str | None]]) -> np.ndarray:
        return np.array([-1 if role is None else index[prefix + role] for prefix, role in parents], dtype=np.int32)

    return Pedigree(
        individuals=tuple(index),
        mother=indices([(prefix, member.mother) for prefix, member in named]),
        father=indices([(prefix, member.father) for prefix, member in named]),
        mode=tuple(member.mode for _, member in named),
        generations=np.array([member.generations for _, member in named], dtype=np.int32),
        sex=tuple(member.sex for _, member in named),
    )


def choose_unsampled(pedigree: Pedigree, number: int, seed: int) -> tuple[str, ...]:
    """Draw individuals that get no sample, leaving at least one sampled in every family.

    Raises UserError if that many cannot be left out.
    """
    members = families(pedigree)
    most = len(pedigree.individuals) - len(members)
    if not 0 <= number <= most:
        raise UserError(f"simulation: unsampled = {number}: expected 0 to {most}, leaving a sample in every family")
    family = np.empty(len(pedigree.individuals), dtype=np.int64)
    for position, indices in enumerate(members):
        family[indices] = position
    left = np.bincount(family)
    chosen: list[int] = []
    for individual in np.random.default_rng([seed]).permutation(len(family)):
        if len(chosen) == number:
            break
        if left[family[individual]] > 1:
            left[family[individual]] -= 1
            chosen.append(int(individual))
    return tuple(pedigree.individuals[individual] for individual in sorted(chosen))
