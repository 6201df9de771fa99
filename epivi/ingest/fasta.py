"""Contigs of an indexed FASTA file, one at a time."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import pysam

from epivi.errors import UserError

UPPER = 0xDF  # clears the bit by which lower-case ASCII letters differ


class Reference:
    """The sequences of a FASTA file with its index (.fai) beside it; the last contig asked for stays in memory.

    Raises UserError if file or index cannot be read. The index is not made here: samples are read side by side.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._contig = ""
        self._bases = np.zeros(0, dtype=np.uint8)
        for needed in (path, f"{path}.fai"):
            if not Path(needed).is_file():
                raise UserError(f"{needed}: cannot be read (expected the file loci.reference with its .fai beside it)")
        try:
            self._file = pysam.FastaFile(path)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read as indexed FASTA ({error})") from error

    def sequence(self, contig: str, length: int) -> np.ndarray:
        """Bases of a contig, upper-case ASCII, uint8 [length].

        Raises UserError if the file does not have the contig, or of another length than the reads' header says.
        """
        if contig != self._contig:
            if contig not in self._file.references:
                raise UserError(
                    f"{self.path}: has no contig {contig!r} (expected the genome that reads were aligned to)"
                )
            found = self._file.get_reference_length(contig)
            if found != length:
                raise UserError(
                    f"{self.path}: contig {contig!r} has {found} bases (expected {length}, as the aligned reads say)"
                )
            text = self._file.fetch(contig).encode()
            self._bases = np.frombuffer(text, dtype=np.uint8) & np.uint8(UPPER)
            self._contig = contig
        return self._bases


def opened_reference(path: str) -> Reference:
    """The file, opened once in a process as long as it and its index do not change; raises as Reference does."""
    changed = tuple(os.stat(file).st_mtime_ns if os.path.exists(file) else 0 for file in (path, f"{path}.fai"))
    return _opened(path, changed)


@lru_cache(maxsize=1)
def _opened(path: str, changed: tuple[int, ...]) -> Reference:
    return Reference(path)
