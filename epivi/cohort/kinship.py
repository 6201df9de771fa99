"""Who shares how much with whom: the walk over the pedigree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from epivi.cohort.haplotypes import Unit
from epivi.cohort.pedigree import Pedigree, reduce


class Passed(Protocol):
    """The share of a parent's deviation that is passed on: a number, or "tau" where it is a free parameter."""

    @property
    def maternal(self) -> float | Literal["tau"]: ...

    @property
    def paternal(self) -> float | Literal["tau"]: ...


def transmission_polynomials(pedigree: Pedigree, passed: Passed, keep: NDArray[np.int32]) -> NDArray[np.float64]:
    """Coefficients of A(tau) among the individuals `keep`.

    Returns [K, K, E]: A[i, j](tau) = sum_e out[i, j, e] tau^e, by the tabular method with polynomials for entries; the
    variance of every individual is 1 (stationary), whatever the inbreeding.
    """
    table = _individual_table(pedigree, passed)
    return _stacked([[_entry(table, i, j) for j in keep] for i in keep])


def _individual_table(pedigree: Pedigree, passed: Passed) -> list[list[NDArray[np.float64]]]:
    """Polynomials Cov(a_i, a_j)(tau) of all individuals, lower triangle."""
    maternal, paternal = _path_polynomial(passed.maternal), _path_polynomial(passed.paternal)
    n = len(pedigree.individuals)
    table: list[list[NDArray[np.float64]]] = []
    zero = np.zeros(1)
    for child in range(n):
        steps = _parent_steps(pedigree, child, maternal, paternal)
        row = [
            _sum_polynomials([np.convolve(path, _entry(table, parent, other)) for parent, path in steps])
            if steps
            else zero
            for other in range(child)
        ]
        table.append([*row, np.ones(1)])
    return table


def _stacked(entries: list[list[NDArray[np.float64]]]) -> NDArray[np.float64]:
    """Polynomials of different lengths as one array [K, K, E]."""
    degree = max((len(entry) for row in entries for entry in row), default=1)
    out = np.zeros((len(entries), len(entries), degree))
    for a, row in enumerate(entries):
        for b, entry in enumerate(row):
            out[a, b, : len(entry)] = entry
    return out


def unit_polynomials(pedigree: Pedigree, passed: Passed, units: Sequence[Unit]) -> NDArray[np.float64]:
    """Coefficients of A(tau) among individuals and haplotypes, [K, K, E]: see the formulas above."""
    position = {name: index for index, name in enumerate(pedigree.individuals)}
    where = [position[unit.individual] for unit in units]
    if not any(unit.is_haplotype for unit in units):
        return transmission_polynomials(pedigree, passed, np.array(where, dtype=np.int32))
    paths = {"maternal": _path_polynomial(passed.maternal), "paternal": _path_polynomial(passed.paternal)}
    parents = {"maternal": pedigree.mother, "paternal": pedigree.father}
    table = _individual_table(pedigree, passed)
    zero, one = np.zeros(1), np.ones(1)

    def with_individuals(unit: Unit, i: int) -> list[NDArray[np.float64]]:
        """Covariance of the unit, before its scale, with every individual."""
        if unit.origin in ("both", "unknown"):
            return [_entry(table, i, j) for j in range(len(table))]
        parent, path = int(parents[unit.origin][i]), paths[unit.origin]
        # What does not descend from i is like the haplotype through the one parent; what does, through i itself.
        row = [zero if parent < 0 else np.convolve(path, _entry(table, parent, j)) for j in range(i)] + [one]
        for j in range(i + 1, len(table)):
            steps = _parent_steps(pedigree, j, paths["maternal"], paths["paternal"])
            row.append(_sum_polynomials([np.convolve(step, row[k]) for k, step in steps] or [zero]))
        return row

    rows = [with_individuals(unit, i) for unit, i in zip(units, where, strict=True)]

    def between_haplotypes(i: int) -> NDArray[np.float64]:
        """c: covariance of the two haplotypes of an individual."""
        mother, father = int(pedigree.mother[i]), int(pedigree.father[i])
        if mother < 0 or father < 0:
            return zero
        return np.convolve(np.convolve(paths["maternal"], paths["paternal"]), _entry(table, mother, father))

    def covariance(k: int, m: int) -> NDArray[np.float64]:
        """Of units k and m, the individual of m no earlier than that of k, before their scales."""
        first, second, i, j = units[k], units[m], where[k], where[m]
        if i == j:
            return _within_individual(first, second, between_haplotypes(i))
        if second.origin in ("both", "unknown"):
            return rows[k][j]
        parent = int(parents[second.origin][j])
        return zero if parent < 0 else np.convolve(paths[second.origin], rows[k][parent])

    scale = [np.sqrt(0.5) if unit.is_haplotype else 1.0 for unit in units]
    pairs = range(len(units))
    return _stacked(
        [
            [scale[k] * scale[m] * (covariance(k, m) if where[k] <= where[m] else covariance(m, k)) for m in pairs]
            for k in pairs
        ]
    )


def _within_individual(first: Unit, second: Unit, c: NDArray[np.float64]) -> NDArray[np.float64]:
    """Covariance of two units of one individual, before their scales; c is that of its haplotypes."""
    if first == second and first.is_haplotype:
        return _sum_polynomials([np.array([2.0]), -c])
    is_known_pair = {first.origin, second.origin} == {"maternal", "paternal"}
    is_unknown_pair = first.origin == second.origin == "unknown" and first.same_phasing(second)
    # A haplotype with the mean of both, or with one that is as likely itself as the other: (2 - c + c) / 2.
    return c if is_known_pair or is_unknown_pair else np.ones(1)


def _parent_steps(
    pedigree: Pedigree, child: int, maternal: NDArray[np.float64], paternal: NDArray[np.float64]
) -> list[tuple[int, NDArray[np.float64]]]:
    """Known parents, and the polynomial by which each passes its effect on."""
    if pedigree.mode[child] == "sexual":
        paths = ((pedigree.mother[child], maternal), (pedigree.father[child], paternal))
        return [(int(parent), 0.5 * path) for parent, path in paths if parent >= 0]
    if pedigree.mother[child] < 0:
        return []
    # METHOD: the one parent of a selfed or clonal child is mother and father, so a generation passes
    # (tau_m + tau_p) / 2, and an edge of g generations its g-th power.
    both = 0.5 * np.polynomial.polynomial.polyadd(maternal, paternal)
    return [(int(pedigree.mother[child]), np.polynomial.polynomial.polypow(both, int(pedigree.generations[child])))]


def _path_polynomial(value: float | str) -> NDArray[np.float64]:
    return np.array([0.0, 1.0]) if value == "tau" else np.array([float(value)])


def _entry(table: list[list[NDArray[np.float64]]], i: int, j: int) -> NDArray[np.float64]:
    return table[i][j] if j <= i else table[j][i]


def _sum_polynomials(terms: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    total = np.zeros(max(map(len, terms)))
    for term in terms:
        total[: len(term)] += term
    return total


def transmission_coefficients(
    pedigree: Pedigree, tau_maternal: float, tau_paternal: float
) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the parents' transmitted effects in a child's: float64 [I] for the mother, [I] for the father.

    0 where there is no such parent. Sexual: tau_maternal / 2 and tau_paternal / 2; selfing and clonal: t^generations of
    the one parent, and 0.
    """
    # METHOD: the parent of a selfed or clonal individual is both mother and father, so one generation passes on
    # t = tau_maternal / 2 + tau_paternal / 2.
    uniparental_factor = (tau_maternal + tau_paternal) / 2
    uniparental = np.array([mode != "sexual" for mode in pedigree.mode], dtype=bool)
    maternal = np.where(uniparental, uniparental_factor ** pedigree.generations.astype(float), tau_maternal / 2)
    has_mother, has_father = pedigree.mother >= 0, pedigree.father >= 0
    return np.where(has_mother, maternal, 0.0), np.where(has_father & ~uniparental, tau_paternal / 2, 0.0)


def sampled_families(pedigree: Pedigree, sampled: Sequence[str]) -> int:
    """Groups of two or more related individuals among the sampled ones, named as in the pedigree, with repeats.

    Related are those who share a transmitted effect, directly or by way of other sampled ones: not mates alone.
    """
    names = list(dict.fromkeys(sampled))
    among = reduce(pedigree, names)
    position = {name: index for index, name in enumerate(among.individuals)}
    members = [position[name] for name in names]
    related = covariance(among, 1.0, 1.0)[np.ix_(members, members)] != 0
    _, family = connected_components(coo_array(related), directed=False)
    return int(np.count_nonzero(np.bincount(family) > 1))


def covariance(pedigree: Pedigree, tau_maternal: float, tau_paternal: float) -> np.ndarray:
    """Covariance of the standardized transmitted effect, float64 [I, I], with tau in [0, 1]. Diagonal 1.

    Tabular method, parents before children; inbreeding needs nothing special.
    """
    # METHOD: the variance is stationary, 1 for everyone, inbred or not: the innovation has what the parents leave,
    # 1 - Var(parental part), which is never negative for weights of at most 1/2 a parent.
    size = len(pedigree.individuals)
    weight_mother, weight_father = transmission_coefficients(pedigree, tau_maternal, tau_paternal)
    result = np.eye(size)
    for child in range(size):
        row = np.zeros(child)
        if pedigree.mother[child] >= 0:
            row += weight_mother[child] * result[pedigree.mother[child], :child]
        if pedigree.father[child] >= 0:
            row += weight_father[child] * result[pedigree.father[child], :child]
        result[child, :child] = row
        result[:child, child] = row
    return result
