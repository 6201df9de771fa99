"""Small contigs that share a file are joined and indexed together, on one line of positions.

On the line each contig has a stretch of its own, longer than any contig, so that nothing of one is next to anything of
another: a group of contigs is one contig to those who walk along the line, and costs as much as one with all its loci.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from epivi.loci.units import Intervals, LocusUnit, Tiles

# Positions of a contig, ends of intervals and tiles are below 2^31 and little more.
LEAST_STRETCH = 1 << 32


class Places(NamedTuple):
    """Which contig of a group each of K loci is on, by number, and where on it."""

    number: np.ndarray  # int64 [K]
    pos0: np.ndarray  # int32 [K], bp
    end0: np.ndarray  # int32 [K], bp, exclusive


@dataclass(frozen=True)
class ContigLine:
    """C contigs on one line, where contig k begins at k times `stretch`.

    unit: of positions on the line.
    """

    contigs: tuple[str, ...]
    unit: LocusUnit
    stretch: int

    @classmethod
    def of(cls, contigs: Sequence[tuple[str, LocusUnit]]) -> ContigLine:
        """Contigs in this order, each with its unit; all units are of one kind."""
        units = [unit for _, unit in contigs]
        # A tile never holds positions of two contigs.
        step = units[0].width if isinstance(units[0], Tiles) else 1
        stretch = -(-LEAST_STRETCH // step) * step
        return cls(tuple(name for name, _ in contigs), _line_unit(units, stretch), stretch)

    def on_line(self, number: np.ndarray | int, pos0: np.ndarray) -> np.ndarray:
        """Positions on the line (int64) of positions on the contigs of these numbers."""
        return np.asarray(number, np.int64) * self.stretch + pos0

    def places(self, keys: np.ndarray) -> Places:
        """Where the loci of `keys` [K] are."""
        start, end = self.unit.extents(keys)
        number = start // self.stretch
        begin = number * self.stretch
        return Places(number, (start - begin).astype(np.int32), (end - begin).astype(np.int32))

    def by_contig(self, counts: np.ndarray) -> dict[str, int]:
        """Name of each contig -> its number of `counts` [C]."""
        return dict(zip(self.contigs, counts.tolist(), strict=True))


def _line_unit(units: Sequence[LocusUnit], stretch: int) -> LocusUnit:
    intervals = [unit for unit in units if isinstance(unit, Intervals)]
    if not intervals or len(units) == 1:
        return units[0]
    begin = np.repeat(np.arange(len(intervals)) * stretch, [len(unit.starts) for unit in intervals])
    starts, ends = (
        np.concatenate(parts) for parts in zip(*((unit.starts, unit.ends) for unit in intervals), strict=True)
    )
    return Intervals(starts + begin, ends + begin)
