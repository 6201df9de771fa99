"""Contigs of an indexed FASTA file: one at a time, or the surroundings of positions in bounded memory."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pysam

from epivi.base.errors import UserError
from epivi.loci.contig_names import contig_renamer

UPPER = 0xDF  # clears the bit by which lower-case ASCII letters differ
MARGIN = 2  # bases on each side of a position that give its context
# Positions are looked up a tile of the contig at a time; 64 MB of tiles stay in memory.
TILE_BITS = 20
TILES_KEPT = 64


class Reference:
    """The sequences of a FASTA file with its index (.fai) beside it; the last contig asked for stays in memory.

    rename: as `loci.contigs.rename`; a contig that the file lacks is looked for by the name that it is to have, so that
    the file may spell its contigs as some of the samples do.
    Raises UserError if file or index cannot be read. The index is not made here: samples are read side by side.
    """

    def __init__(self, path: str, rename: Any = None) -> None:
        self.path = path
        self._rename = contig_renamer(rename)
        self._contig = ""
        self._bases = np.zeros(0, dtype=np.uint8)
        self._tile = lru_cache(maxsize=TILES_KEPT)(self._read_tile)
        for needed in (path, f"{path}.fai"):
            if not Path(needed).is_file():
                raise UserError(f"{needed}: cannot be read (expected the file loci.reference with its .fai beside it)")
        try:
            self._file = pysam.FastaFile(path)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read as indexed FASTA ({error})") from error
        own = self._file.references
        self._own_name = {self._rename(name): name for name in own} | {name: name for name in own}

    def sequence(self, contig: str, length: int) -> np.ndarray:
        """Bases of a contig, upper-case ASCII, uint8 [length].

        Raises UserError if the file does not have the contig, or of another length than the reads' header says.
        """
        if contig != self._contig:
            found = self._length(contig)
            if found != length:
                raise UserError(
                    f"{self.path}: contig {contig!r} has {found} bases (expected {length}, as the aligned reads say)"
                )
            text = self._file.fetch(self._named(contig)).encode()
            self._bases = np.frombuffer(text, dtype=np.uint8) & np.uint8(UPPER)
            self._contig = contig
        return self._bases

    def around(self, codes: np.ndarray, contigs: Sequence[str], pos0: np.ndarray) -> np.ndarray:
        """Bases from MARGIN before to MARGIN after each position, uint8 [positions, 2 * MARGIN + 1]; 0 off the contig.

        contigs[codes]: the contig of each position, in any order. Raises UserError if the file lacks one.
        """
        found = np.zeros((len(pos0), 2 * MARGIN + 1), dtype=np.uint8)
        key = (codes.astype(np.int64) << 32) | (pos0 >> TILE_BITS)
        order = np.arange(len(key)) if np.all(key[1:] >= key[:-1]) else np.argsort(key, kind="stable")
        starts = np.flatnonzero(np.diff(key[order], prepend=-1))
        for start, stop in pairwise([*starts.tolist(), len(key)]):
            rows = order[start:stop]
            number = int(pos0[rows[0]]) >> TILE_BITS
            tile = self._tile(contigs[codes[rows[0]]], number)
            place = pos0[rows] - (number << TILE_BITS)
            found[rows] = tile[np.minimum(place, len(tile) - 2 * MARGIN - 1)[:, None] + np.arange(2 * MARGIN + 1)]
        return found

    def _read_tile(self, contig: str, number: int) -> np.ndarray:
        """A tile with its margins, 0 off the contig, uint8 [at least 2 * MARGIN + 1]; positions after it see zeros."""
        first = number << TILE_BITS
        last = min(first + (1 << TILE_BITS), self._length(contig))
        text = self._file.fetch(self._named(contig), max(0, first - MARGIN), last + MARGIN) if first < last else ""
        bases = np.frombuffer(text.encode(), dtype=np.uint8) & np.uint8(UPPER)
        before = MARGIN if first == 0 else 0
        return np.concatenate([np.zeros(before, np.uint8), bases, np.zeros(2 * MARGIN + 1, np.uint8)])

    def _length(self, contig: str) -> int:
        return self._file.get_reference_length(self._named(contig))

    def _named(self, contig: str) -> str:
        """What the file calls a contig."""
        name = self._own_name.get(contig) or self._own_name.get(self._rename(contig))
        if name is None:
            raise UserError(f"{self.path}: has no contig {contig!r} (expected the genome that reads were aligned to)")
        return name


def opened_reference(path: str, rename: Any = None) -> Reference:
    """The file, opened once in a process as long as it and its index do not change; all else as Reference says."""
    changed = tuple(os.stat(file).st_mtime_ns if os.path.exists(file) else 0 for file in (path, f"{path}.fai"))
    return _opened(path, changed, json.dumps(rename))


@lru_cache(maxsize=1)
def _opened(path: str, changed: tuple[int, ...], rename: str) -> Reference:
    return Reference(path, json.loads(rename))
