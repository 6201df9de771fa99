"""The cohort as the family `transmission` sees it: samples, covariates and the latent field of every hypothesis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from epivi.base.errors import UserError
from epivi.cohort.haplotypes import Unit, check_sexual, sampled_units
from epivi.cohort.kinship import unit_polynomials
from epivi.cohort.pedigree import Pedigree
from epivi.cohort.samples import SampleSheet, design_matrix, group_index
from epivi.families.transmission.hypotheses import Hypothesis
from epivi.field.layout import Cohort, LatentField, block_entries, independent_blocks


def build_cohort(
    sheet: SampleSheet, pedigree: Pedigree, covariates: Sequence[str], hypotheses: Sequence[Hypothesis]
) -> Cohort:
    """Join sample sheet, pedigree and hypotheses.

    Raises UserError for a covariate or environment column that the sheet lacks, where replicate samples of one
    individual lie in different groups of an environment column, and for haplotypes that cannot be those of one
    individual with two parents.
    """
    units, individual_of_sample = sampled_units(sheet)
    check_sexual(units, pedigree, sheet)
    wanted = list(dict.fromkeys([*covariates, *(name for h in hypotheses for name in h.covariates)]))
    matrices = {name: design_matrix(sheet, [name]) for name in wanted}
    names = tuple(column for name in wanted for column in matrices[name][1])
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


def _latent_field(
    sheet: SampleSheet,
    pedigree: Pedigree,
    covariates: Sequence[str],
    hypothesis: Hypothesis,
    units: tuple[Unit, ...],
    individual_of_sample: NDArray[np.int32],
    matrices: dict[str, tuple[NDArray[np.float64], tuple[str, ...]]],
    names: tuple[str, ...],
) -> LatentField:
    n = len(units)
    polynomials = np.zeros((n, n, 1))
    if hypothesis.transmits:
        polynomials = unit_polynomials(pedigree, hypothesis, units)
    group = _individual_groups(sheet, hypothesis.environment_column, individual_of_sample, n)
    order, block_start = independent_blocks(polynomials, group)
    entry_start, entries, coefficients = block_entries(polynomials, order, block_start)
    latent_of_individual = np.empty(n, dtype=np.int32)
    latent_of_individual[order] = np.arange(n, dtype=np.int32)
    used = list(dict.fromkeys([*covariates, *hypothesis.covariates]))
    columns = [matrices[name][0] for name in used]
    column_names = [column_name for name in used for column_name in matrices[name][1]]
    return LatentField(
        latent_of_sample=latent_of_individual[individual_of_sample],
        block_start=block_start,
        entry_start=entry_start,
        entry_row=entries[:, 0].copy(),
        entry_column=entries[:, 1].copy(),
        entry_exponent=entries[:, 2].copy(),
        entry_coefficient=coefficients,
        group=group[order],
        design=np.concatenate([np.ones((len(sheet.samples), 1)), *columns], axis=1),
        design_column=np.array([names.index(name) for name in column_names], dtype=np.int32),
        individual=order,
    )


def _individual_groups(
    sheet: SampleSheet, column: str | None, individual_of_sample: NDArray[np.int32], n: int
) -> NDArray[np.int32]:
    """Level of the environment column of each sampled individual, -1 without such a column."""
    if column is None:
        return np.full(n, -1, dtype=np.int32)
    levels, _ = group_index(sheet, column)
    group = np.full(n, -1, dtype=np.int32)
    for sample, (individual, level) in enumerate(zip(individual_of_sample, levels, strict=True)):
        if group[individual] not in (-1, level):
            raise UserError(
                f"{sheet.path}, line {sheet.lines[sample]}, column {column}: the replicate samples of individual "
                f"{sheet.individuals[sample]!r} lie in different groups; expected one group an individual"
            )
        group[individual] = level
    return group
