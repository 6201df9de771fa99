"""What a sample is a sample of: an individual with both its chromosomes, or one haplotype.

Haplotypes are the reads of a BAM file with one number in the tag HP. The number means the same chromosome within a
phase set (tag PS) only, so nothing is ever joined by it: at each locus the two numbers of one file are the two
chromosomes of the individual, and which of them came from the mother is known only where the sample sheet says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from epivi.errors import UserError
from epivi.pedigree import Pedigree
from epivi.samples import ALL_READS, UNPHASED, Origin, SampleSheet

PLOIDY = 2


class Unit(NamedTuple):
    """What samples share a deviation of: an individual ("both"), or one of its haplotypes by parent of origin.

    number, file: of a haplotype of unknown origin, which one it is: its number in the file, which is named by the first
    sample that is read from it; "" otherwise.
    """

    individual: str
    origin: Origin
    number: str
    file: str

    @property
    def name(self) -> str:
        """The individual's name, followed by what distinguishes its haplotype."""
        words = {"both": "", "unknown": f" haplotype {self.number} of {self.file}"}.get(
            self.origin, f" {self.origin} haplotype"
        )
        return f"{self.individual}{words}"

    @property
    def is_haplotype(self) -> bool:
        return self.origin != "both"

    def same_file(self, other: Unit) -> bool:
        """Whether both are numbers of one file, and so the two chromosomes."""
        return self.file == other.file


def sampled_units(sheet: SampleSheet) -> tuple[tuple[Unit, ...], NDArray[np.int32]]:
    """The K units in the order of their first sample, and the unit of every sample, int32 [S].

    Replicates of an individual, and of a haplotype whose parent of origin is known, are one unit. Haplotypes of unknown
    origin from different files are different ones, since no label is joined across files.
    Raises UserError as `check_haplotypes`.
    """
    check_haplotypes(sheet)
    of_sample = [_unit(sheet, row) for row in range(len(sheet.samples))]
    units = tuple(dict.fromkeys(of_sample))
    position = {unit: index for index, unit in enumerate(units)}
    return units, np.array([position[unit] for unit in of_sample], dtype=np.int32)


def _unit(sheet: SampleSheet, row: int) -> Unit:
    origin = sheet.origin_of(row)
    if origin != "unknown":
        return Unit(sheet.individuals[row], origin, "", "")
    first = sheet.samples[sheet.paths.index(sheet.paths[row])]
    return Unit(sheet.individuals[row], origin, sheet.haplotypes[row], first)


def check_haplotypes(sheet: SampleSheet) -> None:
    """Rows of one file count every read at most once, and its haplotypes are the two of one individual.

    Raises UserError naming sheet and line: all reads beside some of them, a number given twice, more than two numbers,
    two haplotypes of one parent, and a known beside an unknown parent of origin.
    """
    for rows in _rows_by_file(sheet):
        labels = [sheet.haplotypes[row] for row in rows]
        numbered = [row for row in rows if sheet.haplotypes[row] not in (ALL_READS, UNPHASED)]
        last = rows[-1]
        place = f"{sheet.path} line {sheet.lines[last]}: {sheet.paths[last]!r}"
        if not numbered:
            continue
        if ALL_READS in labels:
            raise UserError(f"{place} is counted whole and by haplotype: expected each read in one sample")
        if len(set(labels)) < len(labels):
            raise UserError(f"{place}: a haplotype is listed twice: expected different haplotypes of one file")
        if len(numbered) > PLOIDY:
            raise UserError(f"{place} has {len(numbered)} haplotypes: expected at most {PLOIDY}, of a diploid")
        origins = [sheet.origin_of(row) for row in numbered]
        if len(origins) == PLOIDY and sorted(origins) not in (["maternal", "paternal"], ["unknown", "unknown"]):
            raise UserError(
                f"{place}: its haplotypes are {' and '.join(origins)}: expected maternal and paternal, or none known"
            )


def _rows_by_file(sheet: SampleSheet) -> Iterator[list[int]]:
    rows: dict[tuple[str, str], list[int]] = {}
    for row, key in enumerate(zip(sheet.paths, sheet.individuals, strict=True)):
        rows.setdefault(key, []).append(row)
    yield from rows.values()


def check_sexual(units: tuple[Unit, ...], pedigree: Pedigree, sheet: SampleSheet) -> None:
    """Raise UserError for haplotypes of an individual with one parent: both of them are from it."""
    mode = dict(zip(pedigree.individuals, pedigree.mode, strict=True))
    for unit in units:
        if unit.is_haplotype and mode[unit.individual] != "sexual":
            raise UserError(
                f"{sheet.path}: {unit.individual!r} has haplotypes but arose by {mode[unit.individual]}: expected"
                " haplotypes of individuals with two parents, or of founders"
            )
