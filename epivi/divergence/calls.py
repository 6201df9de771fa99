"""State calls of methylome tables, joined over samples; and tables of divergences that were computed elsewhere.

Columns are found by their name in the header, as AlphaBeta and methimpute write them: seqnames, start, strand, context,
posteriorMax, status. Status is U, I or M, or the whole word.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from epivi.base.errors import UserError
from epivi.cohort.samples import read_table
from epivi.divergence.fit import PairTimes
from epivi.divergence.pairs import MISSING_STATE
from epivi.ingest.formats.methylome import STRAND_CODES
from epivi.ingest.layout import strand_codes
from epivi.ingest.text import (
    Column,
    Rows,
    TextSource,
    open_source,
    read_rows,
    require,
    require_column_count,
    split,
    without_header,
)
from epivi.tables.parquet import natural_key

# header name -> kind
COLUMNS = {
    "seqnames": "text",
    "start": "integer",
    "strand": "text",
    "context": "text",
    "posteriorMax": "number",
    "status": "text",
}
STATES = {"u": 0, "unmethylated": 0, "i": 1, "intermediate": 1, "m": 2, "methylated": 2}
STATES_EXPECTED = "U, I or M, or Unmethylated, Intermediate or Methylated"
PAIR_COLUMNS = ("time0", "time1", "time2", "D.value")


class Calls(NamedTuple):
    """Called states of S samples at L sites, sorted by contig and position."""

    contigs: tuple[str, ...]  # in natural order
    contig: np.ndarray  # int64 [L], index into contigs
    states: np.ndarray  # int8 [L, S]: 0 UU, 1 UM, 2 MM, MISSING_STATE


class _SampleCalls(NamedTuple):
    """One file: the key of each site, which orders by contig, position and strand, and its state."""

    key: np.ndarray  # int64 [R], ascending
    state: np.ndarray  # int8 [R]


def read_calls(
    paths: Sequence[str], contexts: Sequence[str], least_posterior: float, done: Callable[[], None] = lambda: None
) -> Calls:
    """Read the state calls of S samples at the sites of some contexts; `done` is called after each file.

    A call whose posteriorMax is below `least_posterior` is missing for the sample. Raises UserError naming file, line,
    column and value of what cannot be read, a site that a file has twice, and a file without a site in the contexts.
    """
    names: dict[str, int] = {}
    samples = []
    for path in paths:
        samples.append(_read_sample(path, contexts, least_posterior, names))
        done()
    keys = samples[0].key
    if not all(np.array_equal(sample.key, keys) for sample in samples[1:]):
        keys = np.unique(np.concatenate([sample.key for sample in samples]))
    states = np.full((len(keys), len(samples)), MISSING_STATE, dtype=np.int8)
    for column, sample in enumerate(samples):
        states[np.searchsorted(keys, sample.key), column] = sample.state
    contigs = tuple(sorted(names, key=natural_key))
    rank = np.empty(len(names), dtype=np.int64)
    rank[[names[name] for name in contigs]] = np.arange(len(names))
    contig = rank[keys >> 34]
    order = np.argsort(contig, kind="stable")
    return Calls(contigs, contig[order], states[order])


def _read_sample(path: str, contexts: Sequence[str], least_posterior: float, names: dict[str, int]) -> _SampleCalls:
    source, columns = _opened(path)
    keys, states = [], []
    for rows in read_rows(source, tuple(columns.values())):
        key, state = _block(source, rows, columns, contexts, least_posterior, names)
        keys.append(key)
        states.append(state)
    key, state = np.concatenate(keys), np.concatenate(states)
    if not len(key):
        raise UserError(f"{path}: no row has the context {' or '.join(contexts)}")
    order = np.argsort(key, kind="stable")
    key, state = key[order], state[order]
    twice = np.flatnonzero(np.diff(key) == 0)
    if twice.size:
        contig = next(name for name, code in names.items() if code == key[twice[0]] >> 34)
        start = (int(key[twice[0]]) >> 2) & 0xFFFFFFFF
        raise UserError(f"{path}: {contig} position {start} is there twice: expected one row a site and strand")
    return _SampleCalls(key, state)


def _opened(path: str) -> tuple[TextSource, dict[str, Column]]:
    """The file with its header line skipped, and the columns by name."""
    source = open_source(Path(path))
    source = replace(source, any_whitespace="\t" not in source.sample[0])
    line = source.header_lines + 1
    found = [name.strip('"') for name in split(source.sample[0], source.any_whitespace)]
    missing = [name for name in COLUMNS if name not in found]
    if missing:
        raise UserError(f"{path}: line {line}: the header lacks {missing[0]} (expected {', '.join(COLUMNS)})")
    source = without_header(source)
    require_column_count(source, len(found), len(found))
    return source, {name: Column(found.index(name), name, kind) for name, kind in COLUMNS.items()}


def _block(
    source: TextSource,
    rows: Rows,
    columns: dict[str, Column],
    contexts: Sequence[str],
    least_posterior: float,
    names: dict[str, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Keys int64 and states int8 of the rows in one of the contexts."""
    values = rows.columns
    require(source, rows, values["start"] >= 1, columns["start"], "a 1-based position")
    posterior = values["posteriorMax"]
    require(source, rows, (posterior >= 0) & (posterior <= 1), columns["posteriorMax"], "a probability from 0 to 1")
    status = values["status"]
    state = status.lookup([STATES.get(word.strip('"').lower(), MISSING_STATE) for word in status.values])
    require(source, rows, state != MISSING_STATE, columns["status"], STATES_EXPECTED)
    strand = strand_codes(source, rows, columns["strand"], STRAND_CODES, expected="+, - or *")
    contig = values["seqnames"]
    code = contig.lookup([names.setdefault(name, len(names)) for name in contig.values], dtype=np.int64)
    context = values["context"]
    kept = context.lookup([name in contexts for name in context.values], dtype=bool)
    key = (code << 34) | (values["start"].astype(np.int64) << 2) | strand
    state = np.where(posterior >= least_posterior, state, np.int8(MISSING_STATE))
    return key[kept], state[kept]


def read_pairs(path: str | os.PathLike[str]) -> tuple[PairTimes, np.ndarray]:
    """Times and divergences [P] from a table with the columns time0, time1, time2 and D.value; commas, tabs or blanks.

    Raises UserError naming file, line and column.
    """
    table = read_table(path, "table of divergences", required=PAIR_COLUMNS, separator=r"[ \t]*,[ \t]*|[ \t]+")
    times = [_whole_numbers(table.path, name, table.column(name), table.lines) for name in PAIR_COLUMNS[:3]]
    for values, name in ((times[1], "time1"), (times[2], "time2")):
        early = np.flatnonzero(values < times[0])
        if early.size:
            line = table.lines[early[0]]
            raise UserError(f"{table.path} line {line}: {name} is {values[early[0]]}: expected time0 or more")
    divergence = np.empty(len(table.rows))
    for index, (cell, line) in enumerate(zip(table.column("D.value"), table.lines, strict=True)):
        divergence[index] = _fraction(cell, f"{table.path} line {line}")
    return PairTimes(*times), divergence


def _whole_numbers(path: str, name: str, cells: Sequence[str], lines: Sequence[int]) -> np.ndarray:
    for cell, line in zip(cells, lines, strict=True):
        if not re.fullmatch(r"[0-9]{1,6}", cell):
            raise UserError(f"{path} line {line}: {name} is {cell!r}: expected a whole number of generations")
    return np.array([int(cell) for cell in cells], dtype=np.int64)


def _fraction(cell: str, place: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise UserError(f"{place}: D.value is {cell!r}: expected a number from 0 to 1")
    return value
