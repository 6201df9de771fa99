"""Who shares how much with whom: the walk over the pedigree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from epivi.cohort.haplotypes import Unit
from epivi.cohort.pedigree import Pedigree, reduce

Array = NDArray[np.float64]
Steps = list[
    tuple[int, Array]
]  # parents of an individual, and the polynomial in tau by which each passes its effect on


class Passed(Protocol):
    """The share of a parent's deviation that is passed on: a number, or "tau" where it is a free parameter."""

    @property
    def maternal(self) -> float | Literal["tau"]: ...

    @property
    def paternal(self) -> float | Literal["tau"]: ...


class _Numbers(NamedTuple):
    maternal: float
    paternal: float


def covariance(pedigree: Pedigree, tau_maternal: float, tau_paternal: float) -> Array:
    """Covariance of the standardized transmitted effect, [I, I], with tau in [0, 1]. Diagonal 1."""
    return _individual_table(len(pedigree.individuals), _steps(pedigree, _Numbers(tau_maternal, tau_paternal)))[:, :, 0]


def transmission_polynomials(pedigree: Pedigree, passed: Passed, keep: NDArray[np.int32]) -> Array:
    """Coefficients of A(tau) among the K individuals `keep`, [K, K, E]: A[i, j](tau) = sum_e out[i, j, e] tau^e."""
    table = _individual_table(len(pedigree.individuals), _steps(pedigree, passed))
    return _trimmed(table[np.ix_(keep, keep)])


def _individual_table(size: int, steps: Sequence[Steps]) -> Array:
    """Polynomials Cov(a_i, a_j)(tau) of all individuals, [I, I, E], by the tabular method, parents before children.

    Inbreeding needs nothing special.
    """
    # METHOD: the variance is stationary, 1 for everyone, inbred or not: the innovation has what the parents leave,
    # 1 - Var(parental part), which is never negative for weights of at most 1/2 a parent.
    table = np.zeros((size, size, 2 * _degree(steps) + 1))
    table[range(size), range(size), 0] = 1.0
    for child, parents in enumerate(steps):
        for parent, path in parents:
            table[child, :child] += _times(path, table[parent, :child])
        table[:child, child] = table[child, :child]
    return table


def _degree(steps: Sequence[Steps]) -> int:
    """Largest power of tau on the way from an individual to an ancestor."""
    degrees: list[int] = []
    for parents in steps:
        degrees.append(max((degrees[parent] + len(path) - 1 for parent, path in parents), default=0))
    return max(degrees, default=0)


def _times(path: Array, values: Array) -> Array:
    """Product of a polynomial and others [..., E], whose degree stays below E."""
    out = np.zeros_like(values)
    for power, coefficient in enumerate(path):
        if coefficient:
            out[..., power:] += coefficient * values[..., : values.shape[-1] - power]
    return out


def _trimmed(polynomials: Array) -> Array:
    """Without the highest powers that none of them has."""
    used = np.flatnonzero(polynomials.any((0, 1)))
    return polynomials[:, :, : used[-1] + 1 if len(used) else 1].copy()


def unit_polynomials(pedigree: Pedigree, passed: Passed, units: Sequence[Unit]) -> Array:
    """Coefficients of A(tau) among K individuals and haplotypes, [K, K, E]: see `epivi.cohort.haplotypes`."""
    position = {name: index for index, name in enumerate(pedigree.individuals)}
    where = [position[unit.individual] for unit in units]
    if not any(unit.is_haplotype for unit in units):
        return transmission_polynomials(pedigree, passed, np.array(where, dtype=np.int32))
    paths = {"maternal": _path_polynomial(passed.maternal), "paternal": _path_polynomial(passed.paternal)}
    parents = {"maternal": pedigree.mother, "paternal": pedigree.father}
    steps = _steps(pedigree, passed)
    table = _individual_table(len(steps), steps)
    zero = np.zeros(table.shape[-1])

    def with_individuals(unit: Unit, i: int) -> Array:
        """Covariance of the unit, before its scale, with every individual, [I, E]."""
        if unit.origin in ("both", "unknown"):
            return table[i]
        # What does not descend from i is like the haplotype through the one parent; what does, through i itself.
        row = np.zeros_like(table[i])
        parent = int(parents[unit.origin][i])
        if parent >= 0:
            row[:i] = _times(paths[unit.origin], table[parent, :i])
        row[i, 0] = 1.0
        for j in range(i + 1, len(row)):
            for other, path in steps[j]:
                row[j] += _times(path, row[other])
        return row

    rows = [with_individuals(unit, i) for unit, i in zip(units, where, strict=True)]

    def between_haplotypes(i: int) -> Array:
        """c: covariance of the two haplotypes of an individual."""
        mother, father = int(pedigree.mother[i]), int(pedigree.father[i])
        if mother < 0 or father < 0:
            return zero
        return _times(paths["maternal"], _times(paths["paternal"], table[mother, father]))

    def between(k: int, m: int) -> Array:
        """Covariance of units k and m, the individual of m no earlier than that of k, before their scales."""
        first, second, i, j = units[k], units[m], where[k], where[m]
        if i == j:
            return _within_individual(first, second, between_haplotypes(i))
        if second.origin in ("both", "unknown"):
            return rows[k][j]
        parent = int(parents[second.origin][j])
        return zero if parent < 0 else _times(paths[second.origin], rows[k][parent])

    scale = np.array([np.sqrt(0.5) if unit.is_haplotype else 1.0 for unit in units])
    pairs = range(len(units))
    values = np.array([[between(k, m) if where[k] <= where[m] else between(m, k) for m in pairs] for k in pairs])
    return _trimmed(np.multiply.outer(scale, scale)[:, :, None] * values)


def _within_individual(first: Unit, second: Unit, c: Array) -> Array:
    """Covariance of two units of one individual, before their scales; c is that of its haplotypes."""
    one = np.eye(1, len(c))[0]
    if first == second and first.is_haplotype:
        return 2.0 * one - c
    is_known_pair = {first.origin, second.origin} == {"maternal", "paternal"}
    is_unknown_pair = first.origin == second.origin == "unknown" and first.same_phasing(second)
    # A haplotype with the mean of both, or with one that is as likely itself as the other: (2 - c + c) / 2.
    return c if is_known_pair or is_unknown_pair else one


def _steps(pedigree: Pedigree, passed: Passed) -> list[Steps]:
    """Of each individual the known parents, and the polynomial by which each passes its effect on."""
    maternal, paternal = _path_polynomial(passed.maternal), _path_polynomial(passed.paternal)
    # METHOD: the one parent of a selfed or clonal child is mother and father, so a generation passes
    # (tau_m + tau_p) / 2, and an edge of g generations its g-th power.
    both = 0.5 * np.polynomial.polynomial.polyadd(maternal, paternal)

    def of_individual(child: int) -> Steps:
        if pedigree.mode[child] == "sexual":
            paths = ((pedigree.mother[child], maternal), (pedigree.father[child], paternal))
            return [(int(parent), 0.5 * path) for parent, path in paths if parent >= 0]
        if pedigree.mother[child] < 0:
            return []
        return [(int(pedigree.mother[child]), np.polynomial.polynomial.polypow(both, int(pedigree.generations[child])))]

    return [of_individual(child) for child in range(len(pedigree.individuals))]


def _path_polynomial(value: float | str) -> Array:
    return np.array([0.0, 1.0]) if value == "tau" else np.array([float(value)])


def family_members(pedigree: Pedigree, sampled: Sequence[str]) -> list[tuple[str, ...]]:
    """Groups of two or more related individuals among the sampled ones, named as in the pedigree, with repeats.

    Related are those who share a transmitted effect, directly or through other sampled ones: not mates alone.
    """
    names = list(dict.fromkeys(sampled))
    among = reduce(pedigree, names)
    position = {name: index for index, name in enumerate(among.individuals)}
    members = [position[name] for name in names]
    related = covariance(among, 1.0, 1.0)[np.ix_(members, members)] != 0
    _, family = connected_components(coo_array(related), directed=False)
    groups = (np.flatnonzero(family == number) for number in range(family.max(initial=-1) + 1))
    return [tuple(names[k] for k in group) for group in groups if len(group) > 1]


def sampled_families(pedigree: Pedigree, sampled: Sequence[str]) -> int:
    """How many groups of related individuals there are among the sampled ones."""
    return len(family_members(pedigree, sampled))
