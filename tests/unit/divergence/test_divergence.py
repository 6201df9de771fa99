"""Pairwise divergences and times: against plain loops, and against published ones."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from divergence_cases import Array, draw_states, lines_pedigree
from places import DATA

from epivi.base.errors import UserError
from epivi.cohort.pedigree_files import read_pedigree
from epivi.cohort.samples import alphabeta_samples
from epivi.divergence.calls import read_calls, read_pairs
from epivi.divergence.fit import PairTimes
from epivi.divergence.pairs import (
    MISSING_STATE,
    block_replicates,
    block_sums,
    call_weights,
    jackknife_error,
    pair_times,
    pairs_of,
    stack_blocks,
    sums_of_calls,
    uniparental_mode,
)

PEDIGREES = DATA / "pedigrees"
needs_data = pytest.mark.skipif(not PEDIGREES.is_dir(), reason="the public test data is not beside the repository")


def lists(name: str) -> dict[str, str]:
    return {key: str(PEDIGREES / name / f"{key[:-1]}list.fn") for key in ("nodes", "edges")}


def some_states(n_sites: int = 230, n_samples: int = 4) -> Array:
    """Random states, a fifth of them missing."""
    random = np.random.default_rng(5)
    states = random.choice(3, size=(n_sites, n_samples), p=[0.6, 0.1, 0.3]).astype(np.int8)
    states[random.random(states.shape) < 0.2] = MISSING_STATE
    return states


def looped(states: Array, i: int, j: int) -> tuple[float, int]:
    """Oracle: half the allele difference summed over sites that both samples have, and their number."""
    both = [(a, b) for a, b in states[:, [i, j]].tolist() if MISSING_STATE not in (a, b)]
    return sum(abs(a - b) for a, b in both) / 2, len(both)


def all_pairs(n: int) -> tuple[Array, Array, PairTimes]:
    first, second = np.triu_indices(n, k=1)
    return first, second, PairTimes(*np.zeros((3, len(first)), int))


def test_sums_over_sites_are_those_of_a_loop() -> None:
    states = some_states()
    contig = np.repeat([0, 2, 3], [100, 30, 100])
    sums = sums_of_calls(states, contig, blocks=7)
    for i in range(4):
        for j in range(i):
            assert (sums.difference.sum(0)[i, j], sums.sites.sum(0)[i, j]) == pytest.approx(looped(states, i, j))
    np.testing.assert_array_equal(sums.unmethylated.sum(0), (states == 0).sum(0))
    np.testing.assert_array_equal(np.diagonal(sums.sites.sum(0)), (states >= 0).sum(0))


def test_blocks_never_cross_contigs_and_are_of_about_one_size() -> None:
    states = np.zeros((230, 2), dtype=np.int8)
    sums = sums_of_calls(states, np.repeat([0, 2, 3], [100, 30, 100]), blocks=7)  # at most 33 sites each
    assert sums.sites[:, 0, 1].tolist() == [25, 25, 25, 25, 30, 25, 25, 25, 25]
    assert len(sums_of_calls(states, np.arange(230), blocks=7).sites) == 230


def test_weights_of_calls() -> None:
    weights = call_weights(np.array([[0, 1], [2, MISSING_STATE]]))
    np.testing.assert_array_equal(weights, [[[1, 0, 0], [0, 1, 0]], [[0, 0, 1], [np.nan] * 3]])


def test_sums_do_not_depend_on_the_chunks() -> None:
    weights = call_weights(some_states())
    whole = block_sums([weights], 4)
    parts = block_sums([weights[:10], weights[10:11], weights[11:]], 4)
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-14)


def test_jackknife_and_bootstrap_are_those_of_resampled_sites() -> None:
    states = some_states()
    blocks = [states[start : start + 23] for start in range(0, 230, 23)]
    sums = stack_blocks([block_sums([call_weights(block)], 4) for block in blocks])
    pairs = pairs_of(sums, *all_pairs(4), list("abcd"))

    def divergence(kept: list[Array]) -> Array:
        parts = [looped(np.concatenate(kept), i, j) for i, j in zip(*np.triu_indices(4, k=1), strict=True)]
        return np.array([difference / sites for difference, sites in parts])

    np.testing.assert_allclose(pairs.divergence, divergence(blocks), rtol=1e-13)
    left_out = np.array([divergence(blocks[:k] + blocks[k + 1 :]) for k in range(10)])
    expected = np.sqrt(0.9 * ((left_out - left_out.mean(0)) ** 2).sum(0))
    np.testing.assert_allclose(jackknife_error(pairs), expected, rtol=1e-12)

    replicates = block_replicates(pairs, 3, seed=8)
    counts = np.random.default_rng([8, 2]).multinomial(10, np.full(10, 0.1), size=3)
    for row, found, share in zip(counts, replicates.divergence, replicates.unmethylated_share, strict=True):
        drawn = [blocks[k] for k in np.repeat(np.arange(10), row)]
        np.testing.assert_allclose(found, divergence(drawn), rtol=1e-12)
        sites = np.concatenate(drawn)
        assert share == pytest.approx(np.mean((sites == 0).sum(0) / (sites >= 0).sum(0)), rel=1e-12)


def test_jackknife_error_is_that_of_many_cohorts() -> None:
    """Sites are independent here; 400 cohorts leave 3.5 % of error in their SD, and 40 jackknives 2.5 % in theirs."""
    pedigree, individuals = lines_pedigree(2, (4,))
    random = np.random.default_rng(6)
    found, errors = [], []
    for cohort in range(400):
        states = draw_states(pedigree, 0.01, 0.03, 400, random)
        sums = sums_of_calls(states, np.zeros(400, int), blocks=40)
        pairs = pairs_of(sums, *pair_times(pedigree, individuals), individuals)
        found.append(pairs.divergence)
        if cohort < 40:
            errors.append(jackknife_error(pairs))
    np.testing.assert_allclose(np.mean(errors, axis=0), np.std(found, axis=0), rtol=0.15)


def test_a_pair_without_a_common_site() -> None:
    states = np.array([[0, MISSING_STATE], [MISSING_STATE, 1]], dtype=np.int8)
    sums = sums_of_calls(states, np.zeros(2, int), blocks=1)
    with pytest.raises(UserError, match=r"^samples 'a' and 'b' have no site in common: expected sites that are"):
        pairs_of(sums, *all_pairs(2), ["a", "b"])


def test_pairs_that_a_bootstrap_can_miss() -> None:
    states = np.array([[0, 0, 0]] + [[0, 0, MISSING_STATE]] * 5, dtype=np.int8)
    sums = sums_of_calls(states, np.arange(6), blocks=6)
    pairs = pairs_of(sums, *all_pairs(3), list("abc"))
    with pytest.raises(UserError, match=r"^--blocks: some pairs share sites in very few of the 6 blocks"):
        block_replicates(pairs, 20, seed=1)


# ---- times


def test_times_of_lines() -> None:
    pedigree, individuals = lines_pedigree(2, (3, 10))
    first, second, times = pair_times(pedigree, [*individuals, "10_1"])  # one plant measured twice
    names = [*individuals, "10_1"]
    found = {
        (names[i], names[j]): tuple(map(int, row))
        for i, j, row in zip(first, second, np.transpose(times), strict=True)
        if (i, j) != (4, 5)
    }
    assert found[("founder", "10_0")] == (0, 0, 10)
    assert found[("3_0", "10_0")] == (3, 3, 10)
    assert found[("10_0", "3_1")] == (0, 10, 3)
    assert np.transpose(times)[(first == 4) & (second == 5)].tolist() == [[10, 10, 10]]
    assert len(first) == 15


def test_pairs_without_a_common_founder_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "pedigree.tsv"
    rows = "a\t\t\t\nb\ta\t\tclonal\nc\ta\t\tclonal\nx\t\t\t\ny\tx\t\tclonal\n"
    path.write_text(f"individual\tmother\tfather\tmode\n{rows}")
    pedigree = read_pedigree(str(path))
    assert uniparental_mode(pedigree) == "clonal"
    first, second, times = pair_times(pedigree, ["b", "c", "y", "x"])
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == [(0, 1), (2, 3)]
    assert np.transpose(times).tolist() == [[0, 1, 1], [0, 1, 0]]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("a\t\t\t\nb\t\t\t\nc\ta\tb\t\n", "pedigree: individual 'c' has mode sexual: expected lines propagated by"),
        ("a\t\t\t\nb\ta\t\tselfing\nc\tb\t\tclonal\n", "pedigree: some individuals are selfed and others clonal"),
    ],
)
def test_pedigrees_that_are_no_lines(tmp_path: Path, rows: str, expected: str) -> None:
    path = tmp_path / "pedigree.tsv"
    path.write_text(f"individual\tmother\tfather\tmode\n{rows}")
    with pytest.raises(UserError, match=expected):
        uniparental_mode(read_pedigree(str(path)))


@needs_data
def test_ma1_1_times_as_published() -> None:
    sheet, pedigree = alphabeta_samples(lists("ma1_1")["nodes"]), read_pedigree(lists("ma1_1"))
    assert uniparental_mode(pedigree) == "selfing"
    _, _, times = pair_times(pedigree, sheet.individuals)
    published, _ = read_pairs(PEDIGREES / "ma1_1" / "divergence_pairs.csv")

    def counted(found: PairTimes) -> Counter[tuple[int, ...]]:
        ends = np.sort([found.first, found.second], axis=0)
        return Counter(zip(found.ancestor.tolist(), *ends.tolist(), strict=True))

    assert counted(times) == counted(published)


@needs_data
def test_col0_divergences_and_times_as_published() -> None:
    sheet, pedigree = alphabeta_samples(lists("col0_ma")["nodes"]), read_pedigree(lists("col0_ma"))
    calls = read_calls(sheet.paths, ["CG"], 0.99)
    sums = sums_of_calls(calls.states, calls.contig, blocks=100)
    pairs = pairs_of(sums, *pair_times(pedigree, sheet.individuals), sheet.samples)
    times, published = read_pairs(PEDIGREES / "col0_ma" / "divergence_pairs.txt")
    assert len(pairs.divergence) == 78
    np.testing.assert_array_equal(np.sort(pairs.times[1:], axis=0), np.sort(times[1:], axis=0))
    np.testing.assert_array_equal(pairs.times.ancestor, times.ancestor)
    np.testing.assert_allclose(pairs.divergence, published, rtol=0, atol=1e-5)
    assert pairs.unmethylated_share == pytest.approx(0.99101, abs=5e-6)
