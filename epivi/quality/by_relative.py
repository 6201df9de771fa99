"""Resemblance by kind of relative, within and across levels of columns of the sheet, with errors over families.

What all loci share (a batch, cells, one draw of a few individuals) is replicated by families and not by loci, so the
standard error that counts is the one from leaving out one family at a time; that over blocks of loci is beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import stdtrit

from epivi.cohort.relatives import KINDS, WITHOUT_BLOOD, Relatives
from epivi.quality.resemblance import Estimate, Levels, locus_weights, moments, solve

Array = NDArray[np.float64]

MOST_BLOCKS = 50  # of loci, for the error over loci
FEWEST_BLOCKS = 5
# METHOD: where there are more families than this, several are left out together.
MOST_GROUPS = 60
# METHOD: the chance that a run warns of its relatives without a cause is about this, by Student's quantile of the
# jackknife over families, divided among the tests of the run (Bonferroni).
FALSE_ALARM_RATE = 0.01
POWER = 0.8  # with which a resemblance of the size `detectable` would have been seen
# METHOD: the kinds without blood in common, from the one that shares least; the first that has pairs is the reference.
REFERENCES = tuple(reversed(WITHOUT_BLOOD))
WITHIN, ACROSS = "within", "across"
SAME_LEVEL = "same level"  # kind of the rows that compare pairs within a level with like pairs across
# Variance between samples that is beyond doubt, in its standard errors over blocks of loci.
VARIES = 3.0


class Group(NamedTuple):
    """Pairs of one kind, within or across the levels of a column, or all."""

    column: str
    kind: str
    level: str
    pairs: csr_array  # [S, S], symmetric, without diagonal


class Row(NamedTuple):
    """One row of the table `relatives`; see its columns for the meaning."""

    column: str
    kind: str
    level: str
    pairs: int
    families: int
    relatedness: float
    correlation: float
    se_families: float
    se_loci: float
    lower: float
    upper: float
    detectable: float
    is_reference: bool
    freedom: int  # of the error over families

    @property
    def error(self) -> float:
        """Of tests and intervals; nan without an error over families."""
        return larger_error(self.se_families, self.se_loci)


class Resemblance(NamedTuple):
    """Rows of all kinds, and what they are relative to."""

    rows: tuple[Row, ...]
    reference: str  # kind that the correlations are relative to; empty where there is none
    families: int  # connected pedigrees among the samples
    loci: int
    sd: float  # between samples, in logits, beyond reads; 0 where nothing varies beyond doubt
    tests: int  # among which the false alarm rate is divided


class _Sampled:
    """Levels of S samples at L loci, who they are to one another, and what is summed over them."""

    def __init__(self, values: Levels, design: Array, related: Relatives, family: NDArray[np.int32]) -> None:
        self.values, self.design, self.related, self.family = values, design, related, family
        self.locus_weight = locus_weights(values, design)
        self.blocks = _blocks(len(self.locus_weight))

    @cached_property
    def left_out(self) -> list[NDArray[np.bool_]]:
        """Samples of each group of families that is left out together, [S] each."""
        families = int(self.family.max()) + 1
        group = np.arange(families) % min(families, MOST_GROUPS)
        return [group[self.family] == number for number in range(int(group.max()) + 1)]

    def estimate(self, groups: Sequence[Group]) -> tuple[Estimate, Array, float]:
        """Of all samples, with the standard errors over blocks of loci of the correlations and of the variance."""
        sums = moments(self.values, self.design, self.locus_weight, [group.pairs for group in groups], self.blocks)
        gram, product = sums.gram.sum(0), sums.product.sum(0)
        whole = solve(gram, product)
        if len(self.blocks) < FEWEST_BLOCKS:
            return whole, np.full(len(groups), np.nan), np.nan
        without = [solve(gram - one, product - own) for one, own in zip(*sums, strict=True)]
        size = len(without)
        error = np.sqrt((size - 1) * np.stack([one.correlation for one in without]).var(0))
        return whole, error, float(np.sqrt((size - 1) * np.var([one.variance for one in without])))

    def without_each_family(self, groups: Sequence[Group], reference: csr_array) -> Array:
        """Correlations without each group of families, [G, K]; nan where no pair, or no reference, is left."""
        found = np.full((len(self.left_out), len(groups)), np.nan)
        loci = slice(0, len(self.locus_weight))
        for number, left in enumerate(self.left_out):
            keep = np.flatnonzero(~left)
            among = [_among(group.pairs, keep) for group in groups]
            has = np.array([matrix.nnz > 0 for matrix in among], dtype=bool)
            if not len(keep) or not _among(reference, keep).nnz:
                continue
            kinds = [matrix for matrix, is_there in zip(among, has, strict=True) if is_there]
            part = self.values.of(loci, keep)
            sums = moments(part, self.design[keep], self.locus_weight, kinds, [loci])
            found[number, has] = solve(sums.gram[0], sums.product[0]).correlation
        return found

    def families_of(self, group: Group) -> tuple[int, NDArray[np.bool_]]:
        """How many families have a sample among the pairs, and which groups of families do, [G]."""
        members = np.unique(group.pairs.tocoo().row)
        counted = np.array([left[members].any() for left in self.left_out])
        return len(np.unique(self.family[members])), counted


def resemblance(
    values: Levels, design: Array, related: Relatives, columns: Mapping[str, NDArray[np.int32]]
) -> Resemblance:
    """Correlations of S samples by what they are to one another.

    design: [S, P], intercept and covariates. columns: level of each sample, [S], in the columns to look within.
    """
    sampled = _Sampled(values, design, related, related.family)
    main = _groups(related, {"": np.zeros(len(related.kind), dtype=np.int32)})
    reference = next((kind for kind in REFERENCES if any(group.kind == kind for group in main)), "")
    families, loci = int(related.family.max()) + 1, len(values.weight)
    free = [group for group in main if group.kind != reference]
    whole, _, error = sampled.estimate(free)
    varies = bool(reference) and whole.variance > VARIES * (error if np.isfinite(error) else 0.0)
    tests = len(_tested(main, reference)) + len(columns)
    rows = _rows(sampled, main, reference, "", tests, varies)
    for column, level in columns.items():
        rows += _rows(sampled, _groups(related, {column: level}), reference, ACROSS, tests, varies)
        same = Group(column, SAME_LEVEL, f"{WITHIN} less {ACROSS}", _pairs(level[:, None] == level[None, :]))
        rows += [row for row in _rows(sampled, [*main, same], reference, "", tests, varies) if row.column]
    sd = float(np.sqrt(whole.variance)) if varies else 0.0
    return Resemblance(tuple(rows), reference, families, loci, sd, tests)


def _tested(groups: Sequence[Group], reference: str) -> list[str]:
    """Kinds of pairs that a run may warn of."""
    asked = ("replicates", *WITHOUT_BLOOD)
    return [group.kind for group in groups if group.kind in asked and group.kind != reference]


def _groups(related: Relatives, columns: Mapping[str, NDArray[np.int32]]) -> list[Group]:
    """Kinds that have pairs; of a named column those within a level apart from those across."""
    found = []
    for column, level in columns.items():
        same = level[:, None] == level[None, :]
        parts: Mapping[str, NDArray[np.bool_]] = {WITHIN: same, ACROSS: ~same} if column else {"": same}
        for code, kind in enumerate(KINDS):
            for label, part in parts.items():
                pairs = _pairs((related.kind == code) & part)
                if pairs.nnz:
                    found.append(Group(column, kind, label, pairs))
    return found


def _rows(
    sampled: _Sampled, groups: Sequence[Group], reference: str, reference_level: str, tests: int, varies: bool
) -> list[Row]:
    """Rows of one set of kinds that are estimated together; nan throughout where nothing varies."""
    is_reference = [group.kind == reference and group.level == reference_level for group in groups]
    free = [group for group, is_one in zip(groups, is_reference, strict=True) if not is_one]
    at = {id(group): number for number, group in enumerate(free)}
    nothing = np.full(len(free), np.nan)
    correlation, se_loci, left = nothing, nothing, np.full((len(sampled.left_out), len(free)), np.nan)
    if varies and any(is_reference):
        whole, se_loci, _ = sampled.estimate(free)
        correlation = whole.correlation
        left = sampled.without_each_family(free, groups[is_reference.index(True)].pairs)
    rows = []
    for group, is_one in zip(groups, is_reference, strict=True):
        families, counted = sampled.families_of(group)
        number = at.get(id(group))
        value = 0.0 if number is None and varies else np.nan if number is None else float(correlation[number])
        error = np.nan if number is None or np.isnan(value) else _family_error(left[:, number], counted)
        of_loci = np.nan if number is None else float(se_loci[number])
        freedom = int(counted.sum()) - 1
        quantiles = np.array(
            [float(stdtrit(freedom, 0.975)), critical(freedom, tests) + float(stdtrit(freedom, POWER))]
        )
        reach, shown = (quantiles * larger_error(error, of_loci)).tolist() if freedom > 0 else (np.nan, np.nan)
        rows.append(
            Row(
                group.column,
                group.kind,
                group.level,
                group.pairs.nnz // 2,
                families,
                float(sampled.related.relatedness[group.pairs.nonzero()].mean()) if group.pairs.nnz else np.nan,
                value,
                error,
                of_loci,
                value - reach,
                value + reach,
                shown,
                is_one,
                freedom,
            )
        )
    return rows


def larger_error(se_families: float, se_loci: float) -> float:
    """# METHOD: the error over families holds that over loci; where it is smaller, few families agree by chance."""
    return se_families if np.isnan(se_loci) or np.isnan(se_families) else max(se_families, se_loci)


def critical(freedom: int, tests: int) -> float:
    """Student's quantile beyond which a test of a run warns."""
    return float(stdtrit(freedom, 1.0 - FALSE_ALARM_RATE / max(tests, 1)))


def _family_error(without: Array, counted: NDArray[np.bool_]) -> float:
    """Jackknife error of a correlation from its values without each group of families, [G].

    # METHOD: groups with pairs of the kind are its replicates; the others change what it is compared with, which their
    # own jackknife adds. nan where there are not two replicates, or one cannot be done without.
    """
    own, others = without[counted], without[~counted]
    if len(own) < 2 or not np.isfinite(without).all():
        return float("nan")
    variance = (len(own) - 1) * own.var()
    # About the mean of all others, which only by their own noise differ from the whole.
    if len(others) > 1:
        variance += (len(others) - 1) * others.var()
    return float(np.sqrt(variance))


def _blocks(loci: int) -> list[slice]:
    """Ranges of neighbouring loci of the sample."""
    bounds = np.linspace(0, loci, min(MOST_BLOCKS, max(loci, 1)) + 1).astype(int)
    return [slice(start, stop) for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)]


def _pairs(is_pair: NDArray[np.bool_]) -> csr_array:
    return csr_array((is_pair & ~np.eye(len(is_pair), dtype=bool)).astype(np.float64))


def _among(pairs: csr_array, keep: NDArray[np.int64]) -> csr_array:
    return pairs[keep][:, keep]
