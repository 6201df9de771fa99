"""From files and configuration to the problem that the steps of the family `transmission` solve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from epivi.base.files import content_hash
from epivi.cohort.kinship import sampled_families
from epivi.cohort.pedigree import Pedigree
from epivi.cohort.relatedness_matrix import content, read_relatedness_matrix
from epivi.cohort.samples import SampleSheet
from epivi.config.load import Config
from epivi.families.family import Inputs
from epivi.families.transmission.cohort import build_cohort
from epivi.families.transmission.hypotheses import Hypothesis, NormalPrior, parse_hypotheses, share_priors
from epivi.field.layout import Cohort
from epivi.loci.store import LociStore

if TYPE_CHECKING:
    from epivi.families.transmission.density import LearnedPriors


class TransmissionProblem(NamedTuple):
    """A cohort ready for inference; `stamp` changes with samples, sheet columns, pedigree, relatedness and model."""

    store: LociStore
    cohort: Cohort
    hypotheses: tuple[Hypothesis, ...]
    priors: dict[str, NormalPrior]
    pedigree_hash: str
    stamp: str
    sheet: SampleSheet  # in the order of the store's samples
    pedigree: Pedigree

    @property
    def hypothesis_names(self) -> tuple[str, ...]:
        return tuple(hypothesis.name for hypothesis in self.hypotheses)


def prepare(inputs: Inputs, config: Config) -> TransmissionProblem:
    """Join inputs and hypotheses. Raises UserError where they do not fit the family."""
    model, sheet = config.section("model"), inputs.sheet
    hypotheses = parse_hypotheses(model["hypotheses"])
    cohort = build_cohort(sheet, inputs.pedigree, model["covariates"], hypotheses)
    stamp = stamp_of(inputs.base_stamp, sheet, config)
    priors = share_priors(model["priors"])
    return TransmissionProblem(
        inputs.store, cohort, hypotheses, priors, inputs.pedigree_hash, stamp, sheet, inputs.pedigree
    )


def stamp_of(base_stamp: Sequence[Any], sheet: SampleSheet, config: Config) -> str:
    """Hash of what a fit is of, but for the counts; base_stamp: as of Inputs."""
    model = config.section("model")
    return content_hash(
        [
            *base_stamp,
            [*sheet.false_methylated, *sheet.false_unmethylated],
            [sheet.columns[name] for name in config.sheet_columns],
            {key: value for key, value in model.items() if key != "null_hypotheses"},
            *(content(read_relatedness_matrix(path)) for path in config.relatedness_files),
        ]
    )


def families(problem: TransmissionProblem) -> int | None:
    """Families with two or more sampled relatives; None where no hypothesis has transmission.

    Who has no relative among the samples says nothing about transmission, and a shared environment makes no family.
    """
    if not any(hypothesis.transmits for hypothesis in problem.hypotheses):
        return None
    return sampled_families(problem.pedigree, problem.sheet.individuals)


def learned_type() -> type[LearnedPriors]:
    """The NamedTuple of what all loci share, as kept in fit.json."""
    from epivi.families.transmission.density import LearnedPriors

    return LearnedPriors
