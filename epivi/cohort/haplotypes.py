"""What a sample is a sample of: an individual with both its chromosomes, or one haplotype.

Haplotypes are the reads of a BAM file with one number in the tag HP, or a file of such reads alone. The number means
the same chromosome within a phase set (tag PS) only, so nothing is ever joined by it along a chromosome: at each locus
the two numbers of one phasing, which is a file or what the sample sheet names, are the two chromosomes of the
individual, and which of them came from the mother is known only where the sheet states it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from epivi.base.errors import UserError
from epivi.cohort.pedigree import Pedigree
from epivi.cohort.samples import ALL_READS, UNPHASED, Origin, SampleSheet

PLOIDY = 2


class Unit(NamedTuple):
    """What samples share a deviation of: an individual ("both"), or one of its haplotypes by parent of origin.

    number, phasing: of a haplotype of unknown origin, which one it is: its number in the phasing, which is named by the
    sheet or by the first sample that is read from the file; "" otherwise.
    """

    individual: str
    origin: Origin
    number: str
    phasing: str

    @property
    def name(self) -> str:
        """The individual's name, followed by what distinguishes its haplotype."""
        words = {"both": "", "unknown": f" haplotype {self.number} of {self.phasing}"}.get(
            self.origin, f" {self.origin} haplotype"
        )
        return f"{self.individual}{words}"

    @property
    def is_haplotype(self) -> bool:
        return self.origin != "both"

    def same_phasing(self, other: Unit) -> bool:
        """Whether both are numbers of one phasing, and so the two chromosomes."""
        return self.phasing == other.phasing


def sampled_units(sheet: SampleSheet) -> tuple[tuple[Unit, ...], NDArray[np.int32]]:
    """The K units in the order of their first sample, and the unit of every sample, int32 [S].

    Replicates of an individual, and of a haplotype whose parent of origin is known, are one unit, and so are those of
    one number of one phasing. Haplotypes of unknown origin from different phasings are different ones.
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
    return Unit(sheet.individuals[row], origin, sheet.haplotypes[row], sheet.phasing_of(row))


def check_haplotypes(sheet: SampleSheet) -> None:
    """Rows of one file count every read at most once, and haplotypes of one phasing are the two of one individual.

    Raises UserError naming sheet and line: all reads beside some of them, a number given twice, more than two numbers,
    two haplotypes of one parent, a haplotype of two, a known beside an unknown parent of origin, and haplotypes of
    unknown origin in files of their own of which nothing says how their numbers relate.
    """
    for rows in _rows_by(sheet, lambda row: sheet.first_of_file[row]):
        _check_file(sheet, rows)
    numbered = [row for row in range(len(sheet.samples)) if sheet.haplotypes[row] not in (ALL_READS, UNPHASED)]
    for rows in _rows_by(sheet, sheet.phasing_of, numbered):
        _check_phasing(sheet, rows)
    unknown = [row for row in range(len(sheet.samples)) if sheet.origin_of(row) == "unknown"]
    for rows in _rows_by(sheet, lambda row: "", unknown):
        _check_unrelated(sheet, rows)


def _place(sheet: SampleSheet, row: int) -> str:
    return f"{sheet.path} line {sheet.lines[row]}: {sheet.paths[row]!r}"


def _check_file(sheet: SampleSheet, rows: list[int]) -> None:
    labels = [sheet.haplotypes[row] for row in rows]
    if not set(labels) - {ALL_READS, UNPHASED}:
        return
    if ALL_READS in labels:
        raise UserError(
            f"{_place(sheet, rows[-1])} is counted whole and by haplotype: expected each read in one sample"
        )
    if len(set(labels)) < len(labels):
        raise UserError(
            f"{_place(sheet, rows[-1])}: a haplotype is listed twice: expected different haplotypes of one file"
        )


def _check_phasing(sheet: SampleSheet, rows: list[int]) -> None:
    origins: dict[str, set[str]] = {}
    for row in rows:
        origins.setdefault(sheet.haplotypes[row], set()).add(sheet.origin_of(row))
        if len(origins) > PLOIDY:
            raise UserError(
                f"{_place(sheet, row)} has {len(origins)} haplotypes: expected at most {PLOIDY}, of a diploid"
            )
        if len(origins[sheet.haplotypes[row]]) > 1:
            raise UserError(
                f"{_place(sheet, row)}: haplotype {sheet.haplotypes[row]} is"
                f" {' and '.join(sorted(origins[sheet.haplotypes[row]]))} in one phasing: expected one parent of origin"
            )
    found = [origin for one in origins.values() for origin in one]
    if len(found) == PLOIDY and sorted(found) not in (["maternal", "paternal"], ["unknown", "unknown"]):
        raise UserError(
            f"{_place(sheet, rows[-1])}: its haplotypes are {' and '.join(found)}: expected maternal and paternal, or"
            " none known"
        )


def _check_unrelated(sheet: SampleSheet, rows: list[int]) -> None:
    """Of one individual: files of single haplotypes, of which the sheet does not say whether they are a pair."""
    numbers: dict[str, set[str]] = {}
    for row in rows:
        if sheet.samples[row] not in sheet.phasings:
            numbers.setdefault(sheet.phasing_of(row), set()).add(sheet.haplotypes[row])
    if len(numbers) > 1 and any(len(found) < PLOIDY for found in numbers.values()):
        last = rows[-1]
        raise UserError(
            f"{_place(sheet, last)}: {sheet.individuals[last]!r} has haplotypes of unknown origin in {len(numbers)}"
            " files, and nothing says which are the same chromosome: expected `haplotype` 1 or 2 and the column"
            " `phasing`, with one name where their numbers mean the same and different ones where they do not"
        )


def _rows_by(
    sheet: SampleSheet, key: Callable[[int], object], rows: Sequence[int] | None = None
) -> Iterator[list[int]]:
    """Rows of one individual and one key, in their order."""
    groups: dict[tuple[object, str], list[int]] = {}
    for row in range(len(sheet.samples)) if rows is None else rows:
        groups.setdefault((key(row), sheet.individuals[row]), []).append(row)
    yield from groups.values()


def check_sexual(units: tuple[Unit, ...], pedigree: Pedigree, sheet: SampleSheet) -> None:
    """Raise UserError for haplotypes of an individual with one parent: both of them are from it."""
    mode = dict(zip(pedigree.individuals, pedigree.mode, strict=True))
    for unit in units:
        if unit.is_haplotype and mode[unit.individual] != "sexual":
            raise UserError(
                f"{sheet.path}: {unit.individual!r} has haplotypes but arose by {mode[unit.individual]}: expected"
                " haplotypes of individuals with two parents, or of founders"
            )
