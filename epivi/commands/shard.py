"""What `posterior` and `states` read: a shard of evidence and the comparison that it was part of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from epivi.base.errors import UserError
from epivi.discovery.merged import Groups, groups_of
from epivi.discovery.probabilities import QvalueTable
from epivi.discovery.replicates import CANNOT_TELL_METADATA
from epivi.loci.store import LociStore
from epivi.tables.parquet import Provenance, open_parquet
from epivi.tables.parts import MADE_FROM, STAMP, Part, part_of


class Shard(NamedTuple):
    """A part of the table `evidence`, open."""

    part: Part
    file: Any  # pyarrow ParquetFile
    provenance: Provenance


class WeightComparison(NamedTuple):
    """Weights of H hypotheses, steps of q-values, the stamp of the comparison that they are of."""

    weight: NDArray[np.float64]  # [H]
    draws: NDArray[np.float64]  # [R, H], what probabilities are averaged over
    qvalues: QvalueTable
    stamp: str
    cannot_tell: str  # why nothing is called; empty where something may be
    groups: Groups  # of hypotheses that nothing separates


def read_shard(path: Path, store: LociStore, hypotheses: Sequence[str]) -> Shard:
    """Raises UserError where it is no evidence of these loci and hypotheses."""
    file, provenance = open_parquet(path, "evidence")
    part = part_of(path, file.schema_arrow.metadata)
    if part.n_loci != store.n_loci or file.metadata.num_rows != (part.stop - part.start) * len(hypotheses):
        raise UserError(
            f"{path}: does not belong to {store.directory} and {len(hypotheses)} hypotheses; run epivi evidence again"
        )
    return Shard(part, file, provenance)


def read_comparison(folder: Path, hypotheses: Sequence[str], evidence: Part) -> WeightComparison:
    """Raises UserError where it is none of these hypotheses, or was made from other evidence than this part's."""
    path = folder / "weights.parquet"
    file, _ = open_parquet(path, "weights")
    table, metadata = file.read(), file.schema_arrow.metadata
    if table["hypothesis"].to_pylist() != list(hypotheses):
        raise UserError(f"{folder}: compares other hypotheses than {', '.join(hypotheses)}; run epivi compare again")
    if metadata.get(MADE_FROM.encode(), b"").decode() != evidence.stamp:
        raise UserError(
            f"{path}: was made from other evidence than {evidence.path}; expected the comparison of all its parts: "
            "run epivi compare again"
        )
    stamp = metadata[STAMP.encode()]
    steps, drawn = (_of_comparison(folder, name, stamp) for name in ("qvalue", "weight_draws"))
    qvalues = QvalueTable(*(steps[name].to_numpy() for name in QvalueTable._fields))
    draws = drawn["tilted"].to_numpy().reshape(-1, len(hypotheses))
    cannot_tell = metadata.get(CANNOT_TELL_METADATA.encode(), b"").decode()
    if "merged" not in table.column_names:
        raise UserError(f"{path}: was written by an earlier epivi; run epivi compare again")
    groups = groups_of(hypotheses, table["merged"].to_pylist())
    return WeightComparison(table["weight"].to_numpy(), draws, qvalues, stamp.decode(), cannot_tell, groups)


def _of_comparison(folder: Path, name: str, stamp: bytes) -> pa.Table:
    """A further table of the comparison with that stamp."""
    path = folder / f"{name}.parquet"
    file, _ = open_parquet(path, name)
    if file.schema_arrow.metadata.get(STAMP.encode()) != stamp:
        raise UserError(f"{path}: is of another comparison than {folder / 'weights.parquet'}; run epivi compare again")
    return file.read()
