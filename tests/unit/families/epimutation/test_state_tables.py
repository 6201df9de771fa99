"""States of nodes and changes on branches, averaged over hypotheses: against the sum over all points; calibration."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import logsumexp
from state_cases import StateCase, state_case

from epivi.families.epimutation import states as state_tables
from epivi.families.epimutation.quadrature import evaluate_loci
from epivi.families.epimutation.states import LocusStates, locus_states

NAMES = ("stable", "neutral", "labile", "selection")
WEIGHT = np.array([0.1, 0.6, 0.2, 0.1])
LOCI = 6000


@pytest.fixture(scope="module")
def case() -> StateCase:
    return state_case(LOCI, seed=4, names=NAMES)


@pytest.fixture(scope="module")
def found(case: StateCase) -> LocusStates:
    return locus_states(case.model, WEIGHT, case.meth, case.total, case.class_code)


def test_probabilities_of_states_sum_to_one(found: LocusStates) -> None:
    np.testing.assert_allclose(found.states.sum(2), 1.0, atol=1e-9)
    assert found.events.min() >= 0
    assert found.events.max() <= 1 + 1e-9


def test_points_left_out_move_little(case: StateCase, found: LocusStates, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_tables, "LEAST_SHARE", 0.0)
    every = locus_states(case.model, WEIGHT, case.meth, case.total, case.class_code)
    assert np.abs(found.events - every.events).max() < 1e-3
    assert np.abs(found.states - every.states).max() < 1e-3
    assert not np.array_equal(found.events, every.events)


def test_the_average_is_over_hypotheses_by_their_probabilities(case: StateCase, found: LocusStates) -> None:
    evidence = np.stack([e.log_evidence for e in evaluate_loci(case.model, case.meth, case.total, case.class_code)])
    joint = evidence + np.log(WEIGHT)[:, None]
    probability = np.exp(joint - logsumexp(joint, axis=0))
    parts = [
        locus_states(case.model, np.eye(len(NAMES))[h], case.meth, case.total, case.class_code).events
        for h in range(len(NAMES))
    ]
    expected = sum(p[:, None, None] * part for p, part in zip(probability, parts, strict=True))
    np.testing.assert_allclose(found.events, expected, atol=5e-3)
    assert parts[0].max() == 0  # nothing changes under `stable`


def test_probabilities_of_changes_are_calibrated(case: StateCase) -> None:
    """Drawn under `neutral` and judged under it: in each bin the changes are as many as announced.

    Seed fixed; by itself each of the bins would be off by 4 standard errors with probability 6e-5.
    """
    weight = np.eye(len(NAMES))[1]
    events = locus_states(case.model, weight, case.meth, case.total, case.class_code).events
    truth = np.stack([case.truth.gains, case.truth.losses], -1)
    edges = np.array([0.0, 1e-3, 1e-2, 0.1, 0.5, 0.9, 0.99, 1.0 + 1e-9])
    number = np.digitize(events.ravel(), edges) - 1
    for k in range(len(edges) - 1):
        some = number == k
        announced = events.ravel()[some]
        spread = np.sqrt((announced * (1 - announced)).sum())
        assert abs(truth.ravel()[some].sum() - announced.sum()) < 4 * spread + 1, edges[k]
    assert truth.sum() > 300
