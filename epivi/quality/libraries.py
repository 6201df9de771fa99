"""Which samples are of one library: haplotypes of one individual are read from the same DNA."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from epivi.cohort.samples import ALL_READS, SampleSheet


class Libraries(NamedTuple):
    """Rows of the sheet that name one file, for one individual, are one library; K libraries of S samples."""

    names: tuple[str, ...]  # [K], the first of each library's samples
    individuals: tuple[str, ...]  # [K]
    of_sample: np.ndarray  # int [S]
    first_sample: np.ndarray  # int [K]


def libraries_of(sheet: SampleSheet) -> Libraries:
    """The libraries in the order of their first samples."""
    position: dict[tuple[object, str], int] = {}
    of_sample = [position.setdefault(_library(sheet, row), len(position)) for row in range(len(sheet.samples))]
    first = [of_sample.index(library) for library in range(len(position))]
    return Libraries(
        tuple(sheet.samples[row] for row in first),
        tuple(sheet.individuals[row] for row in first),
        np.array(of_sample),
        np.array(first),
    )


def _library(sheet: SampleSheet, row: int) -> tuple[object, str]:
    """What names the library of a sample: its file, or of haplotypes in files of their own what makes them a pair.

    All reads of a file, in several samples, are the columns of a matrix: each is its own.
    """
    first = sheet.first_of_file[row]
    if sheet.haplotypes[row] == ALL_READS and sheet.origin_of(row) == "both":
        return (first, sheet.samples[row]), sheet.individuals[row]
    if sheet.first_of_file.count(first) == 1 and sheet.origin_of(row) != "both":
        return sheet.phasings.get(sheet.samples[row], "haplotypes"), sheet.individuals[row]
    return first, sheet.individuals[row]
