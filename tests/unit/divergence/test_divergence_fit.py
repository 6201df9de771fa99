"""The least-squares estimator: its matrices and expectations against enumeration, its gradients, published fits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from divergence_cases import Array, transition
from places import DATA

from epivi.divergence.calls import read_pairs
from epivi.divergence.fit import (
    PROFILE_RATIOS,
    Assumptions,
    NeutralFit,
    PairTimes,
    _everything,
    _fixed_ratio,
    _Model,
    _Objective,
    bootstrap,
    compare,
    equilibrium,
    fit_neutral,
    fit_null,
    profile_ratio,
    refit,
    reported,
    residual_replicates,
    supported_ratios,
)
from epivi.lineage.transitions import UNIPARENTAL

PEDIGREES = DATA / "pedigrees"
needs_data = pytest.mark.skipif(not PEDIGREES.is_dir(), reason="the public test data is not beside the repository")
RATES = [(1e-4, 3e-4), (0.02, 0.3), (0.4, 0.01), (0.25, 0.25)]
both_modes = pytest.mark.parametrize("mode", UNIPARENTAL)
all_rates = pytest.mark.parametrize(("alpha", "beta"), RATES)


def expected_divergence(times: PairTimes, parameters: Array, assumptions: Assumptions) -> Array:
    """D of every pair [P]."""
    return _Model(times, assumptions).evaluate(parameters)[0]


def inherited(state: int, alpha: float, beta: float, mode: str) -> Array:
    """Oracle of one row of T: alleles drawn (selfing) or kept (clonal) one by one, then changed or not."""
    parent = [(0, 0), (0, 1), (1, 1)][state]
    rate = (alpha, beta)  # of change: of an unmethylated, of a methylated allele
    draws = itertools.product(parent, parent) if mode == "selfing" else [parent] * 4
    row = np.zeros(3)
    for alleles in draws:
        for changed in itertools.product((False, True), repeat=2):
            chance = np.prod([rate[x] if change else 1 - rate[x] for x, change in zip(alleles, changed, strict=True)])
            row[sum(x ^ change for x, change in zip(alleles, changed, strict=True))] += chance / 4
    return row


@both_modes
@all_rates
def test_transitions_are_those_of_single_alleles(alpha: float, beta: float, mode: str) -> None:
    matrix = transition(alpha, beta, mode)
    np.testing.assert_allclose(matrix, [inherited(s, alpha, beta, mode) for s in range(3)], rtol=1e-14)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-15)


@both_modes
@all_rates
def test_the_equilibrium_stays(alpha: float, beta: float, mode: str) -> None:
    shares = equilibrium(alpha, beta, mode)
    np.testing.assert_allclose(shares @ transition(alpha, beta, mode), shares, rtol=1e-12)
    assert shares.sum() == pytest.approx(1, rel=1e-15)
    assert (shares > 0).all()


@both_modes
@all_rates
def test_the_equilibrium_is_reached_and_generations_add_up(alpha: float, beta: float, mode: str) -> None:
    """T(s + t) = T(s) T(t), as seen by the divergence of a plant from a founder of known state."""
    power = np.linalg.matrix_power(transition(alpha, beta, mode), 7)
    parts = [np.linalg.matrix_power(transition(alpha, beta, mode), t) for t in (3, 4)]
    np.testing.assert_allclose(parts[0] @ parts[1], power, rtol=1e-13)
    founder_uu = Assumptions(mode, 1 - 1e-15, 0.5, 0.0)
    times = PairTimes(np.array([0]), np.array([0]), np.array([7]))
    divergence = expected_divergence(times, np.array([alpha, beta, 0.5, 0.0]), founder_uu)
    assert divergence[0] == pytest.approx(power[0, 1] / 2 + power[0, 2], rel=1e-12)
    far = np.linalg.matrix_power(transition(alpha, beta, mode), 10**7)
    np.testing.assert_allclose(far, np.tile(equilibrium(alpha, beta, mode), (3, 1)), rtol=1e-8)


def enumerated(times: tuple[int, int, int], alpha: float, beta: float, founder: Array, mode: str) -> float:
    """Expected divergence by summing over the states of every plant of every generation."""
    ancestor, first, second = times
    # Each plant's parent by index, the founder first: down to the ancestor, then one line after the other.
    parent = [-1, *range(ancestor)]
    ends = []
    for length in (first - ancestor, second - ancestor):
        last = ancestor
        for _ in range(length):
            parent.append(last)
            last = len(parent) - 1
        ends.append(last)
    matrix = np.array([inherited(s, alpha, beta, mode) for s in range(3)])
    total = 0.0
    for states in itertools.product(range(3), repeat=len(parent)):
        chance = founder[states[0]]
        for plant in range(1, len(parent)):
            chance *= matrix[states[parent[plant]], states[plant]]
        total += chance * abs(states[ends[0]] - states[ends[1]]) / 2
    return total


@both_modes
@pytest.mark.parametrize("times", [(0, 0, 3), (0, 2, 3), (1, 2, 4), (2, 2, 2), (2, 5, 3), (3, 4, 4)])
def test_expected_divergence_by_enumerating_every_plant(times: tuple[int, int, int], mode: str) -> None:
    alpha, beta, unmethylated, intermediate, intercept = 0.07, 0.19, 0.6, 0.3, 0.01
    founder = np.array([0.6, 0.4 * 0.3, 0.4 * 0.7])
    found = expected_divergence(
        PairTimes(*(np.array([t]) for t in times)),
        np.array([alpha, beta, intermediate, intercept]),
        Assumptions(mode, unmethylated, 0.5, 0.0),
    )
    assert found[0] == pytest.approx(enumerated(times, alpha, beta, founder, mode) + intercept, abs=1e-12)


# ---- least squares


def lines(generations: tuple[int, ...]) -> PairTimes:
    """Two lines from one founder, sampled at each of some generations, and the founder."""
    plants = [(0, 0), *((g, line) for line in (1, 2) for g in generations)]
    pairs = list(itertools.combinations(plants, 2))
    ancestor = [min(a[0], b[0]) if a[1] == b[1] else 0 for a, b in pairs]
    return PairTimes(np.array(ancestor), np.array([a[0] for a, _ in pairs]), np.array([b[0] for _, b in pairs]))


TIMES = lines((1, 2, 5, 11))


@both_modes
@all_rates
@pytest.mark.parametrize("line", [_everything(), _fixed_ratio(3.0)], ids=["all", "ratio"])
def test_gradients(alpha: float, beta: float, mode: str, line) -> None:  # type: ignore[no-untyped-def]
    random = np.random.default_rng(3)
    divergence = random.uniform(0, 0.1, len(TIMES.first))
    objective = _Objective(TIMES, divergence, Assumptions(mode, 0.7, 0.6, 0.5))
    searched = np.linalg.lstsq(line.basis, np.array([np.log(alpha), np.log(beta), 0.3, 0.01]) - line.offset)[0]

    def residuals(values: Array) -> Array:
        return objective.residuals(line.offset + line.basis @ values)

    exact = objective.jacobian(line.offset + line.basis @ searched) @ line.basis
    step = 1e-5
    for column, unit in enumerate(np.eye(len(searched))):
        numeric = (residuals(searched + step * unit) - residuals(searched - step * unit)) / (2 * step)
        np.testing.assert_allclose(exact[:, column], numeric, rtol=1e-6, atol=1e-8)


@both_modes
def test_exact_divergences_give_back_their_parameters(mode: str) -> None:
    truth = np.array([2e-4, 7e-4, 0.2, 0.003])
    share = float(equilibrium(2e-4, 7e-4, mode)[0])
    assumptions = Assumptions(mode, 0.8, share, 1.0)
    fit = fit_neutral(TIMES, expected_divergence(TIMES, truth, assumptions), assumptions, starts=8, seed=1)
    np.testing.assert_allclose(fit.parameters, truth, rtol=1e-5)
    assert fit.rss < 1e-20
    assert fit.agreeing_starts >= 1
    np.testing.assert_allclose(reported(fit)[[2, 5]], [3.5, share], rtol=1e-5)


def test_sums_of_squares_are_those_of_the_pairs() -> None:
    assumptions = Assumptions("selfing", 0.8, 0.5, 1e-4)  # a weight with which sum and penalty both count
    noise = np.random.default_rng(4).normal(0, 1e-3, len(TIMES.first))
    divergence = expected_divergence(TIMES, np.array([0.02, 0.06, 0.2, 0.003]), assumptions) + noise
    fit = fit_neutral(TIMES, divergence, assumptions, starts=5, seed=1)
    predicted = expected_divergence(TIMES, fit.parameters, assumptions)
    np.testing.assert_allclose(fit.predicted, predicted, rtol=1e-12)
    assert fit.rss == pytest.approx(((divergence - predicted) ** 2).sum(), rel=1e-12)
    assert fit.penalty == pytest.approx(1e-4 * len(divergence) * (fit.equilibrium[0] - 0.5) ** 2, rel=1e-9)
    assert fit.penalty > 1e-7


def test_null_model_and_comparison() -> None:
    divergence = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.8])
    null = fit_null(divergence)
    assert null == pytest.approx((0.3, 0.4), rel=1e-12)
    neutral = NeutralFit(1e-4, 1e-4, 0.1, 0.0, np.ones(3) / 3, 0.1, 0.0, divergence, 1, 1)
    result = compare(neutral, null)
    assert result.f_statistic == pytest.approx((0.4 - 0.1) / 3 / (0.1 / 2))
    # F with d and 2 degrees of freedom exceeds x with probability 1 - (d x / (d x + 2))^(d / 2).
    assert result.p_value == pytest.approx(1 - (6 / 8) ** 1.5, rel=1e-9)
    assert result.aic_neutral == pytest.approx(6 * np.log(0.1 / 6) + 10)
    assert result.aic_null == pytest.approx(6 * np.log(0.4 / 6) + 4)


def test_what_cannot_be_fitted() -> None:
    assumptions = Assumptions("selfing", 0.8, 0.8, 1.0)

    def message(times: PairTimes, divergence: Array) -> str:
        with pytest.raises(ValueError, match="expected") as caught:
            fit_neutral(times, divergence, assumptions, starts=1, seed=1)
        return str(caught.value)

    n = len(TIMES.first)
    assert message(TIMES, np.full(n, 0.25)) == "the divergence is 0.25 in every pair: expected differences"
    few = PairTimes(*(values[:4] for values in TIMES))
    assert message(few, np.arange(4) / 100) == "4 pairs: expected more than 4"
    same = PairTimes(*(np.repeat(values[:2], 5) for values in TIMES))
    assert message(same, np.arange(10) / 100) == "2 different combinations of times: expected three or more"


def test_profile_and_bootstrap_of_exact_divergences() -> None:
    truth = np.array([2e-3, 4e-3, 0.2, 0.001])
    assumptions = Assumptions("selfing", 0.8, float(equilibrium(2e-3, 4e-3, "selfing")[0]), 1.0)
    divergence = expected_divergence(TIMES, truth, assumptions)
    ratios = np.array([0.5, 2.0, 8.0])
    fits = profile_ratio(TIMES, divergence, assumptions, ratios, starts=4, seed=1)
    for ratio, fit in zip(ratios, fits, strict=True):
        assert fit.beta / fit.alpha == pytest.approx(ratio, rel=1e-12)
    np.testing.assert_allclose(fits[1].parameters, truth, rtol=1e-5)
    assert min(fits[0].rss + fits[0].penalty, fits[2].rss + fits[2].penalty) > 1e-3
    assert supported_ratios(ratios, fits) == (2.0, 2.0)
    start = fit_neutral(TIMES, divergence, assumptions, starts=4, seed=1)
    flat = np.zeros_like(divergence)
    spread = bootstrap(TIMES, [(divergence, assumptions)] * 3 + [(flat, assumptions)], start)
    assert spread is not None
    assert (spread.replicates, spread.failed) == (3, 1)
    np.testing.assert_allclose(spread.lower, reported(start), rtol=1e-5)
    assert bootstrap(TIMES, [(flat, assumptions)] * 3, start) is None


def test_intervals_are_order_statistics_of_refits() -> None:
    """Of 79 replicates the second from either end: 2 / 80 = 2.5 %."""
    assumptions = Assumptions("selfing", 0.8, 0.8, 1.0)
    random = np.random.default_rng(9)
    divergence = expected_divergence(TIMES, np.array([2e-3, 8e-3, 0.2, 0.001]), assumptions)
    start = fit_neutral(TIMES, divergence, assumptions, starts=2, seed=1)
    drawn = divergence + random.normal(0, 1e-3, (79, len(divergence)))
    spread = bootstrap(TIMES, ((row, assumptions) for row in drawn), start)
    refits = np.sort([reported(refit(TIMES, row, assumptions, start)) for row in drawn], axis=0)
    assert spread is not None
    np.testing.assert_allclose(spread.lower, refits[1], rtol=1e-9)
    np.testing.assert_allclose(spread.upper, refits[77], rtol=1e-9)
    np.testing.assert_allclose(spread.standard_error, np.std(refits, axis=0) * np.sqrt(79 / 78), rtol=1e-9)


# ---- published fits


@needs_data
def test_ma1_1_as_published() -> None:
    times, divergence = read_pairs(PEDIGREES / "ma1_1" / "divergence_pairs.csv")
    assumptions = Assumptions("selfing", 0.74351, 0.74351, 1.0)
    fit = fit_neutral(times, divergence, assumptions, starts=10, seed=1)
    assert fit.alpha == pytest.approx(8.611e-5, rel=0.01)
    assert fit.beta == pytest.approx(2.499e-4, rel=0.01)
    assert fit.intercept == pytest.approx(0.00256, rel=0.01)
    assert fit.rss == pytest.approx(6.509e-4, rel=0.01)
    assert fit.equilibrium[0] == pytest.approx(0.74351, rel=1e-5)
    assert fit_null(divergence).rss == pytest.approx(4.125e-3, rel=0.001)
    assert fit.agreeing_starts >= 5
    # The published standard errors are themselves from a bootstrap; 200 replicates leave 5 % of error in these.
    drawn = residual_replicates(fit, divergence, 200, seed=1)
    spread = bootstrap(times, ((row, assumptions) for row in drawn), fit)
    assert spread is not None
    np.testing.assert_allclose(spread.standard_error[:2], [3.9e-6, 1.15e-5], rtol=0.15)


@needs_data
def test_ma1_1_divergences_do_not_tell_gain_from_loss() -> None:
    times, divergence = read_pairs(PEDIGREES / "ma1_1" / "divergence_pairs.csv")
    ratios = np.logspace(np.log10(0.03), 2, 9)
    profiles = {}
    for weight in (0.0, 1.0):
        assumptions = Assumptions("selfing", 0.74351, 0.74351, weight)
        profiles[weight] = profile_ratio(times, divergence, assumptions, ratios, starts=3, seed=1)
    rss = np.array([fit.rss for fit in profiles[0.0]])
    assert rss.min() == pytest.approx(6.504e-4, rel=1e-4)
    assert rss.max() == pytest.approx(6.510e-4, rel=1e-4)
    assert supported_ratios(ratios, profiles[0.0]) == (ratios[0], ratios[-1])
    # With the penalty the same ratios are told apart, all but the one at the equilibrium.
    with_penalty = [fit.rss + fit.penalty for fit in profiles[1.0]]
    assert np.sort(with_penalty)[1] > 100 * rss.max()


@needs_data
def test_col0_as_published() -> None:
    times, divergence = read_pairs(PEDIGREES / "col0_ma" / "divergence_pairs.txt")
    # The share of U among the calls at 0.99 or more, the mean over the 13 plants.
    assumptions = Assumptions("selfing", 0.991008, 0.991008, 1.0)
    fit = fit_neutral(times, divergence, assumptions, starts=10, seed=1)
    assert fit.alpha == pytest.approx(5.80e-5, rel=0.01)
    assert fit.beta == pytest.approx(6.56e-3, rel=0.01)
    assert fit.intercept == pytest.approx(5.96e-5, rel=0.01)
    assert fit.equilibrium[0] == pytest.approx(0.99101, rel=1e-5)
    again = refit(times, divergence, assumptions, fit)
    np.testing.assert_allclose(again.parameters, fit.parameters, rtol=1e-4)


@needs_data
def test_col0_profile_says_that_the_ratio_is_open() -> None:
    times, divergence = read_pairs(PEDIGREES / "col0_ma" / "divergence_pairs.txt")
    assumptions = Assumptions("selfing", 0.991008, 0.991008, 0.0)
    fits = profile_ratio(times, divergence, assumptions, PROFILE_RATIOS, starts=3, seed=1)
    assert supported_ratios(PROFILE_RATIOS, fits) == (PROFILE_RATIOS[0], PROFILE_RATIOS[-1])
