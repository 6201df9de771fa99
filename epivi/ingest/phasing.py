"""Which phase set counts at a locus, where reads of one haplotype are of several.

A phaser numbers the haplotypes anew in each phase set (tag PS), so that haplotype 1 of one set may be the chromosome
that is haplotype 2 of the next. Where sets meet, calls of only one of them may count.
"""

from __future__ import annotations

from array import array

import numpy as np

NO_PHASE_SET = -1  # of phased reads without the tag PS, which are a set of their own
SPAN_FIELDS = 3


class PhasedSpans:
    """Where the phased reads lie that were seen, whatever their haplotype, with their phase sets."""

    def __init__(self) -> None:
        # Three numbers a read, one after the other: start, stop and phase set. Contigs in order of the file.
        self._by_contig: dict[str, array[int]] = {}

    def note(self, contig: str, start: int, stop: int, phase_set: int) -> None:
        """Add a read on the reference from `start` to before `stop`, 0-based.

        The base before it is taken as spanned: a read that starts at the G of a CpG has calls of the locus at its C.
        """
        self._by_contig.setdefault(contig, array("q")).extend((start - 1, stop, phase_set))

    def add(self, other: PhasedSpans) -> None:
        """Add the reads that another has seen."""
        for contig, numbers in other._by_contig.items():
            self._by_contig.setdefault(contig, array("q")).extend(numbers)

    def forget(self, contig: str, before: int | None) -> None:
        """Forget the reads that span no locus from `before - 1` on, or contigs up to the end of this one if None."""
        for name in list(self._by_contig):
            if name != contig or before is None:
                del self._by_contig[name]
            if name == contig:
                break
        if contig in self._by_contig and before is not None:
            spans = self._spans(contig)
            self._by_contig[contig] = array("q", spans[spans[:, 1] >= before].tobytes())

    def has_several(self, contig: str) -> bool:
        """Whether the reads of a contig are of several phase sets."""
        return len(np.unique(self._spans(contig)[:, 2])) > 1

    def larger_sets(self, contig: str, loci: np.ndarray) -> np.ndarray:
        """The phase set of most reads over each locus, int64 [loci]; loci: sorted positions, int64.

        # METHOD: reads of all haplotypes are counted, with calls or without, so that the choice is the same for every
        # haplotype of the file: both come from one set. Of equal sets the one with the smaller number counts.
        """
        chosen = np.full(len(loci), NO_PHASE_SET, dtype=np.int64)
        most = np.zeros(len(loci), dtype=np.int64)
        spans = self._spans(contig)
        spans = spans[np.argsort(spans[:, 2], kind="stable")]
        phase_sets, firsts = np.unique(spans[:, 2], return_index=True)
        for phase_set, of_set in zip(phase_sets.tolist(), np.split(spans, firsts[1:]), strict=True):
            start, stop = np.sort(of_set[:, 0]), np.sort(of_set[:, 1])
            here = slice(*np.searchsorted(loci, (start[0], stop[-1])).tolist())
            reads = np.searchsorted(start, loci[here], "right") - np.searchsorted(stop, loci[here], "right")
            is_larger = reads > most[here]
            chosen[here][is_larger] = phase_set
            most[here][is_larger] = reads[is_larger]
        return chosen

    def _spans(self, contig: str) -> np.ndarray:
        """Start, stop and phase set of the reads of a contig, int64 [reads, 3]."""
        return np.array(self._by_contig.get(contig, ()), dtype=np.int64).reshape(-1, SPAN_FIELDS)
