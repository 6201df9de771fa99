"""What `fit`, `evidence` and their like read: loci, samples, pedigree, and the fit that belongs to them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from epivi.config import Config
from epivi.conversion import with_estimated_errors
from epivi.errors import UserError
from epivi.families import family_step
from epivi.families.transmission.prepare import Problem, prepare
from epivi.haplotypes import sampled_units
from epivi.models.family import FamilyProblem, Inputs
from epivi.pedigree import check_samples, pedigree_hash, read_pedigree
from epivi.samples import SampleSheet, read_sample_sheet
from epivi.store import LociStore

if TYPE_CHECKING:
    from epivi.fitted import Fitted


def read_inputs(loci: str, samples: str, pedigree: str) -> Inputs:
    """Open and join the files. Raises UserError where they are missing or do not belong together."""
    store = LociStore.open(loci)
    sheet = with_estimated_errors(in_order_of(store, read_sample_sheet(samples)), store.sums)
    individuals = read_pedigree(pedigree)
    check_samples(sheet, individuals)
    identity = pedigree_hash(individuals)
    units, unit_of_sample = sampled_units(sheet)
    of_samples = tuple(units[unit].name for unit in unit_of_sample)
    return Inputs(store, sheet, individuals, identity, (identity, sheet.samples, of_samples))


def read_problem(loci: str, samples: str, pedigree: str, config: Config) -> Problem:
    """The problem of a command that knows the family `transmission` only; raises UserError for another family."""
    if config.family != "transmission":
        raise UserError(
            f"{config.source}: model.family is {config.family}: expected transmission, the only family of this command"
        )
    return prepare(read_inputs(loci, samples, pedigree), config)


def read_fit(folder: Path, problem: FamilyProblem, samples: str, pedigree: str, family: str = "transmission") -> Fitted:
    """The fit of a problem. Raises UserError where there is none or it is of another problem."""
    from epivi.fitted import load_fit

    fitted = load_fit(folder, family_step(family, "prepare").learned_type())
    if fitted.stamp != problem.stamp:
        raise UserError(
            f"{folder}: was fitted to other samples, another pedigree or another model than {samples}, {pedigree} "
            "and the configuration; expected a fit of the same: run epivi fit again"
        )
    return fitted


def in_order_of(store: LociStore, sheet: SampleSheet) -> SampleSheet:
    """The sheet's rows in the order of the store's samples."""
    position = {name: row for row, name in enumerate(sheet.samples)}
    missing = [name for name in store.samples if name not in position]
    extra = set(sheet.samples) - set(store.samples)
    if missing or extra:
        name, where = (missing[0], "only in the loci") if missing else (min(extra), "only in the sheet")
        raise UserError(
            f"{sheet.path}: its samples are not those of {store.directory}: {name!r} is {where}; expected the sheet "
            "that the loci were made from"
        )
    rows = [position[name] for name in store.samples]

    def pick(values: tuple) -> tuple:
        return tuple(values[row] for row in rows)

    return replace(
        sheet,
        samples=pick(sheet.samples),
        individuals=pick(sheet.individuals),
        paths=pick(sheet.paths),
        formats=pick(sheet.formats),
        haplotypes=pick(sheet.haplotypes),
        false_methylated=sheet.false_methylated[rows],
        false_unmethylated=sheet.false_unmethylated[rows],
        columns={name: pick(values) for name, values in sheet.columns.items()},
        lines=pick(sheet.lines),
    )
