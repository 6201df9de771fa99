"""What each two individuals of a pedigree are to one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from epivi.cohort.kinship import covariance
from epivi.cohort.pedigree import Pedigree, families

Pairs = NDArray[np.bool_]  # [N, N], symmetric

# Name of each kind of pair -> what it is. The first kind that fits a pair is its kind.
KINDS: Mapping[str, str] = {
    "replicates": "samples of one individual",
    "line_of_descent": "ancestor and descendant by selfing or cloning alone",
    "sister_lines": "descended from one individual by selfing or cloning alone",
    "mother_child": "mother and child",
    "father_child": "father and child",
    "full_sibs": "siblings of one mother and one father",
    "maternal_half_sibs": "siblings who are known to share their mother alone",
    "paternal_half_sibs": "siblings who are known to share their father alone",
    "grandparent": "grandparent and grandchild",
    "avuncular": "full sibling of a parent, and child",
    "close_relatives": "other relatives whose relatedness is above that of the second degree",
    "second_degree": "other relatives of the second degree (relatedness about 1/4)",
    "third_degree": "relatives of the third degree (relatedness about 1/8)",
    "distant": "more distant relatives",
    "mates": "parents of a child, not related by blood",
    "in_laws": "in one pedigree, through children or mates alone, not related by blood",
    "unrelated": "not connected by the pedigree",
}
# Of these nothing is passed on from one to the other or from a common ancestor, whatever the hypothesis.
WITHOUT_BLOOD = ("mates", "in_laws", "unrelated")
# METHOD: limits between degrees lie halfway on the scale of powers of one half.
SECOND_DEGREE, THIRD_DEGREE, DISTANT = 2.0**-1.5, 2.0**-2.5, 2.0**-3.5
_RELATED = 1e-12


class Relatives(NamedTuple):
    """Kinds of all pairs of N individuals, relatedness, and who is in one pedigree with whom."""

    kind: NDArray[np.int8]  # [N, N], positions in KINDS; of an individual with itself `replicates`
    relatedness: NDArray[np.float64]  # [N, N], of what is passed on whole: 1/2 for parent and child; 1 with itself
    family: NDArray[np.int32]  # [N], number of the connected pedigree of each, in the order of their first members


def relatives(pedigree: Pedigree, individuals: Sequence[str]) -> Relatives:
    """What the named individuals are to one another; a name given twice is `replicates` of itself."""
    position = {name: index for index, name in enumerate(pedigree.individuals)}
    members = np.array([position[name] for name in individuals], dtype=np.int64)
    related = covariance(pedigree, 1.0, 1.0)[np.ix_(members, members)]
    family = _numbered(_component(pedigree)[members])
    kind = np.full(related.shape, list(KINDS).index("unrelated"), dtype=np.int8)
    # The first kind that fits a pair is to win.
    for name, pairs in reversed(_pairs(pedigree, members, related, family).items()):
        kind[pairs | pairs.T] = list(KINDS).index(name)
    return Relatives(kind, related, family)


def _pairs(
    pedigree: Pedigree, members: NDArray[np.int64], related: NDArray[np.float64], family: NDArray[np.int32]
) -> dict[str, Pairs]:
    """Pairs of each kind, in the order of KINDS; a pair may be of several, and need be marked in one direction only."""
    # A last entry stands for the unknown parent, so that -1 leads to -1.
    mother, father = (np.append(parents, -1) for parents in _sexual_parents(pedigree))
    own_mother, own_father = mother[members], father[members]
    same_mother, same_father = _equal(own_mother, own_mother), _equal(own_father, own_father)
    unlike_mother, unlike_father = _differ(own_mother, own_mother), _differ(own_father, own_father)
    line = _lines(pedigree)
    same_line = line[members][:, None] == line[members][None, :]
    blood = related > _RELATED
    grandparents = [parents[own] for parents in (mother, father) for own in (own_mother, own_father)]
    # i is a full sibling of the parent, and not the parent.
    avuncular = [
        _equal(own_mother, mother[own]) & _equal(own_father, father[own]) & (members[:, None] != own[None, :])
        for own in (own_mother, own_father)
    ]
    return {
        "replicates": members[:, None] == members[None, :],
        "line_of_descent": same_line & _descends(pedigree, members, line),
        "sister_lines": same_line,
        "mother_child": _equal(members, own_mother),
        "father_child": _equal(members, own_father),
        "full_sibs": same_mother & same_father,
        "maternal_half_sibs": same_mother & unlike_father,
        "paternal_half_sibs": same_father & unlike_mother,
        "grandparent": np.any([_equal(members, one) for one in grandparents], axis=0),
        "avuncular": np.any(avuncular, axis=0),
        "close_relatives": related > SECOND_DEGREE,
        "second_degree": related > THIRD_DEGREE,
        "third_degree": related > DISTANT,
        "distant": blood,
        "mates": _mates(pedigree, members) & ~blood,
        "in_laws": (family[:, None] == family[None, :]) & ~blood,
        "unrelated": ~blood,
    }


def _equal(first: NDArray[np.int64], second: NDArray[np.int64]) -> Pairs:
    """Whether both are known and the same, [N, N]."""
    return (first[:, None] == second[None, :]) & (first[:, None] >= 0)


def _differ(first: NDArray[np.int64], second: NDArray[np.int64]) -> Pairs:
    return (first[:, None] != second[None, :]) & (first[:, None] >= 0) & (second[None, :] >= 0)


def _sexual_parents(pedigree: Pedigree) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Mother and father, [I]; -1 where not known, and of who arose from one parent."""
    is_sexual = np.array([mode == "sexual" for mode in pedigree.mode])
    mother, father = (np.asarray(parents, dtype=np.int64) for parents in (pedigree.mother, pedigree.father))
    return np.where(is_sexual, mother, -1), np.where(is_sexual, father, -1)


def _lines(pedigree: Pedigree) -> NDArray[np.int64]:
    """The first ancestor of each by selfing or cloning alone, [I]; of who arose otherwise the individual itself."""
    line = np.arange(len(pedigree.individuals))
    for child, (parent, mode) in enumerate(zip(pedigree.mother.tolist(), pedigree.mode, strict=True)):
        if mode != "sexual" and parent >= 0:
            line[child] = line[parent]
    return line


def _descends(pedigree: Pedigree, members: NDArray[np.int64], line: NDArray[np.int64]) -> Pairs:
    """Whether the second is an ancestor of the first by selfing or cloning alone, [N, N]."""
    found = np.zeros((len(members), len(members)), dtype=bool)
    for row, member in enumerate(members.tolist()):
        ancestor = member
        while ancestor != line[member]:
            ancestor = int(pedigree.mother[ancestor])
            found[row] |= members == ancestor
    return found


def _mates(pedigree: Pedigree, members: NDArray[np.int64]) -> Pairs:
    """Whether two have a child together, [N, N]."""
    mother, father = _sexual_parents(pedigree)
    known = (mother >= 0) & (father >= 0)
    size = len(pedigree.individuals)
    have_child = np.unique(mother[known] * size + father[known])
    pairs = members[:, None] * size + members[None, :]
    return np.isin(pairs, have_child)


def _component(pedigree: Pedigree) -> NDArray[np.int64]:
    component = np.empty(len(pedigree.individuals), dtype=np.int64)
    for number, members in enumerate(families(pedigree)):
        component[members] = number
    return component


def _numbered(labels: NDArray[np.int64]) -> NDArray[np.int32]:
    """Labels as numbers from 0 in the order of their first members."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int32)
    rank[np.argsort(first)] = np.arange(len(first), dtype=np.int32)
    return rank[inverse]
