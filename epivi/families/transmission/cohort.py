"""The cohort as the family `transmission` sees it: samples, covariates and the latent field of every hypothesis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from epivi.base.errors import UserError
from epivi.cohort.haplotypes import Unit, check_sexual, sampled_units
from epivi.cohort.kinship import unit_polynomials
from epivi.cohort.pedigree import Pedigree
from epivi.cohort.relatedness_matrix import read_relatedness_matrix, relatedness_among
from epivi.cohort.samples import SampleSheet, design_matrix, group_index
from epivi.families.transmission.columns import effect_name
from epivi.families.transmission.hypotheses import Component, Hypothesis
from epivi.field.covariate import Covariate
from epivi.field.layout import Cohort, LatentField, block_entries, independent_blocks

Array = NDArray[np.float64]


class Sampled(NamedTuple):
    """Who was sampled."""

    sheet: SampleSheet
    pedigree: Pedigree
    units: tuple[Unit, ...]  # N individuals and haplotypes
    individual_of_sample: NDArray[np.int32]  # [S], index into `units`


def build_cohort(
    sheet: SampleSheet, pedigree: Pedigree, covariates: Sequence[str], hypotheses: Sequence[Hypothesis]
) -> Cohort:
    """Join sample sheet, pedigree and hypotheses.

    Raises UserError for a covariate or environment column that the sheet lacks, for covariates whose effects would
    have one name, for a relatedness matrix that is none of the sampled individuals, where replicate samples of one
    individual lie in different groups of an environment column, and for haplotypes that cannot be those of one
    individual with two parents.
    """
    units, individual_of_sample = sampled_units(sheet)
    check_sexual(units, pedigree, sheet)
    wanted = list(dict.fromkeys([*covariates, *(name for h in hypotheses for name in h.covariates)]))
    matrices = {name: design_matrix(sheet, [name]) for name in wanted}
    names = tuple(column for name in wanted for column in matrices[name][1])
    _check_effects(names, sheet)
    fields = tuple(
        _latent_field(sheet, pedigree, covariates, hypothesis, units, individual_of_sample, matrices, names)
        for hypothesis in hypotheses
    )
    return Cohort(
        sheet.samples,
        tuple(unit.name for unit in units),
        individual_of_sample,
        sheet.false_methylated,
        sheet.false_unmethylated,
        names,
        fields,
    )


def _check_effects(covariates: Sequence[Covariate], sheet: SampleSheet) -> None:
    """Every effect has a column of its own in the tables, whose names SQL compares without regard to case."""
    named: dict[str, Covariate] = {}
    for covariate in covariates:
        other = named.setdefault(effect_name(covariate).lower(), covariate)
        if other is not covariate:
            raise UserError(
                f"{sheet.path}: the covariates {other.name!r} and {covariate.name!r} give the columns of their effects "
                f"one name, {effect_name(covariate)!r}: expected columns and levels that differ in more than case"
            )


def _latent_field(
    sheet: SampleSheet,
    pedigree: Pedigree,
    covariates: Sequence[str],
    hypothesis: Hypothesis,
    units: tuple[Unit, ...],
    individual_of_sample: NDArray[np.int32],
    matrices: dict[str, tuple[NDArray[np.float64], tuple[Covariate, ...]]],
    names: tuple[Covariate, ...],
) -> LatentField:
    n = len(units)
    sampled = Sampled(sheet, pedigree, units, individual_of_sample)
    covariances = [COVARIANCES[component.kind](component, hypothesis, sampled) for component in hypothesis.components]
    order, block_start = independent_blocks(covariances, n)
    entries = block_entries(covariances, order, block_start)
    latent_of_individual = np.empty(n, dtype=np.int32)
    latent_of_individual[order] = np.arange(n, dtype=np.int32)
    used = list(dict.fromkeys([*covariates, *hypothesis.covariates]))
    columns = [matrices[name][0] for name in used]
    column_names = [column_name for name in used for column_name in matrices[name][1]]
    return LatentField(
        latent_of_sample=latent_of_individual[individual_of_sample],
        block_start=block_start,
        entry_start=entries.start,
        entry_component=entries.component,
        entry_row=entries.row,
        entry_column=entries.column,
        entry_exponent=entries.exponent,
        entry_coefficient=entries.coefficient,
        components=len(covariances),
        design=np.concatenate([np.ones((len(sheet.samples), 1)), *columns], axis=1),
        design_column=np.array([names.index(name) for name in column_names], dtype=np.int32),
        individual=order,
    )


def _along_the_pedigree(component: Component, hypothesis: Hypothesis, sampled: Sampled) -> Array:
    return unit_polynomials(sampled.pedigree, hypothesis, sampled.units)


def _within_groups(component: Component, hypothesis: Hypothesis, sampled: Sampled) -> Array:
    group = _individual_groups(sampled, str(component.source))
    return (group[:, None] == group[None, :]).astype(np.float64)[:, :, None]


def _by_matrix(component: Component, hypothesis: Hypothesis, sampled: Sampled) -> Array:
    # METHOD: relatedness belongs to the individual: both of its haplotypes have it, like an environment.
    matrix = read_relatedness_matrix(str(component.source))
    return relatedness_among(matrix, sampled.sheet, [unit.individual for unit in sampled.units]).values[:, :, None]


# What a covariance component of each kind makes the N sampled individuals and haplotypes share: polynomials in tau,
# [N, N, exponents].
COVARIANCES: Mapping[str, Callable[[Component, Hypothesis, Sampled], Array]] = {
    "heritable": _along_the_pedigree,
    "environment": _within_groups,
    "relatedness": _by_matrix,
}


def _individual_groups(sampled: Sampled, column: str) -> NDArray[np.int32]:
    """Level of the environment column of each sampled individual."""
    sheet = sampled.sheet
    levels, _ = group_index(sheet, column)
    group = np.full(len(sampled.units), -1, dtype=np.int32)
    for sample, (individual, level) in enumerate(zip(sampled.individual_of_sample, levels, strict=True)):
        if group[individual] not in (-1, level):
            raise UserError(
                f"{sheet.path}, line {sheet.lines[sample]}, column {column}: the replicate samples of individual "
                f"{sheet.individuals[sample]!r} lie in different groups; expected one group an individual"
            )
        group[individual] = level
    return group
