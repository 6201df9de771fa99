"""Posterior of the family `epimutation`, averaged over its hypotheses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from epivi.compare import QvalueTable
from epivi.schema import Column, state_posterior_columns
from epivi.state_posterior import state_posterior_table
from epivi.store import LocusSpan


def columns(hypotheses: Sequence[str]) -> tuple[Column, ...]:
    return state_posterior_columns(hypotheses)


def table(
    span: LocusSpan,
    evidence: pa.RecordBatch,
    hypotheses: Sequence[str],
    is_null: NDArray[np.bool_],
    weight: NDArray[np.float64],
    qvalues: QvalueTable,
) -> dict[str, Any]:
    """Columns of the posterior table for the loci of a span from their rows of evidence."""
    return state_posterior_table(span, evidence, hypotheses, is_null, weight, qvalues)
