"""Sites to leave out, from BED files and from variants in VCF or BCF files: `loci.exclude`.

A C/T variant on a CpG is read as unmethylated after conversion, and passes from parent to offspring. Any other change
of one of its two bases, or between them, unmakes the CpG; so all of them mask it.
"""

from __future__ import annotations

import gzip
import logging
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pysam

from epivi.base.errors import UserError, line_of
from epivi.loci.bed import bed_rows
from epivi.loci.contig_line import ContigLine
from epivi.loci.contig_names import quoted, rename_advice
from epivi.loci.units import CG, KEY_STEP, MINUS, PLUS, context_of
from epivi.tables.parquet import PathLike, natural_key

log = logging.getLogger(__name__)


class Sites(NamedTuple):
    """N stretches of bases of a contig, sorted by start; one that is empty lies between two bases."""

    starts: np.ndarray  # int64 [N]
    furthest_end: np.ndarray  # int64 [N], largest end (exclusive) so far

    def touch(self, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Whether one of them has a base of each of K stretches, or lies between two of its bases: bool [K]."""
        before = np.searchsorted(self.starts, end)  # those that start before the end
        ends = np.concatenate([[-2], self.furthest_end])
        return np.asarray(ends[before] > start)


@dataclass(frozen=True)
class Mask:
    """The sites of one file, by contig; n_passed_over: symbolic alleles, which say nothing of bases."""

    path: str
    sites: Mapping[str, Sites]
    n_sites: int
    n_passed_over: int = 0

    def of(self, contigs: Sequence[str]) -> Mask:
        """The same with these contigs alone."""
        return Mask(self.path, {name: self.sites[name] for name in contigs if name in self.sites}, self.n_sites)


@dataclass(frozen=True)
class LineMask:
    """The sites of each of M masks on the line of a group of contigs."""

    sites: tuple[Sites, ...]
    merge_strands: bool

    @classmethod
    def of(cls, masks: Sequence[Mask], line: ContigLine, merge_strands: bool) -> LineMask:
        return cls(tuple(_on_line(mask, line) for mask in masks), merge_strands)

    def touch(self, keys: np.ndarray) -> np.ndarray:
        """Whether each mask masks each cytosine of `keys` [K] that stand for positions on the line: bool [M, K]."""
        start, end = _bases(keys, self.merge_strands)
        return np.array([sites.touch(start, end) for sites in self.sites], bool).reshape(len(self.sites), keys.size)


def _on_line(mask: Mask, line: ContigLine) -> Sites:
    parts = [
        Sites(*(line.on_line(number, column) for column in mask.sites[contig]))
        for number, contig in enumerate(line.contigs)
        if contig in mask.sites
    ]
    if not parts:
        return Sites(np.empty(0, np.int64), np.empty(0, np.int64))
    return Sites(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _bases(keys: np.ndarray, merge_strands: bool) -> tuple[np.ndarray, np.ndarray]:
    """Start and end of the bases that decide on the reads of cytosines [K]: both of a CpG, else its own.

    METHOD: a CpG of unknown strand that is not merged may be either base, so that its neighbours on both sides count.
    """
    pos, strand = keys // KEY_STEP, keys % 4
    is_pair = context_of(keys) == CG
    start, end = pos.copy(), pos + 1
    if merge_strands:
        return start, end + is_pair
    start -= is_pair & (strand != PLUS)
    end += is_pair & (strand != MINUS)
    return start, end


# ------------------------------------------------------------------------------------------------------------- reading


def read_mask(path: PathLike) -> Mask:
    """The sites of a BED file (plain or gzip), or of the variants of a VCF or BCF file.

    Raises UserError naming the file, and the line of a BED file, where it cannot be read or holds no site.
    """
    found: dict[str, tuple[array[int], array[int]]] = {}
    n_passed_over = 0
    is_vcf = is_variants(path)
    for contig, start, end in _variant_stretches(path) if is_vcf else _bed_stretches(path):
        if contig is None:
            n_passed_over += 1
            continue
        starts, ends = found.setdefault(contig, (array("q"), array("q")))
        starts.append(start)
        ends.append(end)
    if not found:
        expected = "variants with bases as alleles" if is_vcf else "lines of contig, start, end"
        raise UserError(f"{path}: holds no site to exclude; expected {expected}")
    sites = {contig: _sites(*pair) for contig, pair in found.items()}
    return Mask(str(path), sites, sum(len(starts) for starts, _ in found.values()), n_passed_over)


def _sites(starts: array[int], ends: array[int]) -> Sites:
    first, last = np.frombuffer(starts, np.int64), np.frombuffer(ends, np.int64)
    order = np.argsort(first, kind="stable")
    return Sites(first[order], np.maximum.accumulate(last[order]))


def mask_contigs(path: PathLike) -> tuple[str, ...]:
    """Contigs of a file of sites: a BED file is read whole, of variants the header and the first one.

    Raises UserError as read_mask, for what that shows.
    """
    if not is_variants(path):
        names = tuple(dict.fromkeys(row.contig for row in bed_rows(path)))
        if not names:
            raise UserError(f"{path}: holds no site to exclude; expected lines of contig, start, end")
        return names
    try:
        with pysam.VariantFile(str(path), drop_samples=True) as file:
            first = next(iter(file), None)
            return tuple(map(str, file.header.contigs)) or (() if first is None else (first.contig,))
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def is_variants(path: PathLike) -> bool:
    """Whether a file is VCF or BCF, by how it begins. Raises UserError where it cannot be read."""
    try:
        with open(path, "rb") as raw:
            opener = gzip.open if raw.read(2) == b"\x1f\x8b" else open
        with opener(path, "rb") as stream:
            return stream.read(16).startswith((b"##fileformat=VCF", b"BCF"))
    except EOFError as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    except OSError as error:
        raise UserError(line_of(error) or f"{path}: cannot be read ({error})") from None


def _unreadable(path: PathLike, error: Exception) -> UserError:
    return UserError(f"{path}: cannot be read as VCF or BCF ({' '.join(str(error).split())})")


# The contig, or None for an allele that is passed over; start and end.
Stretches = Iterator[tuple[str | None, int, int]]


def _bed_stretches(path: PathLike) -> Stretches:
    for row in bed_rows(path):
        yield row.contig, row.start, row.end


def _variant_stretches(path: PathLike) -> Stretches:
    """The bases that each alternative allele changes.

    METHOD: every variant masks, whatever its filter, frequency and genotypes: a site that is left out wrongly costs
    one locus, a variant that is left in may be called. Reference blocks of a gVCF have no alternative allele.
    """
    try:
        with pysam.VariantFile(str(path), drop_samples=True) as file:
            for record in file:
                contig, start, reference = record.contig, record.start, (record.ref or "").upper()
                for allele in record.alts or ():
                    if allele in (".", "<NON_REF>", "<*>", "*"):
                        continue
                    if not allele.isalpha():
                        yield None, 0, 0
                        continue
                    for first, last in changed_bases(reference, allele.upper()):
                        yield contig, start + first, start + last
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def changed_bases(reference: str, allele: str) -> list[tuple[int, int]]:
    """Stretches of the reference's bases, by place in it, that an allele changes; empty ones where it inserts."""
    if len(reference) == len(allele):
        return [(at, at + 1) for at, (old, new) in enumerate(zip(reference, allele, strict=True)) if old != new]
    shorter = min(len(reference), len(allele))
    first = next((at for at in range(shorter) if reference[at] != allele[at]), shorter)
    left = shorter - first
    same = next((at for at in range(left) if reference[-1 - at] != allele[-1 - at]), left)
    return [(first, len(reference) - same)]


# -------------------------------------------------------------------------------------------------------------- contigs


def contig_problem(path: PathLike, names: Sequence[str], contigs: Sequence[str]) -> str:
    """What is wrong with the contigs of a file of sites beside those of the loci; empty where nothing is.

    Contigs that it does not have are no mistake, unless it spells them otherwise.
    """
    ours, theirs = (
        sorted(set(one) - set(other), key=natural_key) for one, other in ((names, contigs), (contigs, names))
    )
    advice = rename_advice(ours, theirs) if ours and theirs else None
    if advice is None and set(names) & set(contigs):
        return ""
    which = "none of its contigs is" if len(ours) == len(set(names)) else "some of its contigs are not"
    how = "" if advice is None else f", which it spells otherwise ({advice} would make them one)"
    return (
        f"{path}: {which} one of the loci: {quoted(ours)} against {quoted(theirs)}{how}; expected the names that the "
        "loci have"
    )


def check_mask_contigs(path: PathLike, names: Sequence[str], contigs: Sequence[str]) -> None:
    """Raise UserError where a file of sites has none of the contigs of the loci."""
    if contigs and not set(names) & set(contigs):
        raise UserError(contig_problem(path, names, contigs))
