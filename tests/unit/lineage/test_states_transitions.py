"""Transmission of states: against a list of all copies and events, and the laws that it must obey."""

from __future__ import annotations

import pytest
import torch
from lineage_cases import LINEAGES, cloned, founder, generation, pedigree_of, selfed, with_events
from numpy.testing import assert_allclose

from epivi.divergence.fit import _transition
from epivi.lineage.elimination import build_plan
from epivi.lineage.likelihood import EpimutationRates, event_values, shared_values
from epivi.lineage.lineage import build_lineage
from epivi.lineage.transitions import GAIN, LOSS, UNIPARENTAL, clonal, outcross, selfing

RATES = torch.tensor([[1e-4, 3e-3], [0.2, 0.4], [0.0, 0.3], [0.0, 0.0]], dtype=torch.float64)
FITNESS = torch.tensor([0.0, 0.5, -1.0, 2.0], dtype=torch.float64)


@pytest.mark.parametrize("mode", ["selfing", "clonal", "outcross"])
@pytest.mark.parametrize("log_fitness", [None, FITNESS], ids=["neutral", "selection"])
def test_transmission_lists_all_copies_and_events(mode: str, log_fitness: torch.Tensor | None) -> None:
    alpha, beta = RATES.T
    value = {**UNIPARENTAL, "outcross": outcross}[mode](alpha, beta, log_fitness).numpy()
    assert_allclose(value.sum(-1), 1, atol=1e-15)
    for k, (a, b) in enumerate(RATES.tolist()):
        listed = generation(mode, a, b, 0.0 if log_fitness is None else float(log_fitness[k]))
        parents = 2 if mode == "outcross" else 1
        assert_allclose(value[k], listed.sum(tuple(range(parents + 1, listed.ndim))), atol=1e-15)


@pytest.mark.parametrize("mode", ["selfing", "clonal"])
def test_the_divergence_estimator_has_these_tables_and_their_derivatives(mode: str) -> None:
    for rates in RATES:
        slopes = torch.autograd.functional.jacobian(UNIPARENTAL[mode], tuple(rates))
        value, by_alpha, by_beta = _transition(*rates.tolist(), mode)
        assert_allclose(value, UNIPARENTAL[mode](*rates).numpy(), rtol=1e-14, atol=1e-16)
        for found, slope in zip((by_alpha, by_beta), slopes, strict=True):
            assert_allclose(found, slope.numpy(), atol=1e-15)


def test_selfing_is_the_diagonal_of_outcrossing() -> None:
    alpha, beta = RATES.T
    both = outcross(alpha, beta, FITNESS)
    assert_allclose(selfing(alpha, beta, FITNESS).numpy(), both[:, range(3), range(3)].numpy(), atol=1e-16)
    m = torch.stack([alpha, (1 + alpha - beta) / 2, 1 - beta], -1)  # of a gamete of a parent in each state
    assert_allclose(outcross(alpha, beta)[..., 2].numpy(), (m[:, :, None] * m[:, None, :]).numpy(), atol=1e-16)


@pytest.mark.parametrize("mode", ["selfing", "clonal"])
def test_generations_compose(mode: str) -> None:
    """T(s + t) = T(s) T(t) for the tables that the likelihood uses."""
    rows = {}
    for generations in (3, 4, 7):
        child = {"selfing": selfed, "clonal": cloned}[mode]
        pedigree = pedigree_of(founder("f"), child("a", "f", generations))
        rates = EpimutationRates(*RATES.T, torch.full((4, 3), 1 / 3, dtype=torch.float64), FITNESS)
        plan = build_plan(build_lineage(pedigree, ["a"]))
        rows[generations] = shared_values(plan, rates)[:, 3:].unflatten(1, (3, 3)).numpy()
    assert_allclose(rows[7], rows[3] @ rows[4], atol=1e-14)
    assert_allclose(rows[7].sum(-1), 1, atol=1e-14)


@pytest.mark.parametrize("name", ["selfing", "mixed"])
def test_events_of_several_generations(name: str) -> None:
    """At least one gain, or loss, on an edge, with its end states: against a sum over every generation between."""
    plan = build_plan(LINEAGES[name])
    rates = EpimutationRates(*RATES.T, torch.full((4, 3), 1 / 3, dtype=torch.float64), FITNESS)
    events = event_values(plan, rates).numpy()
    assert (events[:, :, :3] == 0).all()
    for table in plan.transmissions:
        rows = slice(table.row, table.row + table.rows)
        for k, (a, b) in enumerate(RATES.tolist()):
            listed = with_events(table.mode, table.generations, a, b, float(FITNESS[k]))
            for branch in range(listed.shape[-2]):
                for kind in (0, 1):
                    assert_allclose(events[k, 2 * branch + kind, rows], listed[..., branch, kind].ravel(), atol=1e-14)


def test_without_an_event_is_less_probable() -> None:
    alpha, beta = RATES[:2].T
    for mode in (selfing, clonal):
        for without in (GAIN, LOSS):
            assert (mode(alpha, beta, without=without) <= mode(alpha, beta)).all()
            assert mode(alpha, beta, without=without).sum() < mode(alpha, beta).sum()
