"""Cytosines whose state is known: sums of their reads, from which conversion and call errors are estimated.

A spike-in (lambda phage) or a plastid carries no methylation, a spike-in treated with M.SssI (pUC19) carries it at
every CpG, and in a genome without non-CG methylation every CHH is unmethylated. Their reads are summed while a file is
read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np

UNMETHYLATED, METHYLATED = "unmethylated", "methylated"
SEX_LINKED = ("x", "y")  # keys of qc.sex; the contigs' reads are summed too, for the check of sexes
AUTOSOMES = "autosomes"


class QcContigs(NamedTuple):
    """What is summed for quality control: patterns of contig names, and contexts that are unmethylated everywhere.

    Contigs of `unmethylated` and `methylated` are never loci. Those of `x` and `y` are loci where loci.contigs keeps
    them.
    """

    unmethylated: tuple[str, ...] = ()
    methylated: tuple[str, ...] = ()
    unmethylated_contexts: tuple[str, ...] = ()
    x: tuple[str, ...] = ()
    y: tuple[str, ...] = ()

    def is_control(self, contig: str) -> bool:
        """Whether the contig is a control, of known methylation."""
        return _matches(contig, self.unmethylated) or _matches(contig, self.methylated)

    def is_summed(self, contig: str) -> bool:
        """Whether the contig is read whatever loci.contigs says."""
        return self.is_control(contig) or _matches(contig, self.x) or _matches(contig, self.y)

    def parts(self, contig: str) -> tuple[str, ...]:
        """Names of the sums that the contig adds to."""
        names = (UNMETHYLATED, METHYLATED, *SEX_LINKED)
        patterns = (self.unmethylated, self.methylated, self.x, self.y)
        found = tuple(name for name, listed in zip(names, patterns, strict=True) if _matches(contig, listed))
        return found or (AUTOSOMES,)


NOTHING_SUMMED = QcContigs()


def qc_contigs(qc: Mapping[str, Any]) -> QcContigs:
    """From the `qc` section of the resolved configuration."""
    conversion, sex = qc["conversion"], qc["sex"]
    return QcContigs(
        tuple(conversion["unmethylated_contigs"]),
        tuple(conversion["methylated_contigs"]),
        tuple(conversion["unmethylated_contexts"]),
        tuple(sex["x_contigs"]),
        tuple(sex["y_contigs"]),
    )


# What loci.contigs has a part in, so that it is summed contig by contig.
ContigSums = dict[str, dict[str, "ReadSums"]]


class ReadSums(NamedTuple):
    """Sums over the rows (positions and strands) with reads: n total and m methylated reads.

    The squares give the variance between positions. Float, because squares of large counts exceed 64 bits.
    """

    rows: int = 0
    reads: int = 0
    methylated: int = 0
    reads_squared: float = 0.0  # sum of n^2
    methylated_squared: float = 0.0  # sum of m^2
    reads_methylated: float = 0.0  # sum of n m

    def __add__(self, other: tuple) -> ReadSums:
        return ReadSums(*(one + more for one, more in zip(self, other, strict=True)))


def read_sums(meth: np.ndarray, total: np.ndarray) -> ReadSums:
    """Sums over rows with methylated and total reads [R]; rows without reads count for nothing."""
    n, m = total.astype(np.float64), meth.astype(np.float64)
    return ReadSums(
        int(np.count_nonzero(total)),
        int(total.sum(dtype=np.int64)),
        int(meth.sum(dtype=np.int64)),
        float(n @ n),
        float(m @ m),
        float(n @ m),
    )


def read_sums_by(codes: np.ndarray, names: Sequence[str], meth: np.ndarray, total: np.ndarray) -> dict[str, ReadSums]:
    """Sums over the rows of each name; codes: index into `names` of every row [R]. Names without reads are left out."""
    n, m = total.astype(np.float64), meth.astype(np.float64)
    weights = ((n > 0).astype(np.float64), n, m, n * n, m * m, n * m)
    columns = [np.bincount(codes, weights=values, minlength=len(names)) for values in weights]
    return {
        names[code]: ReadSums(
            *(int(column[code]) for column in columns[:3]), *(float(column[code]) for column in columns[3:])
        )
        for code in np.flatnonzero(columns[0]).tolist()
    }


def _matches(contig: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(contig, pattern) for pattern in patterns)
