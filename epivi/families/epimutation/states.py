"""States of all nodes of a lineage, and changes on its branches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from epivi.families.epimutation.columns import labels
from epivi.families.epimutation.prepare import StateProblem
from epivi.fitted import Fitted
from epivi.infer.states.lineage import StateLineage
from epivi.ingest.ordered import in_order
from epivi.state_evidence import build_state_model
from epivi.state_tables import LocusStates, locus_states
from epivi.store import LocusSpan, long_places

CHUNK_LOCI = 1 << 14  # loci taken at once


def tables(
    problem: StateProblem,
    fitted: Fitted,
    weight: NDArray[np.float64],
    spans: Iterable[LocusSpan],
    threads: int,
) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Tables `states` and `branches` of each span, averaged over hypotheses of these weights."""
    model = build_state_model(problem.plan, problem.hypotheses, problem.priors, fitted.learned)

    def evaluate(span: LocusSpan) -> tuple[pa.Table, pa.Table]:
        found = locus_states(model, weight, span.meth, span.total, problem.classes.codes_of(span))
        return _state_rows(span, problem.plan.lineage, found), _branch_rows(span, problem.plan.lineage, found)

    with ThreadPoolExecutor(threads, thread_name_prefix="states") as pool:
        yield from in_order(pool, evaluate, spans, ahead=2 * threads)


def _state_rows(span: LocusSpan, lineage: StateLineage, found: LocusStates) -> pa.Table:
    """Long form: the nodes of a locus follow one another."""
    n = len(lineage.nodes)
    columns = {
        **long_places(span, n),
        "node": labels(np.tile(np.arange(n), len(span.pos0)), lineage.nodes),
    }
    names = ("prob_unmethylated", "prob_intermediate", "prob_methylated")
    return pa.table(columns | {name: found.states[:, :, x].ravel() for x, name in enumerate(names)})


def _branch_rows(span: LocusSpan, lineage: StateLineage, found: LocusStates) -> pa.Table:
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
