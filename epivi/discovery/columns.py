"""Columns of the tables of the comparison."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from epivi.tables.columns import HYPOTHESIS, Column

DISCOVERY_TABLES: Mapping[str, tuple[Column, ...]] = {
    "weights": (
        HYPOTHESIS,
        Column("weight", pa.float64(), "fraction", "0..1", "share of the loci for which the hypothesis holds"),
        Column("lower", pa.float64(), "fraction", "0..1", "lower end of the 95 % block-bootstrap interval"),
        Column("upper", pa.float64(), "fraction", "0..1", "upper end of the 95 % block-bootstrap interval"),
        Column("n_loci", pa.int64(), "loci", ">= 1", "loci that the weight was estimated from"),
    ),
    "qvalue": (
        Column("lfdr", pa.float64(), "probability", "0..1", "upper end of a step of local false discovery rates"),
        Column("qvalue", pa.float64(), "probability", "0..1", "mean lfdr of all loci up to this step"),
        Column("n_loci", pa.int64(), "loci", ">= 1", "loci up to this step"),
    ),
}
