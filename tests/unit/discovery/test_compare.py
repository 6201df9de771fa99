"""Weights, intervals and false discovery rates against long EM runs, brute-force bootstraps and sorting.

Statistical tests fix their seeds and state how often a correct program would fail them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp

from epivi.discovery import compare
from epivi.discovery.compare import (
    LFDR_EDGES,
    EvidencePass,
    estimate_weights,
    local_fdr,
    posterior_probabilities,
    qvalue_table,
    qvalues,
)

Array = NDArray[np.float64]


def passes(log_evidence: Array, *cuts: int) -> EvidencePass:
    """The loci in pieces, anew at every call."""

    def one_pass() -> Iterator[Array]:
        yield from np.split(log_evidence, list(cuts))

    return one_pass


def draw(weight: list[float], loci: int, separation: float, seed: int, run: int = 1) -> Array:
    """Log evidences [L, H] of a known mixture: hypothesis h shifts coordinate h of a normal vector.

    run: consecutive loci with the same hypothesis and nearly the same data.
    """
    random = np.random.default_rng(seed)
    h = len(weight)
    runs = -(-loci // run)
    truth = np.repeat(random.choice(h, size=runs, p=weight), run)[:loci]
    shared = np.repeat(random.normal(size=(runs, h)), run, axis=0)[:loci]
    own = random.normal(size=(loci, h))
    x = (np.sqrt(0.9) * shared + np.sqrt(0.1) * own if run > 1 else own) + separation * np.eye(h)[truth]
    return -0.5 * ((x[:, None, :] - separation * np.eye(h)) ** 2).sum(2) - 300 * random.random((loci, 1))


def long_em(log_evidence: Array, count: Array | None = None, steps: int = 20_000) -> Array:
    """The weights by nothing but EM, with a weight for each locus."""
    likelihood = np.exp(log_evidence - log_evidence.max(1, keepdims=True))
    count = np.ones(len(likelihood)) if count is None else count
    weight = np.full(likelihood.shape[1], 1 / likelihood.shape[1])
    for _ in range(steps):
        new = weight * ((count / (likelihood @ weight)) @ likelihood) / count.sum()
        if np.abs(new - weight).max() < 1e-12:
            return new
        weight = new
    return weight


def mean_log_likelihood(log_evidence: Array, weight: Array) -> float:
    with np.errstate(divide="ignore"):
        return float(logsumexp(log_evidence + np.log(weight), axis=1).mean())


# --- the weights -----------------------------------------------------------------------------------------------------

MIXTURES = {
    "inside": ([0.6, 0.3, 0.1], 1.5),
    "on the boundary": ([0.7, 0.3, 0.0, 0.0], 1.0),
    "at a corner": ([1.0, 0.0, 0.0], 2.0),
    "hard to tell apart": ([0.5, 0.2, 0.2, 0.1], 0.4),
    "two": ([0.95, 0.05], 2.0),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_weights_maximize_the_likelihood(name: str) -> None:
    """Against EM run to its fixed point, a general optimizer, and the conditions of an optimum on the simplex."""
    weight, separation = MIXTURES[name]
    log_evidence = draw(weight, 3000, separation, seed=1)
    found = estimate_weights(passes(log_evidence), 3000, 50, 20, seed=1)
    assert found.weight.sum() == pytest.approx(1, abs=1e-12)
    assert (found.weight >= 0).all()
    assert found.n_loci == 3000
    value = mean_log_likelihood(log_evidence, found.weight)
    assert value >= mean_log_likelihood(log_evidence, long_em(log_evidence)) - 1e-9
    likelihood = np.exp(log_evidence - log_evidence.max(1, keepdims=True))
    general = minimize(
        lambda w: -np.log(likelihood @ w).mean(),
        np.full(len(weight), 1 / len(weight)),
        jac=lambda w: -(likelihood / (likelihood @ w)[:, None]).mean(0),
        bounds=[(0, 1)] * len(weight),
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    np.testing.assert_allclose(found.weight, general.x, atol=2e-4)
    gradient = (likelihood / (likelihood @ found.weight)[:, None]).mean(0)
    assert gradient.max() < 1 + 1e-6
    assert gradient[found.weight > 1e-6] == pytest.approx(1, abs=1e-5)


def test_boundary_is_reached() -> None:
    """Hypotheses that explain nothing get no weight at all, which EM alone would only approach."""
    log_evidence = draw([0.7, 0.3, 0.0, 0.0], 3000, 1.0, seed=1)
    log_evidence[:, 3] = log_evidence[:, 0] - 2
    found = estimate_weights(passes(log_evidence), 3000, 50, 20, seed=1)
    assert found.weight[3] == 0.0
    assert found.upper[3] < 0.05


@pytest.mark.parametrize("start", [[0.98, 0.01, 0.01], [0.0, 0.5, 0.5], [0.2, 0.2, 0.6], [1.0, 0.0, 0.0]])
def test_start_does_not_matter(start: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """The problem is concave: from any start, corners included, the same weights."""
    log_evidence = draw([0.6, 0.3, 0.1], 2000, 1.0, seed=2)
    expected = estimate_weights(passes(log_evidence), 2000, 50, 20, seed=1)
    monkeypatch.setattr(compare, "_em_start", lambda *_: np.array(start))
    found = estimate_weights(passes(log_evidence), 2000, 50, 20, seed=1)
    np.testing.assert_allclose(found.weight, expected.weight, atol=1e-4)


def test_steps_that_overshoot_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    """With targets at a corner beyond the best point in every step, the likelihood still rises to its maximum."""
    log_evidence = draw([0.6, 0.4], 1000, 2.0, seed=2)
    newton = compare._constrained_newton

    def overshooting(weight: Array, gradient: Array, curvature: Array) -> Array:
        target = newton(weight, gradient, curvature)
        return np.array([1.0, 0.0]) if target[0] > weight[0] else np.array([0.0, 1.0])

    expected = estimate_weights(passes(log_evidence), 1000, 10, 5, seed=1)
    monkeypatch.setattr(compare, "_constrained_newton", overshooting)
    monkeypatch.setattr(compare, "_em_start", lambda *_: np.array([0.05, 0.95]))
    found = estimate_weights(passes(log_evidence), 1000, 10, 5, seed=1)
    np.testing.assert_allclose(found.weight, expected.weight, atol=0.01)


def test_pieces_do_not_matter() -> None:
    """However the loci come in files: the same weights, intervals and table."""
    log_evidence = draw([0.6, 0.3, 0.1], 1037, 1.0, seed=3)
    is_null = np.array([True, False, False])
    whole, pieces = passes(log_evidence), passes(log_evidence, 1, 2, 100, 900, 1036)
    one, other = (estimate_weights(each, 1037, 40, 50, seed=4) for each in (whole, pieces))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    tables = (qvalue_table(each, one.weight, is_null) for each in (whole, pieces))
    for a, b in zip(*tables, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)


def test_scale_of_the_evidence_does_not_matter() -> None:
    """A constant of a locus cancels, however large: counts of deep loci have log evidences of minus thousands."""
    log_evidence = draw([0.6, 0.4], 500, 1.0, seed=5)
    shift = np.random.default_rng(1).normal(0, 1e5, (500, 1))
    one, other = (estimate_weights(passes(e), 500, 20, 30, seed=1) for e in (log_evidence, log_evidence + shift))
    np.testing.assert_allclose(one.weight, other.weight, atol=1e-6)


def test_a_single_hypothesis() -> None:
    found = estimate_weights(passes(draw([1.0], 50, 1.0, seed=1)), 50, 100, 20, seed=1)
    assert (found.weight, found.lower, found.upper) == (1.0, 1.0, 1.0)


def test_more_blocks_than_loci() -> None:
    log_evidence = draw([0.5, 0.5], 7, 1.0, seed=1)
    found = estimate_weights(passes(log_evidence, 3), 7, 100, 50, seed=1)
    np.testing.assert_allclose(found.weight, long_em(log_evidence), atol=1e-4)
    assert (found.lower <= found.weight).all()
    assert (found.weight <= found.upper).all()


# --- intervals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weight", "run"), [([0.6, 0.3, 0.1], 1), ([0.8, 0.2], 30), ([0.9, 0.1, 0.0], 10)])
def test_intervals_against_a_bootstrap_that_estimates_anew(weight: list[float], run: int) -> None:
    """The same redrawn blocks, each estimated by EM to the end: interval ends agree within 2 % of the width."""
    loci, blocks, replicates, seed = 4000, 40, 200, 6
    log_evidence = draw(weight, loci, 1.5, seed=7, run=run)
    found = estimate_weights(passes(log_evidence), loci, blocks, replicates, seed)
    block = np.arange(loci) * blocks // loci
    random = np.random.default_rng([seed, 3])
    counts = random.multinomial(blocks, np.full(blocks, 1 / blocks), size=replicates)[:, block].astype(float)
    again = np.array([long_em(log_evidence, count, steps=2000) for count in counts])
    lower, upper = np.quantile(again, [0.025, 0.975], axis=0)
    assert (upper - lower).max() > 0.02
    width = np.maximum(upper - lower, 0.01)
    assert (np.abs(found.lower - lower) / width).max() < 0.02
    assert (np.abs(found.upper - upper) / width).max() < 0.02


@pytest.mark.parametrize("run", [1, 20])
def test_intervals_cover_the_truth(run: int) -> None:
    """120 cohorts of 1500 loci: 95 % intervals of the first weight cover it in 104 or more.

    At a true coverage of 95 % fewer hits have probability 2e-4, at 93 %, as a percentile bootstrap from 50 blocks may
    give, 1 %. With runs of 20 alike loci, intervals that took each locus for itself would be several times too narrow.
    """
    hits = 0
    for seed in range(120):
        log_evidence = draw([0.7, 0.3], 1500, 1.5, seed=1000 + seed, run=run)
        found = estimate_weights(passes(log_evidence), 1500, 50, 100, seed=seed)
        hits += bool(found.lower[0] <= 0.7 <= found.upper[0])
    assert hits >= 104, hits


def test_blocks_are_wider_than_single_loci_where_loci_are_alike() -> None:
    log_evidence = draw([0.7, 0.3], 4000, 1.5, seed=8, run=40)
    by_block, by_locus = (estimate_weights(passes(log_evidence), 4000, b, 200, seed=1) for b in (50, 4000))
    assert by_block.upper[0] - by_block.lower[0] > 2 * (by_locus.upper[0] - by_locus.lower[0])


def test_seed_decides_the_intervals() -> None:
    log_evidence = draw([0.7, 0.3], 500, 1.0, seed=9)
    one, same, other = (estimate_weights(passes(log_evidence), 500, 20, 50, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.lower, same.lower)
    assert (one.lower != other.lower).any()


# --- probabilities and false discovery rates -------------------------------------------------------------------------


def test_posterior_probabilities_are_bayes_rule() -> None:
    log_evidence = draw([0.6, 0.3, 0.1], 100, 1.0, seed=10)
    weight = np.array([0.5, 0.5, 0.0])
    expected = np.exp(log_evidence - log_evidence.max(1, keepdims=True)) * weight
    expected /= expected.sum(1, keepdims=True)
    found = posterior_probabilities(log_evidence, weight)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert (found[:, 2] == 0).all()
    extreme = posterior_probabilities(np.array([[-1e6, -1e6 - 2000, -np.inf]]), np.array([0.2, 0.5, 0.3]))
    np.testing.assert_array_equal(extreme, [[1, 0, 0]])
    np.testing.assert_allclose(local_fdr(found, np.array([True, False, True])), found[:, 0] + found[:, 2])


def _sorted_qvalues(lfdr: Array) -> Array:
    """Mean of all lfdr that are not larger, by sorting."""
    order = np.sort(lfdr)
    rank = np.searchsorted(order, lfdr, side="right")
    return (np.cumsum(order) / np.arange(1, len(order) + 1))[rank - 1]


@pytest.mark.parametrize("draw_lfdr", [lambda r: r.random(20_000), lambda r: 1 / (1 + np.exp(r.normal(2, 6, 20_000)))])
def test_qvalues_against_sorting(draw_lfdr: Callable[[np.random.Generator], Array]) -> None:
    """Exactly the mean up to the end of a locus's step, which is 1 % wide in odds; hence within 1 % of sorting at 95 %
    of loci, and never below it. Monotone; and the last step is the mean lfdr."""
    lfdr = draw_lfdr(np.random.default_rng(11))
    log_evidence = np.stack([np.log(lfdr), np.log1p(-lfdr)], axis=1)
    table = qvalue_table(passes(log_evidence, 5000, 5001), np.array([0.5, 0.5]), np.array([True, False]))
    found, expected = qvalues(lfdr, table), _sorted_qvalues(lfdr)
    assert (found >= expected * (1 - 1e-9)).all()
    assert np.quantile(found / expected, 0.95) < 1.01
    ends = LFDR_EDGES[np.searchsorted(LFDR_EDGES, lfdr, side="left")]
    for locus in range(0, 20_000, 500):
        assert found[locus] == pytest.approx(lfdr[lfdr <= ends[locus]].mean(), rel=1e-9)
    assert (np.diff(table.qvalue) >= 0).all()
    assert (np.diff(table.lfdr) > 0).all()
    assert (np.diff(table.n_loci) > 0).all()
    assert table.n_loci[-1] == 20_000
    assert table.qvalue[-1] == pytest.approx(lfdr.mean(), rel=1e-9)
    assert (np.diff(found[np.argsort(lfdr)]) >= 0).all()
    # A step holds the loci up to its upper end.
    np.testing.assert_array_equal(table.n_loci, [(lfdr <= edge * (1 + 1e-12)).sum() for edge in table.lfdr])


def test_qvalues_at_the_ends() -> None:
    """lfdr of exactly 0 and 1, and loci that the table has never seen."""
    lfdr = np.array([0.0, 0.0, 1.0, 0.5])
    with np.errstate(divide="ignore"):
        log_evidence = np.stack([np.log(lfdr), np.log1p(-lfdr)], axis=1)
    table = qvalue_table(passes(log_evidence), np.array([0.5, 0.5]), np.array([True, False]))
    np.testing.assert_allclose(qvalues(lfdr, table), [0, 0, 1.5 / 4, 0.5 / 3])
    np.testing.assert_allclose(qvalues(np.array([0.9999]), table), 1.5 / 4)
    assert table.lfdr[-1] == 1.0
    assert (LFDR_EDGES[0], LFDR_EDGES[-1]) == (0.0, 1.0)


def test_calling_at_a_qvalue_keeps_the_rate() -> None:
    """40 cohorts at a nominal 10 %: realized false discoveries within 10 +- 1.5 % (their standard error is 0.3 %)."""
    realized = []
    for seed in range(40):
        random = np.random.default_rng([12, seed])
        is_signal = random.random(5000) < 0.3
        x = random.normal(size=5000) + 2.5 * is_signal
        log_evidence = np.stack([-0.5 * x**2, -0.5 * (x - 2.5) ** 2], axis=1)
        weights = estimate_weights(passes(log_evidence), 5000, 50, 2, seed=seed)
        null = np.array([True, False])
        table = qvalue_table(passes(log_evidence), weights.weight, null)
        lfdr = local_fdr(posterior_probabilities(log_evidence, weights.weight), null)
        called = qvalues(lfdr, table) < 0.1
        realized.append((called & ~is_signal).sum() / called.sum())
    assert np.mean(realized) == pytest.approx(0.1, abs=0.015)
