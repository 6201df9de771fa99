"""The file of the controls as read back, and whether it belongs to the evidence at hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from epivi.base.errors import UserError
from epivi.discovery.controls import TRUE, ControlEvidence
from epivi.tables.parquet import read_table

Array = NDArray[np.float64]
SAME_NATS = 1e-6  # evidences of the same loci agree to rounding


class Controls(NamedTuple):
    """Evidences of L loci under every variant, the true problem first."""

    path: Path
    locus: NDArray[np.int64]  # [L], numbers among all in genome order
    evidences: tuple[ControlEvidence, ...]


def read_controls(path: Path, hypotheses: Sequence[str]) -> Controls:
    """Raises UserError where the file holds other hypotheses, or no true problem to compare with."""
    rows = read_table(path, "control_evidence").to_pandas()
    h = len(hypotheses)
    found = rows["hypothesis"].unique().tolist()
    if found != list(hypotheses):
        raise UserError(
            f"{path}: holds the hypotheses {', '.join(found)}; expected {', '.join(hypotheses)}, as configured"
        )
    evidences, locus = [], np.zeros(0, dtype=np.int64)
    for (control, number), part in rows.groupby(["control", "number"], sort=False, observed=True):
        log_evidence = part["log_evidence"].to_numpy().reshape(-1, h)
        evidences.append(ControlEvidence(str(control), int(number), str(part["detail"].iloc[0]), log_evidence))
        locus = part["locus"].to_numpy()[::h]
    if not evidences or evidences[0].control != TRUE:
        raise UserError(f"{path}: does not begin with the true pedigree; run epivi controls again")
    return Controls(path, locus, tuple(evidences))


def check_same_evidence(controls: Controls, evidence: Iterable[Array]) -> None:
    """Raises UserError where the true problem's refined evidences are not those of the run.

    evidence: log evidences [n, H] of consecutive loci, in genome order.
    """
    expected = controls.evidences[0].log_evidence
    start = 0
    for log_evidence in evidence:
        here = (controls.locus >= start) & (controls.locus < start + len(log_evidence))
        found = log_evidence[controls.locus[here] - start]
        if not np.allclose(found, expected[here], rtol=0.0, atol=SAME_NATS):
            raise UserError(f"{controls.path}: is of another fit than the evidence; run epivi controls again")
        start += len(log_evidence)
    if len(controls.locus) and controls.locus.max() >= start:
        raise UserError(f"{controls.path}: is of other loci than the evidence; run epivi controls again")


class Variant(Protocol):
    """A changed problem: the kind of change, its number among those of the kind, and what was changed."""

    @property
    def control(self) -> str: ...

    @property
    def number(self) -> int: ...

    @property
    def detail(self) -> str: ...


def control_rows(variant: Variant, locus: np.ndarray, names: Sequence[str], log_evidence: np.ndarray) -> pa.Table:
    """Rows of the table `control_evidence` of one variant from its log evidences [L, H]."""
    size = log_evidence.size
    return pa.table(
        {
            "control": [variant.control] * size,
            "number": np.full(size, variant.number, dtype=np.int32),
            "detail": [variant.detail] * size,
            "locus": np.repeat(locus, len(names)),
            "hypothesis": list(names) * len(locus),
            "log_evidence": log_evidence.ravel(),
        }
    )
