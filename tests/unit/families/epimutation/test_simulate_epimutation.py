"""Drawn states against the tables of transmission, which are made in another way.

Seeds are fixed. Were they not: each test compares counts with their expectation by a chi-squared statistic that 1 run
in 10,000 would exceed; a rate that is off by a tenth would exceed it nearly always, as `test_..._has_power` shows.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lineage_cases import LINEAGES, transmission_table, with_events
from scipy.stats import chi2

from epivi.families.epimutation.draw import SimulatedStates, TrueEmission, TrueRates, simulate_reads, simulate_states
from epivi.lineage.emission import LineageEmission, log_probability
from epivi.lineage.lineage import Lineage

LOCI = 100_000
ALPHA, BETA = 0.05, 0.08
PROPORTIONS = np.array([0.5, 0.2, 0.3])
FALSE_ALARMS = 1e-4


def statistic(observed: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """Chi-squared of counts, and its quantile at 1 - FALSE_ALARMS; outcomes with fewer than 10 expected are joined."""
    assert (observed[expected == 0] == 0).all()
    rare = expected < 10
    observed, expected = (np.append(counts[~rare], counts[rare].sum()) for counts in (observed, expected))
    observed, expected = observed[expected > 10], expected[expected > 10]
    value = float(((observed - expected) ** 2 / expected).sum())
    return value, float(chi2.ppf(1 - FALSE_ALARMS, len(expected)))


def draw(lineage: Lineage, log_fitness: float = 0.0) -> SimulatedStates:
    return simulate_states(lineage, TrueRates(ALPHA, BETA, PROPORTIONS, log_fitness), LOCI, np.random.default_rng(1))


@pytest.mark.parametrize("log_fitness", [0.0, -0.5, 0.4])
@pytest.mark.parametrize("name", ["selfing", "clonal", "mixed", "backcross"])
def test_states_and_events_follow_the_tables(name: str, log_fitness: float) -> None:
    lineage = LINEAGES[name]
    drawn = draw(lineage, log_fitness)
    branch = 0
    for node, parents in enumerate(lineage.parents):
        if not parents:
            value, limit = statistic(np.bincount(drawn.states[:, node], minlength=3), LOCI * PROPORTIONS)
            assert value < limit
            continue
        kind = lineage.transmission[node], lineage.generations[node], ALPHA, BETA, log_fitness
        family = np.ravel_multi_index(drawn.states[:, [*parents, node]].T.astype(int), (3,) * (len(parents) + 1))
        above = np.bincount(family // 3, minlength=3 ** len(parents))
        given = transmission_table(*kind).reshape(-1, 3)
        value, limit = statistic(np.bincount(family, minlength=given.size), (above[:, None] * given).ravel())
        assert value < limit
        events = with_events(*kind).reshape(-1, 3, len(parents), 2)
        for parent in range(len(parents)):
            for which, happened in enumerate((drawn.gains, drawn.losses)):
                observed = np.bincount(family[happened[:, branch + parent]], minlength=given.size)
                expected = (above[:, None] * events[:, :, parent, which]).ravel()
                value, limit = statistic(observed, expected)
                assert value < limit
        branch += len(parents)


def test_statistic_has_power() -> None:
    lineage = LINEAGES["clonal"]
    drawn = draw(lineage)
    (child,) = (node for node, gap in enumerate(lineage.generations) if gap == 5)
    (parent,) = lineage.parents[child]
    family = 3 * drawn.states[:, parent].astype(int) + drawn.states[:, child]
    above = np.bincount(family // 3, minlength=3)
    wrong = transmission_table("clonal", 5, 1.1 * ALPHA, BETA)
    value, limit = statistic(np.bincount(family, minlength=9), (above[:, None] * wrong).ravel())
    assert value > 2 * limit


def test_rates_may_differ_between_loci() -> None:
    lineage = LINEAGES["clonal"]
    rates = TrueRates(np.array([0.0, 1.0]), 0.0, np.array([1.0, 0.0, 0.0]))
    drawn = simulate_states(lineage, rates, 2, np.random.default_rng(1))
    assert drawn.states.tolist() == [[0] * len(lineage.nodes), [0] + [2] * (len(lineage.nodes) - 1)]


@pytest.mark.parametrize("dispersion", [0.0, 0.1])
def test_reads_follow_the_emission(dispersion: float) -> None:
    states = np.repeat(np.arange(3, dtype=np.int8), 40_000)[:, None]
    emission = TrueEmission(0.02, 0.05, dispersion, coverage_mean=4.0)
    meth, total = simulate_reads(states, emission, np.random.default_rng(2))
    table = LineageEmission(*(torch.tensor(value).double() for value in (0.02, 0.05, max(dispersion, 1e-9))))
    for state in range(3):
        reads = 5
        at = (states[:, 0] == state) & (total[:, 0] == reads)
        m = torch.arange(reads + 1)
        expected = log_probability(table, m, torch.full_like(m, reads))[:, state].exp().numpy() * at.sum()
        value, limit = statistic(np.bincount(meth[at, 0], minlength=reads + 1), expected)
        assert value < limit
    assert total.mean() == pytest.approx(4, abs=0.03)
    spread = TrueEmission(0.02, 0.05, dispersion, coverage_mean=4.0, coverage_size=2.0)
    assert simulate_reads(states, spread, np.random.default_rng(3))[1].var() == pytest.approx(12, rel=0.05)
