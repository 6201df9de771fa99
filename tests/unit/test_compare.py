"""Weights, lfdr and q-values against direct optimization, sorting and re-estimated bootstraps."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax

from epivi.compare import estimate_weights, local_fdr, posterior_probabilities, qvalue_table, qvalues

TRUTH = np.array([0.6, 0.3, 0.1])


def draw_evidence(seed: int, n_loci: int, truth: np.ndarray = TRUTH, strength: float = 2.0) -> np.ndarray:
    """Log evidences of loci whose data are Gaussian around the mean of their hypothesis, [L, H]."""
    random = np.random.default_rng(seed)
    hypothesis = random.choice(len(truth), n_loci, p=truth)
    means = strength * np.eye(len(truth))
    data = means[hypothesis] + random.normal(size=(n_loci, len(truth)))
    return -0.5 * ((data[:, None, :] - means) ** 2).sum(2) - 300.0 * random.random((n_loci, 1))


def mean_likelihood(log_evidence: np.ndarray, weight: np.ndarray) -> float:
    return float(logsumexp(log_evidence, b=weight, axis=1).mean())


def best_by_optimizer(log_evidence: np.ndarray) -> np.ndarray:
    """An independent maximum: quasi-Newton on softmax coordinates."""
    start = np.zeros(log_evidence.shape[1])
    found = minimize(
        lambda x: -mean_likelihood(log_evidence, softmax(x)), start, method="BFGS", options={"gtol": 1e-9}
    )
    return softmax(found.x)


def test_weights_maximize_the_likelihood() -> None:
    evidence = draw_evidence(1, 3000)
    weights = estimate_weights(lambda: [evidence], 3000, 50, 20, seed=1)
    np.testing.assert_allclose(weights.weight, best_by_optimizer(evidence), atol=2e-5)
    assert weights.weight.sum() == pytest.approx(1.0, abs=1e-12)


def test_weight_of_an_absent_hypothesis_is_on_the_boundary() -> None:
    evidence = draw_evidence(2, 3000, np.array([0.7, 0.3, 0.0]))
    weights = estimate_weights(lambda: [evidence], 3000, 50, 200, seed=1)
    best = best_by_optimizer(evidence)
    assert mean_likelihood(evidence, weights.weight) >= mean_likelihood(evidence, best) - 1e-9
    assert weights.weight[2] < 0.02
    assert weights.lower[2] == 0.0


def test_pieces_give_the_same_as_the_whole() -> None:
    evidence = draw_evidence(3, 1000)
    whole = estimate_weights(lambda: [evidence], 1000, 40, 30, seed=5)
    pieces = estimate_weights(lambda: np.array_split(evidence, [1, 137, 640]), 1000, 40, 30, seed=5)
    for one, other in zip(whole[:3], pieces[:3], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)


def test_one_hypothesis_has_all_the_weight() -> None:
    weights = estimate_weights(lambda: [np.zeros((10, 1))], 10, 100, 5, seed=1)
    assert weights.weight.tolist() == weights.lower.tolist() == weights.upper.tolist() == [1.0]


def test_interval_agrees_with_a_bootstrap_that_fits_anew() -> None:
    """The one-step replicates against the full fit to every resample of the same kind: widths within a fifth."""
    blocks, size = 60, 40
    evidence = draw_evidence(4, blocks * size)
    weights = estimate_weights(lambda: [evidence], len(evidence), blocks, 800, seed=1)
    random = np.random.default_rng(9)
    by_block = evidence.reshape(blocks, size, -1)
    refits = np.array(
        [
            best_by_optimizer(by_block[random.integers(blocks, size=blocks)].reshape(-1, evidence.shape[1]))
            for _ in range(150)
        ]
    )
    lower, upper = np.quantile(refits, [0.025, 0.975], axis=0)
    np.testing.assert_allclose(weights.upper - weights.lower, upper - lower, rtol=0.2)


def test_intervals_cover_the_truth() -> None:
    """100 cohorts, three weights: at 95 % coverage fewer than 86 of 100 hits has probability below 1e-4 for each."""
    hits = np.zeros(3)
    for seed in range(100):
        evidence = draw_evidence(100 + seed, 1500)
        weights = estimate_weights(lambda evidence=evidence: [evidence], 1500, 50, 200, seed=seed)
        hits += (weights.lower <= TRUTH) & (weights.upper >= TRUTH)
    assert (hits >= 86).all()
    assert (hits < 100).any()  # not so wide that they could not miss


def test_posterior_probabilities_are_bayes_rule() -> None:
    evidence = draw_evidence(6, 50)
    expected = np.exp(evidence + np.log(TRUTH) - logsumexp(evidence, b=TRUTH, axis=1)[:, None])
    np.testing.assert_allclose(posterior_probabilities(evidence, TRUTH), expected, rtol=1e-12)
    without = posterior_probabilities(evidence, np.array([0.5, 0.5, 0.0]))
    assert (without[:, 2] == 0).all()


def test_qvalues_are_running_means_of_the_sorted_lfdr() -> None:
    evidence = draw_evidence(7, 5000, strength=3.0)
    is_null = np.array([True, False, False])
    lfdr = local_fdr(posterior_probabilities(evidence, TRUTH), is_null)
    table = qvalue_table(lambda: np.array_split(evidence, 3), TRUTH, is_null)
    order = np.argsort(lfdr)
    direct = np.empty(len(lfdr))
    direct[order] = np.cumsum(lfdr[order]) / np.arange(1, len(lfdr) + 1)
    stepped = qvalues(lfdr, table)
    # A step spans 1 % of odds; among the first loci of all, the few that share a step weigh more.
    np.testing.assert_allclose(stepped[order], direct[order], rtol=0.03, atol=1e-4)
    assert (np.diff(stepped[order]) >= 0).all()
    assert table.n_loci[-1] == 5000


def test_calls_at_five_percent_are_five_percent_wrong() -> None:
    """With true weights; 40,000 loci, some 9,000 calls: the standard error of the false share is 0.25 points."""
    random = np.random.default_rng(8)
    hypothesis = random.choice(3, 40_000, p=TRUTH)
    means = 3.0 * np.eye(3)
    data = means[hypothesis] + random.normal(size=(40_000, 3))
    evidence = -0.5 * ((data[:, None, :] - means) ** 2).sum(2)
    is_null = np.array([True, False, False])
    lfdr = local_fdr(posterior_probabilities(evidence, TRUTH), is_null)
    called = qvalues(lfdr, qvalue_table(lambda: [evidence], TRUTH, is_null)) <= 0.05
    assert called.sum() > 5000
    assert (hypothesis[called] == 0).mean() == pytest.approx(0.05, abs=0.01)
