"""Relatedness of individuals from a file: a matrix of names by names, or a list of pairs."""

from __future__ import annotations

import gzip
import logging
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from epivi.base.errors import UserError, line_of
from epivi.cohort.samples import SampleSheet
from epivi.config.load import suggestion

log = logging.getLogger(__name__)

# Columns of a list of pairs, in small letters: of PLINK, KING, GCTA and by hand.
FIRST, SECOND = ("individual1", "id1", "iid1"), ("individual2", "id2", "iid2")
RELATEDNESS, KINSHIP = "relatedness", "kinship"
ASYMMETRY = 1e-4  # between the two values of a pair, as rounding leaves it
# METHOD: share of the largest eigenvalue by which the smallest may be below zero, as rounding and single missing
# genotypes leave it; it is then set to zero. Beyond, the matrix is no covariance, and a nearest one would be another.
LARGEST_NEGATIVE = 1e-3
ROUNDING = 1e-10  # share of the largest eigenvalue, which the nugget of the field covers


class RelatednessMatrix(NamedTuple):
    """A file as read."""

    path: str
    individuals: tuple[str, ...]
    values: NDArray[np.float64]  # [I, I]


class Relatedness(NamedTuple):
    """What a component needs of a file."""

    values: NDArray[np.float64]  # [N, N], positive semidefinite, the mean of its diagonal 1
    scale: float  # mean of the diagonal in the file


def read_relatedness_matrix(path: str) -> RelatednessMatrix:
    """A table of names by names, or a list of pairs with a header, tab- or blank-separated, also gzipped.

    A list of pairs has the columns individual1, individual2 (or ID1, ID2; IID1, IID2) and relatedness, with each
    individual's own; or kinship, half the relatedness, of which the own may be left out: it is 1/2 then. Pairs that are
    left out are 0. Raises UserError naming file, line and value.
    """
    rows = _rows(path)
    number, header = next(rows, (1, []))
    columns = [cell.lower().lstrip("#") for cell in header]
    is_list = any(name in columns for name in FIRST) and any(name in columns for name in SECOND)
    return _pairs(path, columns, rows) if is_list else _square(path, number, header, rows)


def _rows(path: str) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of each line that is not empty."""
    try:
        with gzip.open(path, "rt") if path.endswith(".gz") else open(path, encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                text = line.rstrip("\r\n")
                if text.strip():
                    yield number, text.split("\t") if "\t" in text else text.split()
    except FileNotFoundError:
        raise UserError(f"{path}: the file does not exist; expected a relatedness matrix") from None
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError):
        raise UserError(f"{path}: is not text, or is damaged; expected a relatedness matrix") from None
    except OSError as error:
        raise UserError(line_of(error) or f"{path}: {error}") from None


def _number(path: str, line: int, column: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{path}, line {line}, column {column}: {cell!r}; expected a finite number")
    return value


def _square(path: str, line: int, header: list[str], rows: Iterator[tuple[int, list[str]]]) -> RelatednessMatrix:
    found = list(rows)
    has_corner = bool(found) and len(header) == len(found[0][1])  # R writes none
    names = tuple(header[1:] if has_corner else header)
    _check_distinct(path, line, names)
    if not names or len(names) != len(found):
        raise UserError(
            f"{path}: {len(names)} names in line {line} and {len(found)} lines below; expected as many, or a header "
            "with individual1, individual2 and relatedness"
        )
    values = np.zeros((len(names), len(names)))
    for row, (number, cells) in enumerate(found):
        if len(cells) != len(names) + 1 or cells[0] != names[row]:
            raise UserError(
                f"{path}, line {number}: {len(cells)} columns that begin with {cells[0]!r}; expected {names[row]!r} "
                f"and {len(names)} numbers, in the order of the first line"
            )
        values[row] = [_number(path, number, name, cell) for name, cell in zip(names, cells[1:], strict=True)]
    unlike = np.argwhere(np.abs(values - values.T) > ASYMMETRY * np.maximum(1.0, np.abs(values)))
    if len(unlike):
        row, column = unlike[0]
        raise UserError(
            f"{path}, line {found[row][0]}, column {names[column]}: {values[row, column]:g}, but "
            f"{values[column, row]:g} in line {found[column][0]}, column {names[row]}; expected a symmetric matrix"
        )
    return RelatednessMatrix(path, names, (values + values.T) / 2)


def _check_distinct(path: str, line: int, names: Sequence[str]) -> None:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"{path}, line {line}: {twice[0]!r} is named twice; expected different individuals")


def _pairs(path: str, columns: list[str], rows: Iterator[tuple[int, list[str]]]) -> RelatednessMatrix:
    first, second = (next(columns.index(name) for name in names if name in columns) for names in (FIRST, SECOND))
    if RELATEDNESS not in columns and KINSHIP not in columns:
        raise UserError(f"{path}: no column relatedness or kinship; expected one of them beside the names of pairs")
    is_kinship = RELATEDNESS not in columns
    value_column = KINSHIP if is_kinship else RELATEDNESS
    place = columns.index(value_column)
    position: dict[str, int] = {}
    pairs: dict[tuple[int, int], float] = {}
    for number, cells in rows:
        if len(cells) != len(columns):
            raise UserError(f"{path}, line {number}: {len(cells)} columns; expected {len(columns)}, as in the header")
        value = _number(path, number, value_column, cells[place]) * (2.0 if is_kinship else 1.0)
        one, other = sorted(position.setdefault(cells[k], len(position)) for k in (first, second))
        if abs(pairs.setdefault((one, other), value) - value) > ASYMMETRY * max(1.0, abs(value)):
            raise UserError(
                f"{path}, line {number}, column {value_column}: {cells[place]} for the pair {cells[first]!r} and "
                f"{cells[second]!r}, which had another value before; expected one value a pair"
            )
    values = np.eye(len(position)) if is_kinship else np.zeros((len(position), len(position)))
    for (one, other), value in pairs.items():
        values[one, other] = values[other, one] = value
    return RelatednessMatrix(path, tuple(position), values)


def relatedness_among(matrix: RelatednessMatrix, sheet: SampleSheet, individuals: Sequence[str]) -> Relatedness:
    """Of N sampled individuals and haplotypes, given by the names of their individuals.

    Divided by the mean of the diagonal over the sampled individuals. Further individuals of the file are left out.
    Raises UserError where a sampled individual is not in the file, has no relatedness above 0 with itself, or where the
    matrix of the sampled ones is not positive semidefinite.
    """
    sampled = tuple(dict.fromkeys(individuals))
    position = {name: index for index, name in enumerate(matrix.individuals)}
    for name in sampled:
        if name not in position:
            line = sheet.lines[sheet.individuals.index(name)]
            raise UserError(
                f"{matrix.path}: no individual {name!r}, who has a sample in {sheet.path}, line {line}; "
                f"{suggestion(name, matrix.individuals)}"
            )
    among = [position[name] for name in sampled]
    values = matrix.values[np.ix_(among, among)]
    for name, own in zip(sampled, np.diagonal(values), strict=True):
        if own <= 0:
            raise UserError(f"{matrix.path}: relatedness of {name!r} with itself is {own:g}; expected a number above 0")
    values = _semidefinite(matrix.path, values)
    scale = float(np.diagonal(values).mean())
    if abs(scale - 1.0) > ASYMMETRY:
        log.info("%s: divided by %.4g, so that the mean relatedness with oneself is 1", matrix.path, scale)
    again = [sampled.index(name) for name in individuals]
    return Relatedness(values[np.ix_(again, again)] / scale, scale)


def _semidefinite(path: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The matrix, with negative eigenvalues that rounding explains set to zero."""
    eigenvalues, vectors = np.linalg.eigh(values)
    smallest, largest = eigenvalues[0], eigenvalues[-1]
    if smallest < -LARGEST_NEGATIVE * largest:
        raise UserError(
            f"{path}: the smallest eigenvalue of the sampled individuals' relatedness is {smallest:.3g}, the largest "
            f"{largest:.3g}; expected none below 0, as of a relatedness of all individuals from the same genotypes "
            "(estimates of single pairs may have no such matrix)"
        )
    if smallest >= -ROUNDING * largest:
        return values
    log.warning("%s: eigenvalues down to %.2g are set to 0", path, smallest)
    # What is unrelated stays exactly so.
    _, block = connected_components(coo_array(values != 0), directed=False)
    return np.where(block[:, None] == block, (vectors * np.maximum(eigenvalues, 0.0)) @ vectors.T, 0.0)


def content(matrix: RelatednessMatrix) -> list[list[str | float]]:
    """What the file says, whatever its form and the order of its individuals."""
    order = sorted(range(len(matrix.individuals)), key=matrix.individuals.__getitem__)
    return [[matrix.individuals[row], *matrix.values[row, order].tolist()] for row in order]
