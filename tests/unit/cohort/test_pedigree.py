"""Covariance of what is transmitted, families, and reduction, against closed forms and independent oracles."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from epivi.base.errors import UserError
from epivi.cohort.kinship import covariance, sampled_families
from epivi.cohort.pedigree import Pedigree, families, pedigree_hash, reduce

TAUS = ((1.0, 1.0), (0.7, 0.7), (1.0, 0.0), (0.0, 0.6), (0.9, 0.3), (0.0, 0.0))


def build(*rows: tuple[str, str, str] | tuple[str, str, str, str, int]) -> Pedigree:
    """Pedigree from (individual, mother, father[, mode, generations]), parents first; "" is no parent."""
    names = [row[0] for row in rows]

    def index(name: str) -> int:
        return names.index(name) if name else -1

    return Pedigree(
        individuals=tuple(names),
        mother=np.array([index(row[1]) for row in rows], dtype=np.int32),
        father=np.array([index(row[2]) for row in rows], dtype=np.int32),
        mode=tuple(row[3] if len(row) > 3 else "sexual" for row in rows),
        generations=np.array([row[4] if len(row) > 4 else 1 for row in rows], dtype=np.int32),
        sex=("unknown",) * len(rows),
    )


def between(pedigree: Pedigree, first: str, second: str, tau_m: float, tau_p: float) -> float:
    names = pedigree.individuals
    return float(covariance(pedigree, tau_m, tau_p)[names.index(first), names.index(second)])


# Two half-sibships, full sibs, their cousins, an incestuous child, a selfed line and a clone of an inbred individual.
EVERYTHING = build(
    ("m1", "", ""),
    ("m2", "", ""),
    ("f1", "", ""),
    ("f2", "", ""),
    ("a", "m1", "f1"),
    ("b", "m1", "f1"),
    ("c", "m1", "f2"),
    ("d", "m2", "f1"),
    ("ab", "a", "b"),
    ("half", "", "ab"),
    ("self3", "ab", "", "selfing", 3),
    ("clone", "self3", "", "clonal", 1),
    ("out", "clone", "d"),
)


def test_close_relatives_under_mendelian_transmission() -> None:
    for first, second, expected in [
        ("a", "b", 1 / 2),
        ("a", "c", 1 / 4),
        ("a", "d", 1 / 4),
        ("a", "m1", 1 / 2),
        ("m1", "f1", 0.0),
        ("ab", "a", 3 / 4),  # 1/2 of its own and 1/2 of a full sib's 1/2
        ("half", "ab", 1 / 2),
    ]:
        assert between(EVERYTHING, first, second, 1, 1) == pytest.approx(expected, abs=1e-15)


def test_grandparents_decay_by_half_tau_a_generation() -> None:
    line = build(("g", "", ""), ("p", "g", ""), ("c", "", "p"))
    assert between(line, "g", "c", 1, 1) == pytest.approx(1 / 4)
    assert between(line, "g", "c", 0.8, 0.6) == pytest.approx(0.4 * 0.3)


def test_maternal_transmission_only_makes_maternal_half_sibs_alike() -> None:
    assert between(EVERYTHING, "a", "c", 1, 0) == pytest.approx(1 / 4)  # share the mother
    assert between(EVERYTHING, "a", "d", 1, 0) == 0.0  # share the father
    assert between(EVERYTHING, "a", "c", 0, 1) == 0.0
    assert between(EVERYTHING, "a", "d", 0, 1) == pytest.approx(1 / 4)
    assert between(EVERYTHING, "a", "b", 0.6, 0.8) == pytest.approx(0.3**2 + 0.4**2)


@pytest.mark.parametrize(("tau_m", "tau_p"), TAUS)
def test_a_selfing_line_decays_geometrically(tau_m: float, tau_p: float) -> None:
    generations = [0, 1, 3, 4, 9]
    rows = [("g0", "", "", "sexual", 1)]
    rows += [(f"g{b}", f"g{a}", "", "selfing", b - a) for a, b in itertools.pairwise(generations)]
    t = (tau_m + tau_p) / 2
    expected = [[t ** abs(a - b) for a in generations] for b in generations]
    np.testing.assert_allclose(covariance(build(*rows), tau_m, tau_p), expected, atol=1e-14)


@pytest.mark.parametrize(("tau_m", "tau_p"), TAUS)
def test_covariance_against_simulation_of_the_recursion(tau_m: float, tau_p: float) -> None:
    # The oracle goes one generation at a time and takes the innovation variance from its own draws. A sample covariance
    # of N draws has an SD of at most sqrt(2 / N): 5 SD over 6 x 78 entries raise a false alarm in 3 of 10,000 runs.
    draws = 100_000
    random = np.random.default_rng(20240611)
    values: list[np.ndarray] = []

    def next_generation(parental: np.ndarray) -> np.ndarray:
        left = max(0.0, 1 - float(np.mean(parental**2)))
        return parental + np.sqrt(left) * random.standard_normal(draws)

    for i, mode in enumerate(EVERYTHING.mode):
        mother, father = EVERYTHING.mother[i], EVERYTHING.father[i]
        if mode == "sexual":
            parental = np.zeros(draws)
            parental = parental + tau_m / 2 * values[mother] if mother >= 0 else parental
            parental = parental + tau_p / 2 * values[father] if father >= 0 else parental
            values.append(next_generation(parental))
            continue
        value = values[mother]
        for _ in range(EVERYTHING.generations[i]):
            value = next_generation(tau_m / 2 * value + tau_p / 2 * value)
        values.append(value)
    sampled = np.stack(values) @ np.stack(values).T / draws
    np.testing.assert_allclose(covariance(EVERYTHING, tau_m, tau_p), sampled, atol=5 * np.sqrt(2 / draws))


def test_inbreeding_keeps_the_variance_at_one() -> None:
    rows = [("m", "", ""), ("f", "", "")]
    for generation in range(6):
        parents = rows[-2][0], rows[-1][0]
        rows += [(f"a{generation}", *parents), (f"b{generation}", *parents)]
    result = covariance(build(*rows), 1, 1)
    np.testing.assert_array_equal(np.diag(result), 1)
    sibs = [result[2 * g, 2 * g + 1] for g in range(7)]
    # full sibs of full sibs: r' = (1 + r) / 2, from 0 between the founders
    np.testing.assert_allclose(sibs, 1 - 0.5 ** np.arange(7), atol=1e-15)


# ---- random pedigrees of every mode


@st.composite
def pedigrees(draw: st.DrawFn) -> Pedigree:
    size = draw(st.integers(1, 14))
    rows: list[tuple[str, str, str, str, int]] = []
    for i in range(size):
        parents = [""] + [f"i{j}" for j in range(i)]
        mode = draw(st.sampled_from(["sexual", "sexual", "selfing", "selfing", "clonal"]))
        first = draw(st.sampled_from(parents))
        second = draw(st.sampled_from([name for name in parents if not name or name != first]))
        if mode == "sexual" or not first:
            rows.append((f"i{i}", first, second, "sexual", 1))
        else:
            rows.append((f"i{i}", first, "", mode, draw(st.integers(1, 3))))
    return build(*rows)


@st.composite
def pedigrees_with_kept(draw: st.DrawFn) -> tuple[Pedigree, list[str]]:
    pedigree = draw(pedigrees())
    return pedigree, draw(st.lists(st.sampled_from(pedigree.individuals), unique=True))


@given(pedigrees(), st.sampled_from(TAUS))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_covariance_is_a_correlation_matrix_with_the_recursion_as_its_inverse(
    pedigree: Pedigree, taus: tuple[float, float]
) -> None:
    result = covariance(pedigree, *taus)
    assert result.min() >= 0
    assert result.max() <= 1
    np.testing.assert_array_equal(result, result.T)
    # (I - B) C (I - B)' must be the diagonal matrix of innovation variances, none negative.
    effect = np.eye(len(pedigree.individuals))
    for child, mode in enumerate(pedigree.mode):
        if mode == "sexual":
            weights = taus[0] / 2, taus[1] / 2
        else:
            weights = ((taus[0] + taus[1]) / 2) ** int(pedigree.generations[child]), 0.0
        for parent, weight in zip((pedigree.mother[child], pedigree.father[child]), weights, strict=True):
            if parent >= 0:
                effect[child, parent] -= weight
    innovations = effect @ result @ effect.T
    np.testing.assert_allclose(innovations, np.diag(np.diag(innovations)), atol=1e-12)
    assert np.diag(innovations).min() > -1e-12


@given(pedigrees_with_kept())
@settings(max_examples=300, deadline=None, derandomize=True)
def test_reduce_keeps_the_covariance_and_leaves_nothing_to_drop(case: tuple[Pedigree, list[str]]) -> None:
    pedigree, kept = case
    reduced = reduce(pedigree, kept)
    assert set(kept) <= set(reduced.individuals) <= set(pedigree.individuals)
    for taus in TAUS:
        before, after = (
            covariance(each, *taus)[
                np.ix_(*[[each.individuals.index(name) for name in kept]] * 2)  # the kept rows and columns
            ]
            for each in (pedigree, reduced)
        )
        np.testing.assert_allclose(after, before, atol=1e-13)
    for i, name in enumerate(reduced.individuals):
        assert max(reduced.mother[i], reduced.father[i]) < i
        has_parent = max(reduced.mother[i], reduced.father[i]) >= 0
        assert has_parent or (reduced.mode[i], reduced.generations[i]) == ("sexual", 1)
        if name in kept:
            continue
        children = np.flatnonzero((reduced.mother == i) | (reduced.father == i))
        assert len(children) > 0
        assert has_parent or len(children) > 1
        assert reduced.mode[i] == "sexual" or len(children) > 1 or reduced.mode[children[0]] != reduced.mode[i]
    assert pedigree_hash(reduce(reduced, kept)) == pedigree_hash(reduced)


@given(pedigrees(), st.sampled_from(TAUS))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_families_are_the_connected_components(pedigree: Pedigree, taus: tuple[float, float]) -> None:
    size = len(pedigree.individuals)
    edges = [(i, p) for i in range(size) for p in (pedigree.mother[i], pedigree.father[i]) if p >= 0]
    graph = coo_array((np.ones(len(edges)), tuple(np.array(edges, dtype=int).reshape(-1, 2).T)), shape=(size, size))
    count, labels = connected_components(graph, directed=False)
    result = families(pedigree)
    assert [member[0] for member in result] == sorted(np.flatnonzero(labels == k)[0] for k in range(count))
    matrix = covariance(pedigree, *taus)
    for member in result:
        np.testing.assert_array_equal(member, np.flatnonzero(labels == labels[member[0]]))
        assert not matrix[np.ix_(member, np.setdiff1d(np.arange(size), member))].any()


TRIOS = build(
    *(("mum", "", ""), ("dad", "", ""), ("kid", "mum", "dad")),
    *(("a", "", ""), ("b", "", ""), ("c", "a", "b"), ("d", "a", "b")),
    *((f"single{number}", "", "") for number in range(3)),
)


@pytest.mark.parametrize(
    ("sampled", "expected"),
    [
        ("mum dad kid", 1),
        ("mum dad kid single0 single1 single2", 1),  # who has no relative tells nothing of transmission
        ("mum dad kid a b", 1),  # mates share nothing
        ("mum kid c d", 2),  # siblings of parents without samples
        ("mum mum mum", 0),  # replicates are one individual
        ("mum dad a b single0", 0),
    ],
)
def test_families_with_sampled_relatives(sampled: str, expected: int) -> None:
    assert sampled_families(TRIOS, sampled.split()) == expected


@given(pedigrees_with_kept())
def test_families_with_sampled_relatives_against_paths(case: tuple[Pedigree, list[str]]) -> None:
    """By ancestors in common: related are those of whom one is an ancestor of the other, or who share an ancestor."""
    pedigree, kept = case
    assume(kept)
    ancestors: list[set[int]] = []
    for child, parents in enumerate(zip(pedigree.mother, pedigree.father, strict=True)):
        ancestors.append({child}.union(*(ancestors[parent] for parent in parents if parent >= 0)))
    members = [pedigree.individuals.index(name) for name in dict.fromkeys(kept)]
    groups: list[set[int]] = []
    for member in members:
        mine = [group for group in groups if any(ancestors[member] & ancestors[other] for other in group)]
        groups = [group for group in groups if group not in mine] + [{member}.union(*mine)]
    assert sampled_families(pedigree, kept) == sum(len(group) > 1 for group in groups)


def test_reduce_examples() -> None:
    line = build(("g0", "", ""), *[(f"g{i}", f"g{i - 1}", "", "selfing", 1) for i in range(1, 9)])
    reduced = reduce(line, ["g7", "g2", "g3"])
    assert reduced.individuals == ("g2", "g3", "g7")
    assert reduced.generations.tolist() == [1, 1, 4]
    assert reduced.mode == ("sexual", "selfing", "selfing")
    sibs = build(("m", "", ""), ("f", "", ""), ("a", "m", "f"), ("b", "m", "f"))
    assert reduce(sibs, ["a", "b"]).individuals == ("m", "f", "a", "b")
    assert reduce(sibs, ["a"]).individuals == ("a",)
    assert reduce(sibs, sibs.individuals).mother.tolist() == sibs.mother.tolist()
    mixed = build(("g", "", ""), ("s", "g", "", "selfing", 1), ("c", "s", "", "clonal", 1))
    assert reduce(mixed, ["g", "c"]).individuals == ("g", "s", "c")
    with pytest.raises(UserError, match="individual 'z' is not in the pedigree"):
        reduce(sibs, ["a", "z"])


def test_hash_sees_every_field() -> None:
    plain = pedigree_hash(EVERYTHING)
    assert plain == pedigree_hash(dataclasses.replace(EVERYTHING))
    changes: list[dict[str, Any]] = [
        {"individuals": ("x", *EVERYTHING.individuals[1:])},
        {"mother": np.where(EVERYTHING.mother == 0, 1, EVERYTHING.mother)},
        {"father": np.where(EVERYTHING.father == 2, 3, EVERYTHING.father)},
        {"mode": tuple("selfing" if mode == "clonal" else mode for mode in EVERYTHING.mode)},
        {"generations": np.where(EVERYTHING.generations == 3, 2, EVERYTHING.generations)},
        {"sex": ("male", *EVERYTHING.sex[1:])},
    ]
    assert len({plain, *(pedigree_hash(dataclasses.replace(EVERYTHING, **change)) for change in changes)}) == 7
