"""Counts of reads out of a level of methylation and a coverage, for formats that write these two alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from epivi.ingest.layout import IngestSettings
from epivi.ingest.text import Column, Rows, TextSource, require

ROUNDING = 1e-6  # reads; what the arithmetic itself may add


class LevelCounts(NamedTuple):
    """Counts behind the levels of a block; every array is [rows]."""

    meth: np.ndarray  # int32, reads
    contradicts: np.ndarray  # bool, level times coverage is no whole number of reads
    is_ambiguous: np.ndarray  # bool, the level is too coarse to distinguish one number of reads from the next


def level_counts(level: np.ndarray, total: np.ndarray, half_unit: float) -> LevelCounts:
    """Methylated reads of rows with these levels (float64, 0 to 1) and coverages (int32).

    half_unit: half of the last digit that the tool writes, the most by which rounding moved a level.

    # METHOD: the nearest whole number of reads. Rounding moved the product by at most coverage times half_unit, so the
    # number is the tool's own while that is below one half, and a product further from every whole number than that is
    # no share of so many reads.
    """
    product = np.where(total > 0, np.nan_to_num(level) * total, 0.0)
    meth = np.floor(product + 0.5)
    error = half_unit * total
    contradicts = np.abs(product - meth) > error + ROUNDING
    return LevelCounts(meth.astype(np.int32), contradicts, error >= 0.5)


def is_extrapolated(counts: LevelCounts, total: np.ndarray, settings: IngestSettings) -> bool:
    """Whether a row that can be a locus has a number of reads that its level does not determine."""
    return bool(np.any(counts.is_ambiguous & (total <= settings.max_coverage)))


def require_level(source: TextSource, rows: Rows, column: Column, total: np.ndarray) -> None:
    """Raise a UserError naming the first row with reads whose level is missing, or any that is below 0 or above 1."""
    level = rows.columns[column.name]
    is_missing = np.isnan(level) & (total == 0)
    require(source, rows, is_missing | ((level >= 0) & (level <= 1)), column, "a fraction from 0 to 1")
