"""Probabilities, local false discovery rates, q-values and sets of kinds against Bayes' rule, sorting and search.

Statistical tests fix their seeds and state how often a correct program would fail them.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray
from test_weights import draw, passes

from epivi.discovery.probabilities import (
    KIND_LEVEL,
    LFDR_EDGES,
    kinds,
    local_fdr,
    mixture_probabilities,
    qvalue_table,
    rates,
)
from epivi.discovery.weights import WeightPrior, weight_posterior

Array = NDArray[np.float64]


def test_probabilities_are_bayes_rule() -> None:
    log_evidence = draw([0.6, 0.3, 0.1], 100, 1.0, seed=10)
    weight = np.array([0.5, 0.5, 0.0])
    expected = np.exp(log_evidence - log_evidence.max(1, keepdims=True)) * weight
    expected /= expected.sum(1, keepdims=True)
    found = mixture_probabilities(log_evidence, weight[None])
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert (found[:, 2] == 0).all()
    extreme = mixture_probabilities(np.array([[-1e6, -1e6 - 2000, -np.inf]]), np.array([[0.2, 0.5, 0.3]]))
    assert extreme[0, 0] == 1.0
    assert (extreme[0, 1:] > 0).all()  # no lfdr is exactly zero, whatever the evidence
    assert (extreme[0, 1:] < 1e-290).all()
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
    table = qvalue_table(passes(log_evidence, 5000, 5001), np.array([[0.5, 0.5]]), np.array([True, False]))
    found, expected = rates(lfdr, table).qvalue, _sorted_qvalues(lfdr)
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
    table = qvalue_table(passes(log_evidence), np.array([[0.5, 0.5]]), np.array([True, False]))
    np.testing.assert_allclose(rates(lfdr, table).qvalue, [0, 0, 1.5 / 4, 0.5 / 3], atol=1e-200)
    np.testing.assert_allclose(rates(np.array([0.9999]), table).qvalue, 1.5 / 4)
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
        null = np.array([True, False])
        weights = weight_posterior(
            passes(log_evidence), 5000, WeightPrior(np.array([5.0, 1.0]), 0.02), 50, 40, seed=seed
        )
        table = qvalue_table(passes(log_evidence), weights.tilted, null)
        lfdr = local_fdr(mixture_probabilities(log_evidence, weights.tilted), null)
        called = rates(lfdr, table).qvalue < 0.1
        realized.append((called & ~is_signal).sum() / called.sum())
    assert np.mean(realized) == pytest.approx(0.1, abs=0.015)


def test_probabilities_are_averaged_over_the_weights() -> None:
    log_evidence = draw([0.6, 0.3, 0.1], 9000, 1.0, seed=10)
    weights = np.random.default_rng(1).dirichlet(np.ones(3), 7)
    each = [mixture_probabilities(log_evidence, weight[None]) for weight in weights]
    np.testing.assert_allclose(mixture_probabilities(log_evidence, weights), np.mean(each, axis=0), rtol=1e-10)


@pytest.mark.parametrize("nulls", [[0], [1, 3], [0, 1, 2, 3, 4]])
def test_sets_of_kinds_against_search(nulls: list[int]) -> None:
    """The smallest set with 90 % of the transmitted probability, by trying all; the best one where nothing is open."""
    names = ("reset", "mendelian", "epigenetic", "maternal", "paternal")
    probability = np.random.default_rng(3).dirichlet(np.full(5, 0.3), 300)
    is_null = np.isin(np.arange(5), nulls)
    found = kinds(probability, names, is_null)
    others = [h for h in range(5) if h not in nulls]
    for row, kind_set, best in zip(probability, found.kind_set, found.best, strict=True):
        enough = [
            members
            for size in range(len(others) + 1)
            for members in combinations(others, size)
            if row[list(members)].sum() >= KIND_LEVEL * row[others].sum() - 1e-12
        ]
        size = len(enough[0])
        members = max((m for m in enough if len(m) == size), key=lambda m: row[list(m)].sum())
        assert kind_set == "|".join(names[h] for h in members)
        top = int(row.argmax())
        assert best == ("" if top in others and size > 1 else names[top])
