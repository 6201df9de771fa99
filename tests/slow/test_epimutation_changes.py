"""Detection of single changes on simulated lines: are branch probabilities frequencies, and how well do they rank?

Rates, errors and proportions are fitted to the same reads, as users do. Seeds are fixed; were they not, each bin of the
calibration would be off by more than four of its standard errors in 6 of 100,000 runs.

    pytest -m slow -s tests/slow/test_epimutation_changes.py

Areas under precision and recall of gains and losses: 0.73 and 0.73 at depth 8, 0.85 and 0.84 at depth 20; of called
differences 0.06 and 0.06, 0.18 and 0.18.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from epivi.families.epimutation.draw import SimulatedStates, TrueEmission, TrueRates, simulate_reads, simulate_states
from epivi.lineage import kernel
from epivi.lineage.elimination import build_plan
from epivi.lineage.emission import collect_pairs, encode, log_probability
from epivi.lineage.likelihood import event_values, shared_values
from epivi.lineage.lineage import Lineage, build_lineage
from epivi.lineage.rates import ClassReads, rate_posterior, unpack

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))
from divergence_cases import lines_pedigree

pytestmark = pytest.mark.slow

Array = np.ndarray[Any, Any]
LOCI = 200_000
RATES = TrueRates(2e-4, 8e-4, np.array([0.7, 0.02, 0.28]))
BINS = np.array([0, 1e-3, 1e-2, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1 + 1e-9])


def average_precision(score: Array, happened: Array) -> float:
    """Area under the curve of precision over recall; ties count as one step."""
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(happened[order])
    last = np.append(np.diff(score[order]) != 0, True)  # the end of each run of ties
    precision, found = hits[last] / (np.flatnonzero(last) + 1), hits[last]
    return float((precision * np.diff(found, prepend=0)).sum() / hits[-1])


def test_average_precision() -> None:
    assert average_precision(np.array([3.0, 2.0, 1.0]), np.array([True, False, True])) == pytest.approx(5 / 6)
    assert average_precision(np.zeros(10), np.arange(10) < 3) == pytest.approx(0.3)


@pytest.fixture(scope="module", params=[8.0, 20.0], ids=["depth 8", "depth 20"])
def case(request: pytest.FixtureRequest) -> tuple[Lineage, SimulatedStates, kernel.LineagePosterior, Array]:
    """13 plants of two lines: the truth, the posterior under fitted rates, and the states called from each sample
    alone [L, N]."""
    random = np.random.default_rng(int(request.param))
    lineage = build_lineage(*lines_pedigree(2, (1, 2, 4, 5, 8, 11)))
    drawn = simulate_states(lineage, RATES, LOCI, random)
    meth, total = simulate_reads(drawn.states, TrueEmission(0.01, 0.03, 0.02, request.param), random)
    pairs = collect_pairs([(meth, total)])
    codes = encode(pairs, meth, total)
    plan = build_plan(lineage)
    fitted = rate_posterior(plan, ClassReads(pairs, lambda: [codes]), draws=64, seed=1)
    rates, emission = unpack(torch.as_tensor(fitted.mode))
    table = log_probability(emission, torch.as_tensor(pairs.meth), torch.as_tensor(pairs.total)).numpy()
    reads = kernel.reads_table(codes, table)
    shared, events = shared_values(plan, rates).numpy()[None], event_values(plan, rates).numpy()[None]
    posterior = kernel.state_posterior(kernel.plan_arrays(plan), shared, events, reads, np.ones((1, LOCI)))
    return lineage, drawn, posterior, table[codes].argmax(-1).T


@pytest.mark.parametrize("kind", ["gain", "loss"])
def test_branch_probabilities_are_frequencies(
    case: tuple[Lineage, SimulatedStates, kernel.LineagePosterior, Array], kind: str
) -> None:
    _, drawn, posterior, _ = case
    probability = posterior.events[:, ["gain", "loss"].index(kind)].T.ravel()
    happened = (drawn.gains if kind == "gain" else drawn.losses).ravel()
    place = np.digitize(probability, BINS) - 1
    for bin_number in range(len(BINS) - 1):
        at = place == bin_number
        expected, observed = probability[at].sum(), happened[at].sum()
        error = np.sqrt((probability[at] * (1 - probability[at])).sum())
        print(
            f"{kind} {BINS[bin_number]:5.3f} to {BINS[bin_number + 1]:5.3f}: {at.sum():8d} branches, "
            f"expected {expected:8.1f}, happened {observed:6d}"
        )
        # Branches of a site share reads, and the rates are fitted to these; both widen the scatter of a large bin.
        assert abs(observed - expected) < 4 * error + 0.05 * expected + 1


def test_states_are_frequencies(case: tuple[Lineage, SimulatedStates, kernel.LineagePosterior, Array]) -> None:
    _, drawn, posterior, _ = case
    for state in range(3):
        probability, is_state = posterior.nodes[:, state].T.ravel(), (drawn.states == state).ravel()
        place = np.digitize(probability, BINS) - 1
        for bin_number in range(len(BINS) - 1):
            at = place == bin_number
            error = np.sqrt((probability[at] * (1 - probability[at])).sum())
            assert abs(is_state[at].sum() - probability[at].sum()) < 4 * error + 0.05 * probability[at].sum() + 1


def test_changes_are_ranked_better_than_by_calls(
    case: tuple[Lineage, SimulatedStates, kernel.LineagePosterior, Array],
) -> None:
    """Against the difference between the states called from each sample by itself."""
    lineage, drawn, posterior, calls = case
    parents, children = np.array(lineage.branches).T
    difference = calls[:, children].astype(float) - calls[:, parents]
    for kind, happened, by_calls in (("gain", drawn.gains, difference), ("loss", drawn.losses, -difference)):
        score = posterior.events[:, ["gain", "loss"].index(kind)].T
        ours = average_precision(score.ravel(), happened.ravel())
        theirs = average_precision(by_calls.ravel(), happened.ravel())
        print(f"{kind}: area under precision and recall {ours:.3f}, of calls {theirs:.3f}, share {happened.mean():.2g}")
        assert ours > theirs + 0.2
