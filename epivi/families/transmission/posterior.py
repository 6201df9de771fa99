"""Posterior of the family `transmission`, averaged over its hypotheses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from epivi.compare import QvalueTable
from epivi.families.transmission.columns import STATISTICS
from epivi.posterior import EvidenceColumns, posterior_table
from epivi.schema import PARAMETERS, Column, posterior_columns
from epivi.store import LocusSpan


def columns(hypotheses: Sequence[str]) -> tuple[Column, ...]:
    return posterior_columns(hypotheses)


def table(
    span: LocusSpan,
    evidence: pa.RecordBatch,
    hypotheses: Sequence[str],
    is_null: NDArray[np.bool_],
    weight: NDArray[np.float64],
    qvalues: QvalueTable,
) -> dict[str, Any]:
    """Columns of the posterior table for the loci of a span from their rows of evidence."""
    statistics = [f"{parameter}_{statistic}" for parameter in PARAMETERS for statistic in STATISTICS]
    wide = {
        name: evidence[name].to_numpy().astype(np.float64).reshape(-1, len(hypotheses))
        for name in ("log_evidence", "log_evidence_se", "khat", "inner_error", *statistics)
    }
    shard = EvidenceColumns(
        wide["log_evidence"],
        wide["log_evidence_se"],
        wide["khat"],
        wide["inner_error"],
        {name: wide[name] for name in statistics},
    )
    return posterior_table(span, shard, hypotheses, is_null, weight, qvalues)
