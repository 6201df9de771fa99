"""Columns of the table of counts."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from epivi.tables.columns import CONTIG, LABEL, POS, Column

INGEST_TABLES: Mapping[str, tuple[Column, ...]] = {
    "counts": (
        CONTIG,
        POS,
        Column(
            "strand",
            LABEL,
            "",
            "+ - .",
            "strand of the cytosine; a CpG merged by a reader that knows the strands carries +; . is unknown",
        ),
        Column("context", LABEL, "", "CG CHG CHH", "sequence context of the cytosine"),
        Column("meth", pa.int32(), "reads", "0..total", "methylated reads"),
        Column("total", pa.int32(), "reads", ">= 1", "methylated and unmethylated reads"),
    ),
}
