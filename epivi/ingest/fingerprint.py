"""What distinguishes one sample's counts from another's in a few kilobytes: kept beside the counts, compared at
assembly.

A hash of positions and reads finds the same counts again, whatever file or format they came in and however contigs were
called. A few of the CpGs, by a rule that takes the same ones in every sample, say whether samples have the same CpGs.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from epivi.ingest.layout import CG, MINUS, Counts

METADATA = "epivi.fingerprint"
# CpGs are taken by whole windows of the genome, so that neighbours one base apart are taken together.
WINDOW_BITS = 6
WINDOW_BP = 1 << WINDOW_BITS
MOST_WINDOWS = 1024
# Rows that are looked at together: contigs may be many and small, and arrays of a large one should stay in the cache.
BATCH_ROWS = 1 << 15
COVERAGE_COUNTED = 1 << 12
_CONTIG_SHIFT = np.uint64(32)
_ALL_WINDOWS = (1 << 64) - 1
_FINALIZER = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)
_LAST_SHIFT = np.uint64(31)


class Positions(NamedTuple):
    """A sample's CpGs in the windows whose hash is below `bound`, all of them.

    keys: uint64 [K], ascending, of contig and 0-based position, which is that of the C on the + strand where the strand
    is known.
    """

    keys: np.ndarray
    bound: int

    def below(self, bound: int) -> Positions:
        """Those in windows whose hash is below a smaller bound."""
        return Positions(self.keys[window_hash(self.keys) < np.uint64(bound)], min(bound, self.bound))


class Fingerprint(NamedTuple):
    """A sample's counts in brief.

    digest: of positions and reads of all loci. loci: their number. nats: how unlikely it is that separate reads of the
    same levels give the same counts, as -log of a probability that is never too small.
    """

    digest: str
    loci: int
    nats: float
    positions: Positions


@dataclass
class FingerprintTally:
    """Takes note of a sample's loci, contig by contig."""

    _digests: list[bytes] = field(default_factory=list)
    _coverage: np.ndarray = field(default_factory=lambda: np.zeros(COVERAGE_COUNTED + 1, np.int64))
    _intermediate: int = 0
    _waiting: list[tuple[str, Counts]] = field(default_factory=list)
    _waiting_rows: int = 0
    _keys: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    _bound: int = _ALL_WINDOWS

    def add(self, contig: str, loci: Counts) -> None:
        """Note the loci of one contig, each contig once."""
        digest = hashlib.sha256()  # in the instructions of today's processors, thus twice as fast as others
        for column in (loci.pos0, loci.meth, loci.total):
            digest.update(np.ascontiguousarray(column).data)
        self._digests.append(digest.digest())
        self._waiting.append((contig, loci))
        self._waiting_rows += len(loci.pos0)
        if self._waiting_rows >= BATCH_ROWS:
            self._look()

    def metadata(self) -> dict[str, str]:
        """The fingerprint as metadata of a counts file."""
        self._look()
        digest = hashlib.sha256(b"".join(sorted(self._digests)))
        values = {
            "digest": digest.hexdigest(),
            "loci": int(self._coverage.sum()),
            "nats": self._nats(),
            "bound": self._bound,
            "keys": base64.b64encode(self._keys.tobytes()).decode(),
        }
        return {METADATA: json.dumps(values)}

    def _look(self) -> None:
        """Count the waiting loci's coverage and take their CpGs in."""
        waiting, self._waiting, self._waiting_rows = self._waiting, [], 0
        if not waiting:
            return
        pieces = [piece for _, piece in waiting]
        loci = pieces[0] if len(pieces) == 1 else Counts(*map(np.concatenate, zip(*pieces, strict=True)))
        sizes = [len(piece.pos0) for piece in pieces]
        contigs = np.repeat(np.array([zlib.crc32(name.encode()) for name, _ in waiting], np.uint64), sizes)
        for start in range(0, len(loci.pos0), BATCH_ROWS):
            part = slice(start, start + BATCH_ROWS)
            self._count(loci.select(part))
            self._take(contigs[part], loci.select(part))

    def _count(self, loci: Counts) -> None:
        coverage = np.bincount(np.minimum(loci.total, COVERAGE_COUNTED))
        self._coverage[: len(coverage)] += coverage
        self._intermediate += int(np.count_nonzero((loci.meth > 0) & (loci.meth < loci.total)))

    def _take(self, contigs: np.ndarray, loci: Counts) -> None:
        start = loci.pos0 - (loci.strand == MINUS)
        keys = (contigs << _CONTIG_SHIFT) | start.astype(np.uint64)
        is_taken = window_hash(keys) < np.uint64(self._bound)
        is_taken &= (loci.context == CG) & (start >= 0)
        if not is_taken.any():
            return
        keys = _distinct(np.concatenate([self._keys, keys[is_taken]]))
        hashes = window_hash(keys)
        windows = _distinct(hashes)
        if len(windows) > MOST_WINDOWS:
            self._bound = int(windows[MOST_WINDOWS])
        self._keys = keys[hashes < np.uint64(self._bound)]

    def _nats(self) -> float:
        """-log of the probability that separate reads of the same levels would give equal counts at all loci.

        # METHOD: two samples have equal coverage at a locus with the probability that two values of the sample have,
        # or two of a Poisson distribution whose mean is the locus's (at most .31 / sqrt(n)), whichever is larger: loci
        # that are all covered alike, as those of arrays, say nothing by it. Where both states are seen, equal coverage
        # leaves the methylated reads equal with .8 at most. The coverage of haplotypes, twins and clones is as
        # independent as that of others.
        """
        counted = self._coverage[1:].astype(np.float64)
        if not counted.any():
            return 0.0
        by_chance = ((counted / counted.sum()) ** 2).sum()
        reads = np.arange(1, len(counted) + 1)
        same = np.maximum(by_chance, 0.31 / np.sqrt(reads))
        return float(-(counted * np.log(same)).sum() - self._intermediate * np.log(0.8))


def read_fingerprint(metadata: Mapping[str, str]) -> Fingerprint | None:
    """The fingerprint in the metadata of a counts file; None in one that was not written by `epivi ingest`."""
    if METADATA not in metadata:
        return None
    values = json.loads(metadata[METADATA])
    keys = np.frombuffer(base64.b64decode(values["keys"]), np.uint64)
    return Fingerprint(values["digest"], values["loci"], values["nats"], Positions(keys, int(values["bound"])))


def window_hash(keys: np.ndarray) -> np.ndarray:
    """A number for the window of each key [K], uint64, that looks random (the finalizer of SplitMix64)."""
    value = keys >> np.uint64(WINDOW_BITS)
    shifted = np.empty_like(value)
    for shift, factor in _FINALIZER:
        np.right_shift(value, shift, out=shifted)
        value ^= shifted
        value *= factor
    return value ^ (value >> _LAST_SHIFT)


def _distinct(values: np.ndarray) -> np.ndarray:
    """Each value once, ascending; np.unique would hash them, which takes longer."""
    values = np.sort(values)
    is_new = np.ones(len(values), dtype=bool)
    is_new[1:] = values[1:] != values[:-1]
    return values[is_new]
