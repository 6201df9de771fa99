"""Columns of the tables of a loci folder."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from epivi.tables.columns import CONTIG, END, LABEL, POS, SAMPLE, Column

_CODE = pa.dictionary(pa.int8(), pa.string())
_LOCUS = (
    POS,
    END,
    Column("strand", _CODE, "", "+ - .", "strand; . is both strands together, or unknown"),
    Column("context", _CODE, "", "CG CHG CHH .", "sequence context of the cytosines"),
)

LOCI_TABLES: Mapping[str, tuple[Column, ...]] = {
    "contigs": (
        CONTIG,
        SAMPLE,
        Column("loci", pa.int64(), "loci", ">= 1", "rows of the sample's counts on this contig"),
        Column("first_pos", pa.int32(), "bp", ">= 0", "0-based position of the first of them"),
        Column("last_pos", pa.int32(), "bp", ">= first_pos", "0-based position of the last"),
    ),
    "positions": (
        SAMPLE,
        Column("relation", LABEL, "", "before after build doubtful unknown", "what the other columns say"),
        Column("cpgs", pa.int64(), "CpGs", ">= 0", "CpGs looked at, some that are the same in every sample"),
        Column("same", pa.int64(), "CpGs", ">= 0", "of them, those at the same base as in the other samples"),
        Column("before", pa.int64(), "CpGs", ">= 0", "those one base before one of theirs"),
        Column("after", pa.int64(), "CpGs", ">= 0", "those one base after"),
        Column("by_chance", pa.float64(), "CpGs", ">= 0", "those that unrelated positions would have in common"),
    ),
}


def _wide(item: pa.DataType, dimension: str, width: int) -> pa.DataType:
    return pa.list_(pa.field(dimension, item, nullable=False), width)


def panel_columns(n_samples: int) -> tuple[Column, ...]:
    """Columns of the memory-mapped counts of a panel of `n_samples` samples."""
    counts = _wide(pa.uint16(), "samples", n_samples)
    return (
        *_LOCUS,
        Column("meth", counts, "reads", "0..total", "methylated reads of each sample"),
        Column("total", counts, "reads", "0..65535", "reads of each sample; 0 is missing"),
    )


def index_columns(n_panels: int) -> tuple[Column, ...]:
    """Columns of the memory-mapped index of a cohort's loci in `n_panels` panels."""
    return (
        *_LOCUS,
        Column(
            "row",
            _wide(pa.int32(), "panels", n_panels),
            "",
            ">= -1",
            "row of each panel; -1: none, its samples have no reads",
        ),
    )
