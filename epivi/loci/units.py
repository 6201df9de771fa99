"""What a locus is: a position, a fixed tile, or an interval of a BED file; and the sums of reads by locus.

Counts are summed first by position, as `Sums` whose keys sort like the positions and hold context and strand too:
key = (position * 4 + context code) * 4 + strand code. Tiles and intervals then sum over positions; in their keys the
number of the tile or interval stands in place of the position. Different contexts are never summed together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from epivi.tables.columns import CONTEXTS, STRANDS

PLUS, MINUS, UNKNOWN = range(len(STRANDS))
CG = CONTEXTS.index("CG")
KEY_STEP = 16  # keys of one position: 4 contexts x 4 strand codes


class Sums(NamedTuple):
    """Reads of K positions, tiles or intervals in S samples; keys ascend."""

    keys: np.ndarray  # int64 [K]
    meth: np.ndarray  # int64 [K, S]
    total: np.ndarray  # int64 [K, S]


class LocusUnit(Protocol):
    """How positions become loci."""

    @property
    def is_stranded(self) -> bool:
        """Whether loci of the two strands are kept apart."""

    def collect(self, positions: Sums) -> Sums:
        """Sums of the loci that the positions [K] belong to."""

    def first_open(self, frontier: int) -> int:
        """Smallest key that positions at or after `frontier` may still add to."""

    def extents(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Start and end (0-based, exclusive) of the loci of `keys` [K]."""

    def numbers(self, pos0: np.ndarray, end0: np.ndarray) -> np.ndarray:
        """Position, or number of the tile or interval, of loci with these extents."""


# --------------------------------------------------------------------------------------------------------------- units


@dataclass(frozen=True)
class Positions:
    """Every position is a locus; a strand-merged CpG is two bases long."""

    merge_strands: bool
    is_stranded: ClassVar[bool] = True

    def collect(self, positions: Sums) -> Sums:
        return positions

    def first_open(self, frontier: int) -> int:
        return frontier * KEY_STEP

    def extents(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pos0 = keys // KEY_STEP
        is_merged = self.merge_strands & (context_of(keys) == CG)
        return pos0, pos0 + np.where(is_merged, 2, 1)

    def numbers(self, pos0: np.ndarray, end0: np.ndarray) -> np.ndarray:
        return pos0.astype(np.int64)


@dataclass(frozen=True)
class Tiles:
    """Tile k holds the positions from k * width to (k + 1) * width."""

    width: int
    is_stranded: ClassVar[bool] = False

    def collect(self, positions: Sums) -> Sums:
        keys = _unstranded(positions.keys // KEY_STEP // self.width, context_of(positions.keys))
        return sum_equal_keys(Sums(keys, positions.meth, positions.total))

    def first_open(self, frontier: int) -> int:
        return frontier // self.width * KEY_STEP

    def extents(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pos0 = keys // KEY_STEP * self.width
        return pos0, pos0 + self.width

    def numbers(self, pos0: np.ndarray, end0: np.ndarray) -> np.ndarray:
        return pos0.astype(np.int64) // self.width


@dataclass(frozen=True)
class Intervals:
    """Distinct intervals of one contig, sorted by start and end; a position counts in each of those that hold it."""

    starts: np.ndarray  # int64 [N]
    ends: np.ndarray  # int64 [N]
    furthest_end: np.ndarray = field(init=False)  # int64 [N], largest end so far
    is_stranded: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "furthest_end", np.maximum.accumulate(self.ends))

    def collect(self, positions: Sums) -> Sums:
        pieces = []
        for context in np.unique(context_of(positions.keys)):
            chosen = context_of(positions.keys) == context
            pieces.append(self._collect_context(int(context), Sums(*(array[chosen] for array in positions))))
        return sum_equal_keys(concatenate(pieces)) if pieces else positions

    def _collect_context(self, context: int, positions: Sums) -> Sums:
        """Differences of running sums at the ends of each interval: no pairs of position and interval are formed."""
        pos0 = positions.keys // KEY_STEP
        candidates = np.arange(
            np.searchsorted(self.furthest_end, pos0[0], "right"), np.searchsorted(self.starts, pos0[-1], "right")
        )
        first = np.searchsorted(pos0, self.starts[candidates])
        stop = np.searchsorted(pos0, self.ends[candidates])
        hit = stop > first
        running = (np.vstack([np.zeros_like(counts[:1]), counts.cumsum(axis=0)]) for counts in positions[1:])
        sums = (counts[stop[hit]] - counts[first[hit]] for counts in running)
        return Sums(_unstranded(candidates[hit], context), *sums)

    def first_open(self, frontier: int) -> int:
        return int(np.searchsorted(self.furthest_end, frontier, "right")) * KEY_STEP

    def extents(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.starts[keys // KEY_STEP], self.ends[keys // KEY_STEP]

    def numbers(self, pos0: np.ndarray, end0: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._ranks(self.starts, self.ends), self._ranks(pos0, end0))

    def _ranks(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Numbers that sort like start and end of some of the intervals, none of which is longer than 2^31."""
        return np.searchsorted(self.starts, starts) << 31 | (ends - starts).astype(np.int64)


def context_of(keys: np.ndarray) -> np.ndarray:
    return keys // 4 % 4


def keys_of(number: np.ndarray, context: np.ndarray | int, strand: np.ndarray | int) -> np.ndarray:
    return (number.astype(np.int64) * 4 + context) * 4 + strand


def _unstranded(number: np.ndarray, context: np.ndarray | int) -> np.ndarray:
    return keys_of(number, context, UNKNOWN)


# ---------------------------------------------------------------------------------------------------------------- sums


def concatenate(pieces: Sequence[Any]) -> Any:
    """Pieces of Rows, CountRows or Sums, one after the other."""
    return type(pieces[0])(*(np.concatenate(arrays) for arrays in zip(*pieces, strict=True)))


def sum_equal_keys(sums: Sums) -> Sums:
    """Sorted by key, entries of the same key added up."""
    order = np.argsort(sums.keys, kind="stable")
    keys = sums.keys[order]
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    return Sums(keys[first], *(np.add.reduceat(counts[order], first, axis=0) for counts in sums[1:]))
