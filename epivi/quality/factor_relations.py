"""What a factor of the samples goes with: columns of the sheet, the pedigree's families, sexes and generations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtrc, stdtr

from epivi.cohort.pedigree import Pedigree
from epivi.cohort.permutations import generations
from epivi.cohort.relatives import Relatives
from epivi.cohort.samples import MISSING, SampleSheet, as_number
from epivi.quality.columns import FAMILY_FACTOR
from epivi.quality.factors import Factor
from epivi.quality.findings import Finding

Array = NDArray[np.float64]

FAMILY, SEX, GENERATION, KINSHIP = "(family)", "(sex)", "(generation)", "(kinship)"
# METHOD: a relation is named where chance would show as strong a one, with any of what is looked at, in 1 % of factors.
LEVEL = 0.01
# METHOD: a factor coincides with families where more of it lies between them than within, and more than by chance.
COINCIDES = 0.5


class Relation(NamedTuple):
    """A factor with one column of the sheet or one part of the pedigree."""

    factor: int  # from 1
    name: str  # a column of the sheet, or FAMILY, SEX, GENERATION or KINSHIP
    correlation: float  # of a number; of categories the root of the share of the factor that lies between them
    p_value: float  # nan where there is no test
    is_named: bool


def relations(
    factors: Sequence[Factor], sheet: SampleSheet, rows: Sequence[int], pedigree: Pedigree, related: Relatives
) -> list[Relation]:
    """Relations of each factor of K libraries.

    rows: of the sheet, the first of each library, [K]. Columns in which a value is missing, or all are one or all are
    different words, are left out.
    """
    candidates = dict(_candidates(sheet, rows, pedigree, related))
    found = []
    for number, factor in enumerate(factors, 1):
        tests = {name: _association(factor.value, values) for name, values in candidates.items()}
        for name, (correlation, p_value) in tests.items():
            is_named = factor.is_significant and p_value * len(tests) < LEVEL
            found.append(Relation(number, name, correlation, p_value, bool(is_named)))
        found.append(Relation(number, KINSHIP, _kinship(factor.value, related), float("nan"), False))
    return found


class _Told(NamedTuple):
    """A significant factor with what it goes with beyond doubt, the surest first."""

    factor: Factor
    of_families: Relation
    named: list[Relation]

    @property
    def coincides(self) -> bool:
        return self.of_families.is_named and self.of_families.correlation**2 > COINCIDES


def factor_findings(
    factors: Sequence[Factor], found: Sequence[Relation], covariates: Sequence[str]
) -> Iterator[Finding]:
    """A warning of the significant factors that coincide with families, and one of each other one."""
    told = [_told(factor, number, found) for number, factor in enumerate(factors, 1) if factor.is_significant]
    coinciding = [one for one in told if one.coincides]
    if coinciding:
        yield _coincide(coinciding)
    for one in told:
        if not one.coincides:
            yield Finding("factor", "", "", one.factor.share, 0.0, _warning(one, covariates))


def _told(factor: Factor, number: int, found: Sequence[Relation]) -> _Told:
    own = [relation for relation in found if relation.factor == number]
    named = sorted((one for one in own if one.is_named and one.name != FAMILY), key=lambda one: one.p_value)
    return _Told(factor, next(relation for relation in own if relation.name == FAMILY), named)


def _coincide(told: Sequence[_Told]) -> Finding:
    shares = np.array([[one.factor.share, one.factor.standard_error**2] for one in told]).sum(0)
    least = min(one.of_families.correlation**2 for one in told)
    what = "one factor" if len(told) == 1 else f"{len(told)} factors"
    named = {relation.name: relation for one in told for relation in one.named}
    also = f"; it also goes with {_listed(list(named.values()))}" if named else ""
    text = (
        f"cannot tell family from factor: {_size(shares[0], np.sqrt(shares[1]))} is of {what} at all loci, of which "
        f"{100 * least:.0f} % and more lies between families; whether it is passed on, or is a batch or household of "
        f"families, these samples do not show{also}"
    )
    return Finding(FAMILY_FACTOR, "", "", least, COINCIDES, text)


def _warning(one: _Told, covariates: Sequence[str]) -> str:
    family = one.of_families
    between = f", {100 * family.correlation**2:.0f} % of it between families," if family.is_named else ""
    size = f"{_size(one.factor.share, one.factor.standard_error)} is of one factor at all loci{between}"
    consequence = "what relatives share of it looks like inheritance"
    if one.named:
        return f"{size} that goes with {_listed(one.named)}{_advice(one.named, covariates)}: {consequence}"
    return (
        f"{size} that no column of the sheet explains, such as a composition of cells: {consequence}. Its values are "
        "in relatives/factor_values.parquet"
    )


def _size(share: float, error: float) -> str:
    return f"{100 * share:.1f} % (SE {100 * error:.1f}) of the variance between samples"


def _listed(named: Sequence[Relation]) -> str:
    return ", ".join(f"{one.name.strip('()')} (correlation {one.correlation:.2f})" for one in named[:3])


def _advice(named: Sequence[Relation], covariates: Sequence[str]) -> str:
    of_sheet = [one.name for one in named if one.name not in (*covariates, SEX, GENERATION)]
    return f"; name {of_sheet[0]!r} in model.covariates" if of_sheet else ""


def _candidates(
    sheet: SampleSheet, rows: Sequence[int], pedigree: Pedigree, related: Relatives
) -> Iterator[tuple[str, Array | NDArray[np.str_]]]:
    """Values of what a factor may go with, [K] each; FAMILY is always among them."""
    position = {name: index for index, name in enumerate(pedigree.individuals)}
    members = [position[sheet.individuals[row]] for row in rows]
    yield FAMILY, np.array([f"family {number}" for number in related.family])
    generation = generations(pedigree)
    of_pedigree = {
        SEX: [pedigree.sex[member] for member in members],
        GENERATION: [f"generation {generation[member]}" for member in members],
    }
    columns = {name: [values[row] for row in rows] for name, values in sheet.columns.items()}
    for name, values in {**of_pedigree, **columns}.items():
        if any(value in MISSING for value in values) or len(set(values)) < 2:
            continue
        numbers = [as_number(value) for value in values]
        if None not in numbers:
            yield name, np.array(numbers, dtype=np.float64)
        elif len(set(values)) < len(values):
            yield name, np.array(values)


def _association(factor: Array, values: Array | NDArray[np.str_]) -> tuple[float, float]:
    """Correlation with a number, or the root of the share between categories, and its p-value."""
    size, centred = len(factor), factor - factor.mean()
    total = float(centred @ centred)
    if values.dtype.kind == "f":
        number = values.astype(np.float64) - values.astype(np.float64).mean()
        correlation = float(centred @ number / np.sqrt(total * float(number @ number)))
        rest = max(1.0 - correlation**2, 1e-12)
        return correlation, float(2 * stdtr(size - 2, -abs(correlation) * np.sqrt((size - 2) / rest)))
    levels, of_sample, counts = np.unique(values, return_inverse=True, return_counts=True)
    means = np.bincount(of_sample, centred) / counts
    share = min(float(counts @ means**2) / total, 1.0)
    between, within = len(levels) - 1, size - len(levels)
    if between < 1 or within < 1:
        return float(np.sqrt(share)), float("nan")
    ratio = share / between / max((1.0 - share) / within, 1e-300)
    return float(np.sqrt(share)), float(fdtrc(between, within, ratio))


def _kinship(factor: Array, related: Relatives) -> float:
    """Correlation, over pairs of samples, of the product of their values with their relatedness; nan where none is."""
    pairs = np.triu_indices(len(factor), 1)
    relatedness, product = related.relatedness[pairs], np.outer(factor, factor)[pairs]
    if np.ptp(relatedness) == 0:
        return float("nan")
    return float(np.corrcoef(relatedness, product)[0, 1])
