"""Counts as text files of the formats that are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

# --- the text of counts ----------------------------------------------------------------------------------------------


def bismark_cov_table(contig: str, pos0: np.ndarray, meth: np.ndarray, total: np.ndarray, decimals: int) -> pa.Table:
    """Covered rows of a Bismark coverage file: contig, start, end (1-based), percent, methylated, unmethylated."""
    start = pa.array(pos0 + 1)
    columns = (pa.repeat(contig, len(pos0)), start, start, _percent(meth, total, decimals), meth, total - meth)
    return _text_table(columns)


def bedmethyl_table(contig: str, pos0: np.ndarray, meth: np.ndarray, total: np.ndarray, decimals: int) -> pa.Table:
    """Covered rows of modkit's 18-column bedMethyl with both strands combined and 5mC alone called."""
    start, end, zero = pa.array(pos0), pa.array(pos0 + 1), pa.array(np.zeros(len(pos0), dtype=np.int8))
    text = [pa.repeat(value, len(pos0)) for value in (contig, "m", ".", "255,0,0")]
    percent = _percent(meth, total, decimals)
    thick = (start, end, text[3])
    columns = (text[0], start, end, text[1], total, text[2], *thick, total, percent, meth, total - meth, *(5 * [zero]))
    return _text_table(columns)


def methyldackel_table(contig: str, pos0: np.ndarray, meth: np.ndarray, total: np.ndarray, decimals: int) -> pa.Table:
    """Covered rows of a MethylDackel bedGraph of whole CpGs; its percentages have no decimals."""
    columns = (pa.repeat(contig, len(pos0)), pos0, pos0 + 2, 100 * meth.astype(np.int64) // total, meth, total - meth)
    return _text_table(columns)


def pb_cpg_table(contig: str, pos0: np.ndarray, meth: np.ndarray, total: np.ndarray, decimals: int) -> pa.Table:
    """Covered rows of a pb-CpG-tools BED in count mode, without average scores."""
    text = [pa.repeat(value, len(pos0)) for value in (contig, "Total", ".")]
    percent = _percent(meth, total, decimals)
    return _text_table((text[0], pos0, pos0 + 1, percent, text[1], total, meth, total - meth, text[2], text[2]))


def allc_table(contig: str, pos0: np.ndarray, meth: np.ndarray, total: np.ndarray, decimals: int) -> pa.Table:
    """Covered rows of an allc file, all reads on the + strand, nothing tested."""
    text = [pa.repeat(value, len(pos0)) for value in (contig, "+", "CGN", "1")]
    return _text_table((text[0], pos0 + 1, text[1], text[2], meth, total, text[3]))


def _percent(meth: np.ndarray, total: np.ndarray, decimals: int) -> np.ndarray:
    percent = np.round(100.0 * meth / total, decimals)
    return percent.astype(np.int32) if decimals == 0 else percent


def _text_table(columns: Sequence[pa.Array | np.ndarray]) -> pa.Table:
    return pa.table([pa.array(column) for column in columns], names=[str(number) for number in range(len(columns))])


class TextFormat(NamedTuple):
    """How counts are written: name suffix; (contig, pos0, meth, total, decimals) -> columns of text; first line."""

    suffix: str
    table: Callable[[str, np.ndarray, np.ndarray, np.ndarray, int], pa.Table]
    header: str = ""


TEXT_FORMATS: Mapping[str, TextFormat] = {
    "bismark_cov": TextFormat(".cov.gz", bismark_cov_table),
    "bedmethyl": TextFormat(".bed.gz", bedmethyl_table),
    "methyldackel": TextFormat(
        "_CpG.bedGraph.gz", methyldackel_table, 'track type="bedGraph" description="CpG merged methylation levels"\n'
    ),
    "pb_cpg": TextFormat(".combined.bed.gz", pb_cpg_table),
    "allc": TextFormat(".allc.tsv.gz", allc_table),
}
