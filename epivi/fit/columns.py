"""Columns of the tables of a fit."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from epivi.tables.columns import Column

FIT_TABLES: Mapping[str, tuple[Column, ...]] = {
    "loss": (
        Column("step", pa.int64(), "steps", ">= 0", "optimizer step"),
        Column("elapsed_s", pa.float64(), "s", ">= 0", "time since the fit began, without pauses between resumed runs"),
        Column("batch_elbo", pa.float64(), "nats/locus", "any", "mean evidence lower bound of the step's minibatch"),
        Column(
            "holdout_elbo", pa.float64(), "nats/locus", "any, nan", "the same on held-out loci; nan if not evaluated"
        ),
    ),
}
