"""From files and configuration to the problem that the steps of the family `epimutation` solve."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from epivi.base.errors import UserError
from epivi.base.files import content_hash
from epivi.cohort.pedigree import Pedigree
from epivi.cohort.samples import SampleSheet
from epivi.config.load import Config
from epivi.families.epimutation.hypotheses import EpimutationHypothesis, EpimutationPriors, parse_epimutation_hypotheses
from epivi.families.family import Inputs
from epivi.lineage.elimination import EliminationPlan, build_plan
from epivi.lineage.lineage import build_lineage
from epivi.loci.classes import LocusClasses, read_classes
from epivi.loci.store import LociStore

if TYPE_CHECKING:
    from epivi.families.epimutation.density import LearnedStates

UNKNOWN_CONTEXT = "."  # of adenines, which have no context


class EpimutationProblem(NamedTuple):
    """A cohort ready for inference; `stamp` changes with samples, pedigree, classes and model."""

    store: LociStore
    plan: EliminationPlan
    hypotheses: tuple[EpimutationHypothesis, ...]
    priors: EpimutationPriors
    classes: LocusClasses
    pedigree_hash: str
    stamp: str
    sheet: SampleSheet  # in the order of the store's samples
    pedigree: Pedigree  # with the mode that the configuration says

    @property
    def hypothesis_names(self) -> tuple[str, ...]:
        return tuple(hypothesis.name for hypothesis in self.hypotheses)


def _require_whole_individuals(sheet: SampleSheet) -> None:
    """Raise UserError for a sample of one haplotype: a state is that of both copies."""
    for row, sample in enumerate(sheet.samples):
        if sheet.origin_of(row) != "both":
            raise UserError(
                f"{sheet.path} line {sheet.lines[row]}: sample {sample!r} is one haplotype; "
                "expected whole individuals, as the family epimutation needs them"
            )


def prepare(inputs: Inputs, config: Config) -> EpimutationProblem:
    """Join inputs and hypotheses. Raises UserError where they do not fit the family."""
    _require_whole_individuals(inputs.sheet)
    model = config.section("model")
    contexts = (UNKNOWN_CONTEXT,) if config.section("loci")["modification"] == "a" else config.contexts
    classes = read_classes(model["classes"], contexts)
    pedigree = with_mode(inputs.pedigree, model["mode"])
    plan = build_plan(build_lineage(pedigree, inputs.sheet.individuals), "pedigree")
    intervals = {name: [part.tolist() for part in contig] for name, contig in classes.contigs.items()}
    stamp = content_hash(
        [
            *inputs.base_stamp,
            classes.names,
            intervals,
            {key: value for key, value in model.items() if key != "null_hypotheses"},
        ]
    )
    return EpimutationProblem(
        inputs.store,
        plan,
        parse_epimutation_hypotheses(model["hypotheses"]),
        EpimutationPriors(float(model["priors"]["rate_sd"]), float(model["priors"]["fitness_sd"])),
        classes,
        inputs.pedigree_hash,
        stamp,
        inputs.sheet,
        pedigree,
    )


def families(problem: EpimutationProblem) -> None:
    """None: changes arise at each locus by themselves, so that loci are replicates even within one lineage."""


def learned_type() -> type[LearnedStates]:
    """The NamedTuple of what all loci share, as kept in fit.json."""
    from epivi.families.epimutation.density import LearnedStates

    return LearnedStates


def with_mode(pedigree: Pedigree, mode: str | None) -> Pedigree:
    """The pedigree with another mode for the individuals that have one parent and are not of a cross."""
    if mode is None:
        return pedigree
    return replace(pedigree, mode=tuple(own if own == "sexual" else mode for own in pedigree.mode))
