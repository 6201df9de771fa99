"""States of all nodes of a lineage, and changes on its branches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from epivi.base.ordered import on_threads
from epivi.discovery.rows import labels
from epivi.families.epimutation.prepare import EpimutationProblem
from epivi.families.epimutation.quadrature import (
    STEP,
    EpimutationEvidenceModel,
    Grid,
    build_epimutation_model,
    class_reads,
    hypothesis_grid,
)
from epivi.fit.folder import Fitted
from epivi.lineage.kernel import LineagePosterior, log_likelihoods, state_posterior
from epivi.lineage.likelihood import EpimutationRates, event_values
from epivi.lineage.lineage import Lineage
from epivi.loci.store import LocusSpan, long_places

CHUNK_LOCI = 1 << 14  # loci taken at once

Array = NDArray[np.float64]

LEAST_SHARE = 1e-4


def tables(
    problem: EpimutationProblem,
    fitted: Fitted,
    weight: NDArray[np.float64],
    spans: Iterable[LocusSpan],
    threads: int,
) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Tables `states` and `branches` of each span, averaged over hypotheses of these weights."""
    model = build_epimutation_model(problem.plan, problem.hypotheses, problem.priors, fitted.learned)

    def evaluate(span: LocusSpan) -> tuple[pa.Table, pa.Table]:
        found = locus_states(model, weight, span.meth, span.total, problem.classes.codes_of(span))
        return _state_rows(span, problem.plan.lineage, found), _branch_rows(span, problem.plan.lineage, found)

    yield from on_threads(evaluate, spans, threads, ahead=2 * threads - 1, name="states")


def _state_rows(span: LocusSpan, lineage: Lineage, found: LocusStates) -> pa.Table:
    """Long form: the nodes of a locus follow one another."""
    n = len(lineage.nodes)
    columns = {
        **long_places(span, n),
        "node": labels(np.tile(np.arange(n), len(span.pos0)), lineage.nodes),
    }
    names = ("prob_unmethylated", "prob_intermediate", "prob_methylated")
    return pa.table(columns | {name: found.states[:, :, x].ravel() for x, name in enumerate(names)})


def _branch_rows(span: LocusSpan, lineage: Lineage, found: LocusStates) -> pa.Table:
    """Long form: the branches of a locus follow one another."""
    parent, child = np.array(lineage.branches).reshape(-1, 2).T
    columns = {
        **long_places(span, len(parent)),
        "parent": labels(np.tile(parent, len(span.pos0)), lineage.nodes),
        "child": labels(np.tile(child, len(span.pos0)), lineage.nodes),
    }
    return pa.table(
        columns | {name: found.events[:, :, x].ravel() for x, name in enumerate(("prob_gain", "prob_loss"))}
    )


class LocusStates(NamedTuple):
    """Posterior at L loci of N nodes and E branches."""

    states: Array  # [L, N, 3], UU, UM and MM
    events: Array  # [L, E, 2], at least one gain, at least one loss


def locus_states(
    model: EpimutationEvidenceModel,
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


def _of_class(
    model: EpimutationEvidenceModel,
    weight: Array,
    number: int,
    meth: NDArray[np.uint16],
    total: NDArray[np.uint16],
    threads: int,
) -> LineagePosterior:
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


def _events(model: EpimutationEvidenceModel, grid: Grid, number: int) -> Array:
    """Probabilities of end states with gains and with losses at the points of a grid, [Q, 4, R]."""
    q = len(grid.alpha)
    founder = torch.as_tensor(model.learned.founder[number]).expand(q, 3)
    alpha, beta, fitness = (torch.as_tensor(values) for values in (grid.alpha, grid.beta, grid.log_fitness))
    events: Array = event_values(model.plan, EpimutationRates(alpha, beta, founder, fitness)).numpy()
    return events
