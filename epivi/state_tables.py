"""Posterior of the states of all nodes and of gain and loss on all branches, averaged over hypotheses and their rates.

With w_h the weights of the hypotheses and theta_hq the points of their grids (epivi.state_evidence), the average is
over all points, each with its posterior probability at the locus,

    P(h, q | D_l) ~ w_h w_q p(D_l | theta_hq)

# METHOD: points with less than LEAST_SHARE of a locus's posterior are left out there. On simulated lines that moves no
# probability of a change by more than 0.001 (tests/unit/test_state_tables.py).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from epivi.infer.states.elimination import build_plan
from epivi.infer.states.kernel import StatePosterior, expected_counts, log_likelihoods, state_posterior
from epivi.infer.states.likelihood import StateRates, event_values
from epivi.infer.states.lineage import CLONAL, FOUNDER, StateLineage
from epivi.models.epimutation import LearnedStates
from epivi.state_evidence import STEP, Grid, StateModel, build_state_model, class_reads, hypothesis_grid
from epivi.state_hypotheses import StatePriors, parse_state_hypotheses

Array = NDArray[np.float64]

LEAST_SHARE = 1e-4


class LocusStates(NamedTuple):
    """Posterior at L loci of N nodes and E branches."""

    states: Array  # [L, N, 3], UU, UM and MM
    events: Array  # [L, E, 2], at least one gain, at least one loss


def locus_states(
    model: StateModel,
    weight: Array,
    meth: NDArray[np.uint16],
    total: NDArray[np.uint16],
    class_code: NDArray[np.int16],
    threads: int = 1,
) -> LocusStates:
    """Average over hypotheses of weights [H]: meth, total [L, S] in the order of the plan's samples; class_code [L]."""
    lineage = model.plan.lineage
    out = LocusStates(np.empty((len(meth), len(lineage.nodes), 3)), np.empty((len(meth), len(lineage.branches), 2)))
    for number in np.unique(class_code).tolist():
        some = np.flatnonzero(class_code == number)
        found = _of_class(model, weight, number, meth[some], total[some], threads)
        out.states[some] = found.nodes.transpose(2, 0, 1)
        out.events[some] = found.events.transpose(2, 0, 1)
    return out


def compile_kernel() -> None:
    """Compile what fit, evidence and states run, by one locus of one founder and its clone."""
    lineage = StateLineage(("founder", "clone"), (FOUNDER, CLONAL), ((), (0,)), (1, 1), np.array([1]))
    one, third = np.full(1, 0.01), np.full((1, 3), 1.0 / 3.0)
    hypotheses = parse_state_hypotheses({"neutral": {"rates": "shared"}})
    learned = LearnedStates(one, one, third, one, one, one, np.ones(1))
    model = build_state_model(build_plan(lineage), hypotheses, StatePriors(1.0, 1.0), learned)
    meth, total = np.ones((1, 1), np.uint16), np.full((1, 1), 2, np.uint16)
    locus_states(model, np.ones(1), meth, total, np.zeros(1, np.int16))
    shared = hypothesis_grid(model, hypotheses[0], 0).shared[0]
    expected_counts(model.arrays, shared, class_reads(learned, 0, meth, total))


def _of_class(
    model: StateModel, weight: Array, number: int, meth: NDArray[np.uint16], total: NDArray[np.uint16], threads: int
) -> StatePosterior:
    reads = class_reads(model.learned, number, meth, total)
    grids = [hypothesis_grid(model, hypothesis, number, STEP) for hypothesis in model.hypotheses]
    shared = np.concatenate([grid.shared for grid in grids])
    hypothesis = np.repeat(np.arange(len(grids)), [len(grid.alpha) for grid in grids])
    with np.errstate(divide="ignore"):
        prior = np.log(weight)[hypothesis] + np.concatenate([grid.log_weight for grid in grids])
    joint = log_likelihoods(model.arrays, shared, reads, threads) + prior[:, None]
    share = np.exp(joint - joint.max(0))
    share = np.where(share < LEAST_SHARE * share.sum(0), 0.0, share)
    share /= share.sum(0)
    events = np.concatenate([_events(model, grid, number) for grid in grids])
    used = np.flatnonzero(share.any(1))
    return state_posterior(model.arrays, shared[used], events[used], reads, share[used], threads)


def _events(model: StateModel, grid: Grid, number: int) -> Array:
    """Probabilities of end states with gains and with losses at the points of a grid, [Q, 4, R]."""
    q = len(grid.alpha)
    founder = torch.as_tensor(model.learned.founder[number]).expand(q, 3)
    alpha, beta, fitness = (torch.as_tensor(values) for values in (grid.alpha, grid.beta, grid.log_fitness))
    events: Array = event_values(model.plan, StateRates(alpha, beta, founder, fitness)).numpy()
    return events
