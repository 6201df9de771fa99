"""Evidence of every hypothesis of the family `epimutation`, and posterior moments under it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from epivi.base.ordered import on_threads
from epivi.config.load import Config
from epivi.discovery.rows import evidence_rows, labels
from epivi.families.epimutation.columns import EPIMUTATION_PARAMETERS, EPIMUTATION_TABLES
from epivi.families.epimutation.prepare import EpimutationProblem
from epivi.families.epimutation.quadrature import EpimutationEvidence, build_epimutation_model, evaluate_loci
from epivi.fit.folder import Fitted
from epivi.loci.store import LocusSpan, long_places
from epivi.tables.columns import Column

CHUNK_LOCI = 1 << 14  # loci taken at once: 121 points at all of them are 16 MB


def columns(problem: EpimutationProblem) -> tuple[Column, ...]:
    """The same for every problem."""
    return EPIMUTATION_TABLES["state_evidence"]


def tables(
    problem: EpimutationProblem,
    fitted: Fitted,
    config: Config,
    spans: Iterable[LocusSpan],
    threads: int,
) -> Iterator[pa.Table]:
    """The evidence table of each span of loci, hypotheses of a locus in a row."""
    model = build_epimutation_model(problem.plan, problem.hypotheses, problem.priors, fitted.learned)

    def evaluate(span: LocusSpan) -> pa.Table:
        codes = problem.classes.codes_of(span)
        found = evaluate_loci(model, span.meth, span.total, codes)
        return _evidence_rows(span, codes, problem.classes.names, problem.hypothesis_names, found)

    yield from on_threads(evaluate, spans, threads, ahead=2 * threads - 1, name="states")


def _evidence_rows(
    span: LocusSpan,
    class_code: NDArray[np.int16],
    classes: Sequence[str],
    names: Sequence[str],
    evidences: list[EpimutationEvidence],
) -> pa.Table:
    """Long form: the hypotheses of a locus follow one another."""
    h = len(names)
    places = {
        **long_places(span, h),
        "end": np.repeat(span.end0, h),
        "class": labels(np.repeat(class_code, h), classes),
    }
    numbers = ("log_evidence", "log_evidence_error")
    return pa.table(evidence_rows(places, names, tuple(EPIMUTATION_PARAMETERS), evidences, numbers))
