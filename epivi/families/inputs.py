"""What `fit`, `evidence` and their like read: loci, samples, pedigree, and the fit that belongs to them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from epivi.base.errors import UserError
from epivi.cohort.haplotypes import sampled_units
from epivi.cohort.pedigree import Pedigree, check_samples, pedigree_hash
from epivi.cohort.pedigree_files import read_pedigree
from epivi.cohort.samples import SampleSheet, in_order_of, read_sample_sheet
from epivi.config.load import Config
from epivi.families import family_step
from epivi.families.family import FamilyProblem, Inputs
from epivi.families.transmission.prepare import TransmissionProblem, prepare
from epivi.loci.store import LociStore
from epivi.quality.conversion import with_estimated_errors

if TYPE_CHECKING:
    from epivi.fit.folder import Fitted


def read_inputs(loci: str, samples: str, pedigree: str) -> Inputs:
    """Open and join the files. Raises UserError where they are missing or do not belong together."""
    store = LociStore.open(loci)
    sheet = with_estimated_errors(in_order_of(store, read_sample_sheet(samples)), store.sums)
    individuals = read_pedigree(pedigree)
    check_samples(sheet, individuals)
    return Inputs(store, sheet, individuals, pedigree_hash(individuals), base_stamp(sheet, individuals))


def base_stamp(sheet: SampleSheet, pedigree: Pedigree) -> tuple[Any, ...]:
    """What every family's stamp holds: pedigree, samples, individuals."""
    units, unit_of_sample = sampled_units(sheet)
    return pedigree_hash(pedigree), sheet.samples, tuple(units[unit].name for unit in unit_of_sample)


def read_problem(loci: str, samples: str, pedigree: str, config: Config) -> TransmissionProblem:
    """The problem of a command that knows the family `transmission` only; raises UserError for another family."""
    if config.family != "transmission":
        raise UserError(
            f"{config.source}: model.family is {config.family}: expected transmission, the only family of this command"
        )
    return prepare(read_inputs(loci, samples, pedigree), config)


def read_fit(folder: Path, problem: FamilyProblem, samples: str, pedigree: str, family: str = "transmission") -> Fitted:
    """The fit of a problem. Raises UserError where there is none or it is of another problem."""
    from epivi.fit.folder import load_fit

    fitted = load_fit(folder, family_step(family, "prepare").learned_type())
    if fitted.stamp != problem.stamp:
        raise UserError(
            f"{folder}: was fitted to other samples, another pedigree or another model than {samples}, {pedigree} "
            "and the configuration; expected a fit of the same: run epivi fit again"
        )
    return fitted
