"""Classes of loci with rates of their own: sequence context, crossed with the annotation of a BED file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from epivi.base.errors import UserError
from epivi.loci.bed import BedRow, bed_rows
from epivi.loci.loci_file import LocusBlock
from epivi.loci.store import LociStore, LocusSpan
from epivi.tables.columns import CONTEXTS

ELSEWHERE = "other"  # annotation of a locus that no interval holds
BLOCK_LOCI = 1 << 18


class AnnotatedContig(NamedTuple):
    """Intervals of one contig that do not overlap, in order."""

    starts: NDArray[np.int64]  # [N]
    ends: NDArray[np.int64]  # [N]
    annotation: NDArray[np.int64]  # [N], number of the annotation


class LocusClasses(NamedTuple):
    """C classes: every context with every annotation.

    `annotations` is empty where there is no BED file; its last entry is ELSEWHERE.
    """

    contexts: tuple[str, ...]
    annotations: tuple[str, ...]
    contigs: Mapping[str, AnnotatedContig]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes in the order of their numbers: CG, or CG:gene."""
        if not self.annotations:
            return self.contexts
        return tuple(f"{context}:{annotation}" for context in self.contexts for annotation in self.annotations)

    def codes(self, block: LocusBlock) -> NDArray[np.int16]:
        """Number of the class of each locus of the block, [L].

        # METHOD: a locus, however wide, belongs to the interval that holds its first base.
        """
        number = np.array([self.contexts.index(name) if name in self.contexts else -1 for name in CONTEXTS])
        context = number[block.context_code]
        if (context < 0).any():
            found = CONTEXTS[int(block.context_code[context < 0][0])]
            raise UserError(f"contig {block.contig}: a locus has the context {found!r}; expected {self.contexts}")
        if not self.annotations:
            return context.astype(np.int16)
        annotation = np.full(len(block.pos0), len(self.annotations) - 1)
        if block.contig in self.contigs:
            starts, ends, label = self.contigs[block.contig]
            place = np.searchsorted(starts, block.pos0, side="right") - 1
            inside = (place >= 0) & (block.pos0 < ends[np.maximum(place, 0)])
            annotation[inside] = label[place[inside]]
        return (context * len(self.annotations) + annotation).astype(np.int16)

    def codes_of(self, span: LocusSpan) -> NDArray[np.int16]:
        """The same of a span of loci, [L]."""
        return np.concatenate([self.codes(block) for block in span.blocks])

    def all_codes(self, store: LociStore) -> NDArray[np.int16]:
        """Number of the class of every locus in genome order."""
        return np.concatenate([self.codes(block) for block in store.blocks(BLOCK_LOCI)])


def read_classes(path: str | None, contexts: Sequence[str]) -> LocusClasses:
    """Classes of the contexts and, where a path is given, of the fourth column of that BED file.

    Raises UserError naming file and line where it cannot be read, a name is missing or taken, or intervals of different
    classes overlap.
    """
    if path is None:
        return LocusClasses(tuple(contexts), (), {})
    by_contig: dict[str, list[BedRow]] = {}
    for row in bed_rows(path):
        if len(row.cells) < 4 or not row.cells[3].strip():
            raise UserError(f"{path}: line {row.line}: no class; expected its name in the fourth column")
        if row.cells[3] == ELSEWHERE:
            raise UserError(f"{path}: line {row.line}: the class {ELSEWHERE!r} is for loci outside all intervals")
        by_contig.setdefault(row.contig, []).append(row)
    names = sorted({row.cells[3] for rows in by_contig.values() for row in rows})
    if not names:
        raise UserError(f"{path}: holds no interval; expected lines of contig, start, end, class")
    contigs = {contig: _annotated(path, rows, names) for contig, rows in by_contig.items()}
    return LocusClasses(tuple(contexts), (*names, ELSEWHERE), contigs)


def _annotated(path: str, rows: Sequence[BedRow], names: Sequence[str]) -> AnnotatedContig:
    """Sorted intervals; those of one class that overlap are joined."""
    starts: list[int] = []
    ends: list[int] = []
    labels: list[int] = []
    last: BedRow | None = None  # that reaches furthest so far
    for row in sorted(rows, key=lambda row: (row.start, row.end)):
        if last is not None and row.start < last.end:
            if row.cells[3] != last.cells[3]:
                raise UserError(
                    f"{path}: line {row.line}: {row.contig}:{row.start}-{row.end} of class {row.cells[3]!r} overlaps "
                    f"{last.start}-{last.end} of class {last.cells[3]!r} on line {last.line}: expected no overlap"
                )
            ends[-1] = max(ends[-1], row.end)
            last = row if row.end > last.end else last
            continue
        starts.append(row.start)
        ends.append(row.end)
        labels.append(names.index(row.cells[3]))
        last = row
    return AnnotatedContig(np.array(starts), np.array(ends), np.array(labels))
