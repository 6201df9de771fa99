"""State weights from reads: exactly unbiased given the error rates, of least variance, and right for whole cohorts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from divergence_cases import Array, draw_reads, draw_states, lines_pedigree
from scipy.stats import betabinom

from epivi.divergence.counts import CountTable, ReadMixture, StateWeights, fit_emission, sums_of_counts
from epivi.divergence.fit import DIFFERENCE
from epivi.divergence.pairs import MISSING_STATE, Pairs, block_sums, pair_times, pairs_of, stack_blocks, sums_of_calls

EMISSION = ReadMixture(0.01, 0.03, 0.02, np.array([0.7, 0.05, 0.25]))


def probability(reads: int, emission: ReadMixture = EMISSION) -> Array:
    """Of 0 to `reads` methylated reads given each state, [reads + 1, 3]."""
    precision = (1 - emission.dispersion) / emission.dispersion
    levels = (emission.false_methylated, 0.5, 1 - emission.false_unmethylated)
    return np.stack([betabinom.pmf(np.arange(reads + 1), reads, p * precision, (1 - p) * precision) for p in levels], 1)


@pytest.mark.parametrize("reads", [2, 3, 8, 20, 60, 500])
def test_weights_are_unbiased_given_the_state(reads: int) -> None:
    table = StateWeights(EMISSION).table(reads)
    np.testing.assert_allclose(table.T @ probability(reads), np.eye(3), atol=1e-9)


@pytest.mark.parametrize("reads", [3, 8])
def test_no_other_unbiased_weights_have_less_variance(reads: int) -> None:
    """Any other unbiased weights differ by rows orthogonal to the three distributions."""
    table, given = StateWeights(EMISSION).table(reads), probability(reads)
    mixture = given @ EMISSION.shares
    least = mixture @ table**2
    random = np.random.default_rng(1)
    projector = np.eye(reads + 1) - given @ np.linalg.pinv(given)
    for size in (1e-3, 0.1, 1.0):
        other = table + size * projector @ random.normal(size=table.shape)
        np.testing.assert_allclose(other.T @ given, np.eye(3), atol=1e-9)
        assert (mixture @ other**2 > least).all()


def test_expected_divergence_of_reads_is_that_of_the_states() -> None:
    """Every outcome of two samples' reads enumerated, for every pair of states and unequal coverage."""
    reads = (3, 5)
    outcomes = np.array(list(itertools.product(range(reads[0] + 1), range(reads[1] + 1))))
    weights = StateWeights(EMISSION)(outcomes, np.broadcast_to(reads, outcomes.shape))
    for states in itertools.product(range(3), repeat=2):
        chance = probability(reads[0])[outcomes[:, 0], states[0]] * probability(reads[1])[outcomes[:, 1], states[1]]
        expected = chance @ np.array([block_sums([site[None]], 2)[0][0, 1] for site in weights])
        assert expected == pytest.approx(DIFFERENCE[states], abs=1e-12)


def test_too_few_reads_are_missing() -> None:
    total = np.array([[0, 1, 2, 3, 4]])
    for least, missing in ((2, 2), (4, 4), (0, 2)):
        found = StateWeights(EMISSION, least)(np.zeros_like(total), total)
        assert np.isnan(found).all(axis=2)[0].tolist() == [True] * missing + [False] * (5 - missing)


def test_counts_are_gathered() -> None:
    table = CountTable()
    table.add(np.array([[0, 1], [2, 2]], np.uint16), np.array([[5, 1], [300, 2]], np.uint16))
    table.add(np.array([2]), np.array([2]))
    meth, total, number = table.columns()
    assert list(zip(meth.tolist(), total.tolist(), number.tolist(), strict=True)) == [(2, 2, 2), (0, 5, 1), (2, 300, 1)]


def test_error_rates_are_found() -> None:
    """100,000 sites of samples: standard errors are about a fiftieth of the rates, a tenth for the rare state."""
    random = np.random.default_rng(2)
    states = random.choice(3, size=(100_000, 1), p=[0.7, 0.02, 0.28])
    meth, total = draw_reads(states, 10, random, levels=(0.01, 0.5, 0.96), dispersion=0.03)
    table = CountTable()
    table.add(meth, total)
    found = fit_emission(table)
    assert found.false_methylated == pytest.approx(0.01, rel=0.06)
    assert found.false_unmethylated == pytest.approx(0.04, rel=0.06)
    assert found.dispersion == pytest.approx(0.03, rel=0.06)
    np.testing.assert_allclose(found.shares, np.bincount(states[:, 0]) / 1e5, atol=0.002)


def test_no_reads_at_all() -> None:
    table = CountTable()
    table.add(np.ones((5, 2), int), np.ones((5, 2), int))
    with pytest.raises(ValueError, match="no site has 2 reads or more"):
        fit_emission(table)


def cohort(seed: int, n_sites: int = 4000, depth: float = 8.0) -> tuple[Pairs, Pairs, Pairs]:
    """Divergences of one simulated cohort: from its states, from its reads, and from calls by thresholds."""
    pedigree, individuals = lines_pedigree(2, (4, 8, 11))
    random = np.random.default_rng([7, seed])
    states = draw_states(pedigree, 1e-3, 4e-3, n_sites, random)
    meth, total = draw_reads(states, depth, random)
    called = np.where(total >= 3, np.digitize(meth / np.maximum(total, 1), [0.25, 0.75]), MISSING_STATE)
    size = n_sites // 20

    def reads(block: int) -> list[tuple[Array, Array]]:
        return [(meth[block * size : (block + 1) * size], total[block * size : (block + 1) * size])]

    counts, _ = sums_of_counts(reads, 20, len(individuals), 3)
    where = pair_times(pedigree, individuals)
    calls = [sums_of_calls(values.astype(np.int8), np.zeros(n_sites, int), 20) for values in (states, called)]
    found = [pairs_of(sums, *where, individuals) for sums in (calls[0], counts, calls[1])]
    return found[0], found[1], found[2]


def test_divergences_from_reads_are_unbiased_where_calls_are_not() -> None:
    """Mean error over 15 cohorts, and 21 pairs, within 4 of its standard errors; calls by thresholds fail by 42."""
    errors: dict[str, list[float]] = {"reads": [], "calls": []}
    for seed in range(15):
        truth, counts, calls = cohort(seed)
        errors["reads"].append(float(np.mean(counts.divergence - truth.divergence)))
        errors["calls"].append(float(np.mean(calls.divergence - truth.divergence)))
    score = {name: np.mean(values) / (np.std(values) / np.sqrt(15)) for name, values in errors.items()}
    assert abs(score["reads"]) < 4
    assert score["calls"] > 20
    assert abs(np.mean(errors["reads"])) < 0.02 * np.mean(truth.divergence)


def test_sums_of_counts_do_not_depend_on_chunks() -> None:
    random = np.random.default_rng(3)
    states = random.choice(3, size=(600, 3), p=[0.6, 0.1, 0.3])
    meth, total = draw_reads(states, 6, random)
    whole, emission = sums_of_counts(lambda block: [(meth, total)], 1, 3, 2)
    split, same = sums_of_counts(lambda block: [(meth[:7], total[:7]), (meth[7:], total[7:])], 1, 3, 2)
    assert emission[:3] == same[:3]
    np.testing.assert_allclose(whole.difference, split.difference, rtol=1e-10)
    stacked = stack_blocks([block_sums([StateWeights(emission)(meth, total)], 3)])
    np.testing.assert_allclose(whole.difference, stacked.difference, rtol=1e-12)
