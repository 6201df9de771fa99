"""Evidence of every hypothesis of the family `transmission`, and posterior moments under it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import pyarrow as pa

from epivi.config.load import Config
from epivi.discovery.rows import evidence_rows, labels, long
from epivi.families.transmission.columns import evidence_columns, parameters_of
from epivi.families.transmission.hypotheses import shared_components
from epivi.families.transmission.outer_integral import HypothesisEvidence, build_evidence_model
from epivi.families.transmission.prepare import TransmissionProblem
from epivi.families.transmission.refinement import INNER_METHODS, evaluate_chunks
from epivi.fit.folder import Fitted, device_of
from epivi.loci.source import CountsBatch
from epivi.loci.store import LocusSpan, long_places
from epivi.tables.columns import Column

CHUNK_LOCI = 512  # loci taken at once: with 64 nodes an array of all takes 0.26 MB, which processors keep at hand


def columns(problem: TransmissionProblem) -> tuple[Column, ...]:
    """With the shares of the covariance components that the hypotheses declare, and the effects of the covariates."""
    return evidence_columns(shared_components(problem.hypotheses), problem.cohort.covariates)


def tables(
    problem: TransmissionProblem,
    fitted: Fitted,
    config: Config,
    spans: Iterable[LocusSpan],
    threads: int,
) -> Iterator[pa.Table]:
    """The evidence table of each span of loci, hypotheses of a locus in a row."""
    settings = config.section("evidence")
    model = build_evidence_model(
        problem.cohort, problem.hypotheses, fitted.learned, problem.priors, fitted.encoder_state, fitted.hidden,
        device_of(settings["device"], "evidence"), trained_at=fitted.trained_at,
    )  # fmt: skip
    parameters = list(parameters_of(shared_components(problem.hypotheses), problem.cohort.covariates))
    waiting = deque[LocusSpan]()

    def chunks() -> Iterator[CountsBatch]:
        for span in spans:
            waiting.append(span)
            yield CountsBatch(span.meth, span.total, span.start + np.arange(len(span.pos0)))

    with closing(evaluate_chunks(model, chunks(), settings["nodes"], config.seed("evidence"), threads)) as found:
        for evidences in found:
            yield _evidence_rows(waiting.popleft(), problem.hypothesis_names, parameters, evidences)


def _evidence_rows(
    span: LocusSpan, names: Sequence[str], parameters: Sequence[str], evidences: list[HypothesisEvidence]
) -> pa.Table:
    places = {**long_places(span, len(names)), "end": np.repeat(span.end0, len(names))}
    return long_rows(places, names, parameters, evidences)


def long_rows(
    places: Mapping[str, Any], names: Sequence[str], parameters: Sequence[str], evidences: list[HypothesisEvidence]
) -> pa.Table:
    """Long form: the hypotheses of a locus follow one another, as in the columns `places`, which come first.

    parameters: those whose moments the evidences hold, in their order.
    """

    numbers = ("log_evidence", "log_evidence_se", "khat", "inner_error", "laplace_correction")
    columns = evidence_rows(places, names, parameters, evidences, numbers)
    columns["inner_method"] = labels(long([evidence.inner_method for evidence in evidences]), INNER_METHODS)
    return pa.table(columns)
