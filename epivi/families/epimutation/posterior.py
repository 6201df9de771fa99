"""Posterior of the family `epimutation`, averaged over its hypotheses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from epivi.discovery.columns import STATISTICS
from epivi.discovery.merged import Groups
from epivi.discovery.probabilities import QvalueTable
from epivi.discovery.rows import posterior_rows, wide
from epivi.families.epimutation.columns import EPIMUTATION_PARAMETERS, epimutation_posterior_columns
from epivi.loci.store import LocusSpan
from epivi.tables.columns import EVIDENCE_GOAL, Column


def columns(hypotheses: Sequence[str], evidence: Sequence[Column], merged: Sequence[str] = ()) -> tuple[Column, ...]:
    """The same whatever the columns of the evidence; merged: as of `epimutation_posterior_columns`."""
    return epimutation_posterior_columns(hypotheses, merged)


def table(
    span: LocusSpan,
    evidence: pa.RecordBatch,
    hypotheses: Sequence[str],
    is_null: NDArray[np.bool_],
    weights: NDArray[np.float64],
    qvalues: QvalueTable,
    fdr: float,
    groups: Groups | None = None,
) -> dict[str, Any]:
    """Columns of the posterior table for the loci of a span from their rows of evidence.

    weights: [R, H], draws over which probabilities are averaged. groups: as of `posterior_rows`.
    """
    h = len(hypotheses)
    names = [f"{parameter}_{statistic}" for parameter in EPIMUTATION_PARAMETERS for statistic in STATISTICS]
    statistics = {name: wide(evidence, name, h) for name in names}
    log_evidence, error = (wide(evidence, name, h) for name in ("log_evidence", "log_evidence_error"))
    rows = posterior_rows(span, log_evidence, statistics, hypotheses, is_null, weights, qvalues, fdr, groups=groups)
    return rows | {
        "class": evidence["class"].take(pa.array(np.arange(0, evidence.num_rows, h))),
        "flag_evidence": ~(error <= EVIDENCE_GOAL).all(1),
    }
